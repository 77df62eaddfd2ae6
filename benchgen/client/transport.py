"""One channel to a server: presents the API key, turns failures into errors, tries again where it is safe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import grpc

from benchgen.errors import Unavailable
from benchgen.statuses import error_of


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


Answer = TypeVar("Answer")
Page = TypeVar("Page", bound=_Page)
Item = TypeVar("Item")

_FIRST_WAIT = 0.1
_LONGEST_WAIT = 1.0
_PAGE_SIZE = 200

_OPTIONS = [
    # A service that was restarted is found again at once, not after gRPC's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
]
# Loopback and private networks have no use for the proxies of the environment.
_PLAIN_OPTIONS = [*_OPTIONS, ("grpc.enable_http_proxy", 0)]


class Transport:
    """A channel and the API key that goes with every call.

    :param address: `HOST:PORT`, or `https://HOST[:PORT]` for TLS.
    :param connect_seconds: how long a call is tried again while the server has never answered, seconds.
    :param patience: how long it is tried again once the server has answered, seconds.
    :param call_seconds: the longest one call may take, seconds; uploads have no bound.
    """

    def __init__(
        self, address: str, api_key: str, *, connect_seconds: float, patience: float, call_seconds: float
    ) -> None:
        self.address = address
        self.channel = _open(address)
        self._metadata = (("authorization", f"Bearer {api_key}"),)
        self._connect_seconds = connect_seconds
        self._patience = patience
        self._call_seconds = call_seconds
        self._answered = False

    def close(self) -> None:
        """Close the channel; calls under way end with an error."""
        self.channel.close()

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Any, Answer],
        request: object,
        *,
        repeat: bool = True,
        seconds: float | None = None,
    ) -> Answer:
        """Call a method with one request and one answer.

        :param repeat: whether calling twice is the same as calling once.
        :param seconds: the longest it may take, when not the usual.
        """
        timeout = seconds or self._call_seconds

        def once() -> Answer:
            return method(request, timeout=timeout, metadata=self._metadata)

        return self.patiently(once) if repeat else self._tried(once)

    def listed(
        self,
        method: grpc.UnaryUnaryMultiCallable[Any, Page],
        request: Any,
        items: Callable[[Page], Sequence[Item]],
        limit: int | None = None,
    ) -> Iterator[Item]:
        """The items of a list, page by page as they are asked for.

        :param items: takes them from a page.
        :param limit: how many at most; all when None.
        """
        left = limit
        while left is None or left > 0:
            request.page_size = _PAGE_SIZE if left is None else min(left, _PAGE_SIZE)
            page = self.call(method, request)
            found = items(page)
            yield from found
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
            left = None if left is None else left - len(found)

    def upload(
        self, method: grpc.StreamUnaryMultiCallable[Any, Answer], requests: Callable[[], Iterator[Any]]
    ) -> Answer:
        """Call a method that takes a stream; ``requests`` makes the stream anew for every try."""
        return self.patiently(lambda: method(requests(), metadata=self._metadata))

    def stream(
        self,
        method: grpc.UnaryStreamMultiCallable[Any, Answer],
        request: object,
        *,
        seconds: float | None = None,
    ) -> Iterator[Answer]:
        """Call a method that answers with a stream. It is cancelled when the iterator is closed.

        :param seconds: the longest it may take; no bound when None.
        """
        answers = method(request, timeout=seconds, metadata=self._metadata)
        try:
            for answer in answers:
                self._answered = True
                yield answer
        except grpc.RpcError as failure:
            raise error_of(failure) from None
        finally:
            answers.cancel()

    def patiently(self, once: Callable[[], Answer]) -> Answer:
        """Do something that is safe to repeat, again and again while the server cannot be reached."""
        pause = self.pause()
        while True:
            try:
                return self._tried(once)
            except Unavailable as error:
                if not pause.rest():
                    # gRPC tells the whole way to a refused connection; its last words say why.
                    why = error.message.rpartition(": ")[2] if "connect" in error.message else error.message
                    raise Unavailable(f"{self.address}: {why}") from None

    def pause(self) -> Pause:
        """What to wait with while the server cannot be reached."""
        return Pause(self._patience if self._answered else self._connect_seconds)

    def _tried(self, once: Callable[[], Answer]) -> Answer:
        try:
            answer = once()
        except grpc.RpcError as failure:
            error = error_of(failure)
            self._answered = self._answered or not isinstance(error, Unavailable)
            raise error from None
        self._answered = True
        return answer


class Pause:
    """Waits that grow up to a second, and end when there was no success for ``patience`` seconds."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.reset()

    def reset(self) -> None:
        """Something worked: count from here."""
        self._deadline = time.monotonic() + self._patience
        self._wait = _FIRST_WAIT

    def rest(self) -> bool:
        """Wait, or say that it has been too long."""
        if time.monotonic() + self._wait > self._deadline:
            return False
        time.sleep(self._wait)
        self._wait = min(self._wait * 2, _LONGEST_WAIT)
        return True


def _open(address: str) -> grpc.Channel:
    if address.startswith("https://"):
        return grpc.secure_channel(
            address.removeprefix("https://").rstrip("/"), grpc.ssl_channel_credentials(), _OPTIONS
        )
    return grpc.insecure_channel(address.removeprefix("http://").rstrip("/"), _PLAIN_OPTIONS)

"""An S3 client whose signatures bear the server's time.

A store refuses signatures that are some minutes old, or of the future, and a process on a machine with a wrong clock
could read and write nothing: it would hold what it leased, and wait for ever. Every answer carries the server's time,
so the first refusal is enough to sign right.
"""

from __future__ import annotations

import time
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3
from minio import Minio
from minio.error import S3Error
from minio.time import to_amz_date

#: Servers allow more than this, and ``Date`` is exact to a second, seconds.
_TOLERATED = 60.0


class _Listening(urllib3.PoolManager):
    """Notes how far the server's clock is ahead of this machine's, seconds."""

    ahead = 0.0

    def urlopen(self, *values: Any, **named: Any) -> Any:
        """Send a request."""
        response = super().urlopen(*values, **named)
        self._note(response.headers.get("date"))
        return response

    def _note(self, date: str | None) -> None:
        if date is None:
            return
        try:
            ahead = parsedate_to_datetime(date).timestamp() - time.time()
        except (ValueError, OverflowError):
            return
        self.ahead = ahead if abs(ahead) > _TOLERATED else 0.0


class ServersClock(Minio):
    """The client, with the settings of urllib3's pool as ``pool``."""

    def __init__(self, endpoint: str, *, pool: dict[str, Any], **settings: Any) -> None:
        self._heard = _Listening(**pool)
        super().__init__(endpoint, http_client=self._heard, **settings)

    def _build_headers(self, *values: Any) -> tuple[Any, Any]:
        headers, date = super()._build_headers(*values)
        if self._heard.ahead:
            date += timedelta(seconds=self._heard.ahead)
            headers["x-amz-date"] = to_amz_date(date)
        return headers, date

    def _url_open(self, *values: Any, **named: Any) -> Any:
        signed = self._heard.ahead
        try:
            return super()._url_open(*values, **named)
        except S3Error:
            if abs(self._heard.ahead - signed) <= _TOLERATED:
                raise
        return super()._url_open(*values, **named)

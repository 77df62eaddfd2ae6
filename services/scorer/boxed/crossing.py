"""Values on their way between the process of the tests and that of the code. Runs in the box, on Python 3.10 or later.

Plain values are copied: numbers, texts, bytes, lists, tuples, sets, mappings, and a few types of the standard library,
made anew from their plain parts. Everything else stays where it is, and the other side gets a handle. So nothing that
the code defines ever runs in the process of the tests: no ``__eq__`` that is always true can come across.
"""

from __future__ import annotations

import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    # At run time these modules would cost more than the rest of the start.
    from collections.abc import Callable
    from typing import Any, NoReturn

_DEPTH = 200
_MOST = 256 << 20


class Broken(BaseException):
    """The other side is gone, or says what makes no sense. Nothing that a test catches."""


class Channel:
    """Messages over two pipes: a length of 8 bytes, then JSON."""

    def __init__(self, reading: int, writing: int) -> None:
        self.broken = ""
        """Why the other side is gone, once it is: whoever catches everything catches that, too."""
        self._reading = reading
        self._writing = writing
        # Kept here: code that replaces them in its module does not replace these.
        self._read, self._write, self._dumps, self._loads = os.read, os.write, json.dumps, json.loads

    def send(self, message: Any) -> None:
        data = self._dumps(message).encode()
        view = memoryview(len(data).to_bytes(8, "little") + data)
        try:
            while view:
                view = view[self._write(self._writing, view) :]
        except OSError:
            self._break("the code ended its process")

    def _break(self, why: str) -> NoReturn:
        self.broken = why
        raise Broken(why) from None

    def receive(self) -> Any:
        length = int.from_bytes(self._exactly(8), "little")
        if length > _MOST:
            self._break("the code sent more than can be taken")
        try:
            return self._loads(self._exactly(length))
        except (ValueError, RecursionError):
            self._break("the code sent what makes no sense")

    def _exactly(self, length: int) -> bytes:
        parts = []
        while length:
            part = self._read(self._reading, min(length, 1 << 20))
            if not part:
                self._break("the code ended its process")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def pack(value: Any, handle: Callable[[Any], Any], depth: int = 0) -> Any:
    """A value as JSON.

    :param handle: makes the JSON of a value that stays here.
    """
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -(1 << 53) < value < 1 << 53 else {"i": hex(value)}
    if kind is float:
        return value if value - value == 0 else {"f": repr(value)}
    if depth > _DEPTH:
        raise ValueError("nested too deeply")
    if kind is list:
        return [pack(item, handle, depth + 1) for item in value]
    if kind in _SEQUENCES:
        return {_SEQUENCES[kind]: [pack(item, handle, depth + 1) for item in value]}
    if kind is dict:
        return {"d": _pairs(value, handle, depth)}
    if kind is bytes or kind is bytearray:
        return {"b" if kind is bytes else "a": value.hex()}
    if kind is complex:
        return {"c": [repr(value.real), repr(value.imag)]}
    return _library(kind, value, handle, depth) or handle(value)


_SEQUENCES: dict[type, str] = {tuple: "t", set: "s", frozenset: "z"}


def _pairs(value: dict[Any, Any], handle: Callable[[Any], Any], depth: int) -> list[Any]:
    return [[pack(k, handle, depth + 1), pack(v, handle, depth + 1)] for k, v in dict.items(value)]


def _library(kind: type, value: Any, handle: Callable[[Any], Any], depth: int) -> Any:
    """Types of libraries that both sides have. The type itself is compared: whatever calls itself so is not it."""
    for module, names in _LIBRARY.items():
        loaded = sys.modules.get(module)
        if loaded is None:
            continue
        for name in names:
            if getattr(loaded, name, None) is kind:
                parts = _PARTS[name](value)
                return {"o": [module, name, pack(parts, handle, depth + 1)]}
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind.__module__ == "numpy":
        if isinstance(value, numpy.generic) and value.dtype.kind in "biufc":
            return pack(complex(value) if value.dtype.kind == "c" else value.item(), handle, depth + 1)
        if kind is getattr(numpy, "ndarray", None) and value.dtype.kind in "biufc":
            data = numpy.ascontiguousarray(value)
            return {"n": [data.dtype.str, list(value.shape), data.tobytes().hex()]}
    return None


#: Type by module, and the arguments that it is made from.
_LIBRARY = {
    "collections": ("Counter", "OrderedDict", "defaultdict", "deque"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "datetime": ("datetime", "date", "time", "timedelta"),
    "builtins": ("range",),
}
_PARTS: dict[str, Callable[[Any], Any]] = {
    "Counter": lambda v: [dict(v)],
    "OrderedDict": lambda v: [list(v.items())],
    "defaultdict": lambda v: [None, dict(v)],
    "deque": lambda v: [list(v), v.maxlen],
    "Decimal": lambda v: [str(v)],
    "Fraction": lambda v: [v.numerator, v.denominator],
    "datetime": lambda v: [v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond],
    "date": lambda v: [v.year, v.month, v.day],
    "time": lambda v: [v.hour, v.minute, v.second, v.microsecond],
    "timedelta": lambda v: [v.days, v.seconds, v.microseconds],
    "range": lambda v: [v.start, v.stop, v.step],
}


def unpack(data: Any, handle: Callable[[Any], Any]) -> Any:
    """The value behind JSON.

    :param handle: finds, or makes a stand-in for, what is on either side.
    :raises Broken: it makes no sense.
    """
    try:
        return _unpack(data, handle)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, ImportError) as error:
        raise Broken(f"the code sent what makes no sense: {type(error).__name__}") from None


def _unpack(data: Any, handle: Callable[[Any], Any]) -> Any:
    if isinstance(data, list):
        return [_unpack(item, handle) for item in data]
    if not isinstance(data, dict):
        return data
    if "h" in data or "r" in data or "g" in data:
        return handle(data)
    ((tag, inner),) = data.items()
    if tag == "d":
        return {_unpack(key, handle): _unpack(value, handle) for key, value in inner}
    if tag in _MAKERS:
        return _MAKERS[tag]([_unpack(item, handle) for item in inner])
    if tag == "i":
        return int(inner, 16)
    if tag in "fc":
        return float(inner) if tag == "f" else complex(float(inner[0]), float(inner[1]))
    if tag in "ba":
        found = bytes.fromhex(inner)
        return found if tag == "b" else bytearray(found)
    if tag == "o":
        module, name, parts = inner
        if name not in _LIBRARY.get(module, ()):
            raise ValueError(name)
        return getattr(__import__(module), name)(*_unpack(parts, handle))
    if tag == "n":
        numpy: Any = __import__("numpy")
        dtype, shape, hexed = inner
        return numpy.frombuffer(bytes.fromhex(hexed), dtype=_numeric(dtype)).reshape(shape).copy()
    raise ValueError(tag)


def _numeric(dtype: str) -> str:
    if not dtype[1:2] or dtype[1] not in "biufc" or not dtype[2:].isdigit():
        raise ValueError(dtype)
    return dtype


_MAKERS: dict[str, Callable[[list[Any]], Any]] = {"t": tuple, "s": set, "z": frozenset}


def plain_base(value: Any) -> Any:
    """Of an instance of a subclass of a plain type its plain content, taken without asking the subclass."""
    for base, content in _CONTENT:
        if isinstance(value, base):
            return content(value)
    return NotImplemented


_CONTENT: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, lambda v: "".join(str.__iter__(v))),
    (bool, lambda v: v),
    (int, lambda v: int.__add__(v, 0)),
    (float, lambda v: float.__add__(v, 0.0)),
    (bytes, lambda v: bytes(bytes.__iter__(v))),
    (dict, lambda v: dict(dict.items(v))),
    (list, lambda v: list(list.__iter__(v))),
    (tuple, lambda v: tuple(tuple.__iter__(v))),
    (set, lambda v: set(set.__iter__(v))),
    (frozenset, lambda v: frozenset(frozenset.__iter__(v))),
)

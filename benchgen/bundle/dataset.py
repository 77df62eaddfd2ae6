"""Rows of a dataset file, one after another, each with the place it came from. Memory stays flat."""

from __future__ import annotations

import codecs
import csv
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from benchgen.bundle.problems import ProblemLog, found, listed
from benchgen.bundle.streams import MAX_ROW_BYTES, DatasetFaultError, open_dataset, text_lines
from benchgen.bundle.tree import CHUNK_BYTES, BundleTree

MAX_ROWS = 5_000_000
_PARQUET_BATCH_ROWS = 512
_WHITE = " \t\r\n"
_BLANK = re.compile(r"[ \t\r\n]*")


class Row(NamedTuple):
    """One row: its line in the file (its number from 1 in Parquet), and its values by field."""

    line: int
    data: dict[str, Any]


Report = Callable[[str, int | None], None]


class _DuplicateKeyError(ValueError):
    """A JSON object names a key twice."""


def supported(path: str) -> bool:
    """Whether the name of a file tells a format that ``read_rows`` knows."""
    return _format(path) in _READERS


def formats() -> str:
    """The formats, as a problem names them."""
    return f"{', '.join(_READERS)}, plain or with .gz or .zst"


def read_rows(tree: BundleTree, path: str, log: ProblemLog) -> Iterator[Row]:
    """The rows of a file of the tree. A bad row is skipped and put in the log; damage ends the reading.

    The format follows from the name, which ``supported`` must have approved.
    """

    def report(message: str, line: int | None) -> None:
        log.add(path, message, line=line)

    try:
        with open_dataset(tree, path) as stream:
            for count, row in enumerate(_READERS[_format(path)](stream, report)):
                if count == MAX_ROWS:
                    report(f"expected at most {MAX_ROWS:,} rows, found more", row.line)
                    return
                yield row
    except DatasetFaultError as fault:
        report(fault.message, fault.line)


def _format(path: str) -> str:
    name = path.removesuffix(".gz").removesuffix(".zst")
    dot = name.rfind(".")
    return name[dot:] if dot > name.rfind("/") else ""


# ---------------------------------------------------------------------------------------------- JSON


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise _DuplicateKeyError(f"expected each key once, found {listed(twice)} more than once")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"expected numbers that JSON knows, found {name}")


# The standard decoder keeps big integers exact and hears of every key; orjson does neither.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)


def _has_lone_surrogate(source: str, value: Any) -> bool:
    """Whether a decoded value cannot be written as UTF-8. Only escapes can bring that about."""
    if "\\ud" not in source and "\\uD" not in source:
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _object_fault(value: Any, source: str) -> str | None:
    if not isinstance(value, dict):
        return f"expected an object, found {found(value)}"
    if _has_lone_surrogate(source, value):
        return "expected valid Unicode, found half of a surrogate pair"
    return None


def _json_lines(stream: IO[bytes], report: Report) -> Iterator[Row]:
    for number, text in enumerate(text_lines(stream), start=1):
        stripped = text.strip(_WHITE)
        if not stripped:
            continue
        try:
            value = _DECODER.decode(stripped)
        except json.JSONDecodeError as error:
            place = f"{error.msg} at column {error.pos + 1}"
            report(f"expected a JSON object on one line, found: {place}", number)
            continue
        except RecursionError:
            report("expected less nesting, found hundreds of levels", number)
            continue
        except ValueError as error:
            report(str(error), number)
            continue
        fault = _object_fault(value, stripped)
        if fault is None:
            yield Row(number, value)
        else:
            report(fault, number)


class _TextWindow:
    """A sliding window on a stream of UTF-8, for decoding JSON values one by one from ``start``."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text = ""
        self.start = 0
        self.line = 1
        self.ended = False

    def grow(self) -> None:
        """Reads as much again as there is, so that a long value is not scanned over and over."""
        rest = self.text[self.start :]
        chunk = self._stream.read(max(CHUNK_BYTES, len(rest)))
        self.ended = not chunk
        try:
            self.text = rest + self._decoder.decode(chunk, final=self.ended)
        except UnicodeDecodeError as error:
            raise DatasetFaultError(f"expected UTF-8, found {error.reason}", self.line) from None
        self.start = 0

    def too_long(self) -> bool:
        """Whether growing on has no sense: the stream has ended, or one value is larger than allowed."""
        return self.ended or len(self.text) - self.start > MAX_ROW_BYTES

    def move_to(self, position: int) -> None:
        """Moves the start of the window on."""
        self.line += self.text.count("\n", self.start, position)
        self.start = position

    def next_sign(self) -> str:
        """The next character that is no white space, left in place; empty at the end."""
        while True:
            blank = _BLANK.match(self.text, self.start)
            self.move_to(blank.end() if blank else self.start)
            if self.start < len(self.text) or self.ended:
                return self.text[self.start : self.start + 1]
            self.grow()


def _json_array(stream: IO[bytes], report: Report) -> Iterator[Row]:
    window = _TextWindow(stream)
    sign = window.next_sign()
    if sign != "[":
        hint = "; one object a line is .jsonl" if sign == "{" else ""
        shown = f'"{sign}"' if sign else "an empty file"
        raise DatasetFaultError(f"expected an array of objects, found {shown}{hint}", window.line)
    window.move_to(window.start + 1)
    if window.next_sign() == "]":
        window.move_to(window.start + 1)
    else:
        yield from _elements(window, report)
    if rest := window.next_sign():
        raise DatasetFaultError(f'expected the end of the file after the array, found "{rest}"', window.line)


def _elements(window: _TextWindow, report: Report) -> Iterator[Row]:
    """The elements of an array, up to and with its closing bracket."""
    while True:
        window.next_sign()
        value, end, fault = _next_value(window)
        fault = fault or _object_fault(value, window.text[window.start : end])
        if fault is None:
            yield Row(window.line, value)
        else:
            report(fault, window.line)
        window.move_to(end)
        sign = window.next_sign()
        if sign not in (",", "]"):
            shown = f'"{sign}"' if sign else "the end of the file"
            raise DatasetFaultError(f'expected "," or "]" after an element, found {shown}', window.line)
        window.move_to(window.start + 1)
        if sign == "]":
            return


def _next_value(window: _TextWindow) -> tuple[Any, int, str | None]:
    """The value at the start of the window, where it ends, and why it cannot be used."""
    while True:
        try:
            value, end = _DECODER.raw_decode(window.text, window.start)
        except json.JSONDecodeError as error:
            if window.too_long():
                line = window.line + window.text.count("\n", window.start, error.pos)
                raise DatasetFaultError(f"expected valid JSON, found: {error.msg}", line) from None
        except RecursionError:
            raise DatasetFaultError("expected less nesting, found hundreds of levels", window.line) from None
        except ValueError as error:
            # The value is unusable but well formed: a lenient decoder finds its end, so that reading goes on.
            try:
                return None, json.JSONDecoder().raw_decode(window.text, window.start)[1], str(error)
            except ValueError:
                if window.too_long():
                    raise DatasetFaultError(str(error), window.line) from None
        else:
            # A bare value that touches the end of the window, such as a number, may go on behind it.
            if end < len(window.text) or window.ended:
                return value, end, None
        window.grow()


# ----------------------------------------------------------------------------------------- CSV and TSV


def _separated(delimiter: str) -> Callable[[IO[bytes], Report], Iterator[Row]]:
    def read(stream: IO[bytes], report: Report) -> Iterator[Row]:
        # The limit belongs to the csv module as a whole; its default of 128 KiB is less than a long passage.
        csv.field_size_limit(MAX_ROW_BYTES)
        reader = csv.reader(text_lines(stream), delimiter=delimiter, strict=True)
        line = 1
        try:
            header = next(reader, [])
            _check_header(header)
            line = reader.line_num + 1
            for cells in reader:
                if len(cells) == len(header):
                    yield Row(line, dict(zip(header, cells, strict=True)))
                elif cells:
                    report(f"expected {len(header)} columns, found {len(cells)}", line)
                line = reader.line_num + 1
        except csv.Error as error:
            raise DatasetFaultError(f"expected well-formed columns, found: {error}", line) from None

    return read


def _check_header(header: list[str]) -> None:
    if not header:
        raise DatasetFaultError("expected a line of column names, found none", 1)
    if any(not name.strip() for name in header):
        raise DatasetFaultError("expected a name for each column, found an empty one", 1)
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DatasetFaultError(f"expected each column once, found {listed(twice)} more than once", 1)


# -------------------------------------------------------------------------------------------- Parquet


def _parquet(stream: IO[bytes], report: Report) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DatasetFaultError(
            "expected pyarrow to be installed for .parquet files; pip install 'benchgen[data]'"
        ) from None
    with tempfile.TemporaryFile() as seekable:
        while chunk := stream.read(CHUNK_BYTES):
            seekable.write(chunk)
        seekable.seek(0)
        try:
            with pyarrow.parquet.ParquetFile(seekable) as opened:
                names = opened.schema_arrow.names
                if len(set(names)) != len(names):
                    raise DatasetFaultError("expected each column once, found one more than once")
                yield from _parquet_rows(opened, report)
        except (pyarrow.ArrowException, OSError) as error:
            raise DatasetFaultError(f"expected a Parquet file, found: {error}") from None


def _parquet_rows(opened: Any, report: Report) -> Iterator[Row]:
    number = 0
    for batch in opened.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
        for data in batch.to_pylist():
            number += 1
            bad = [
                name for name, value in data.items() if isinstance(value, float) and not math.isfinite(value)
            ]
            if bad:
                report(f"expected finite numbers, found {data[bad[0]]} in {listed(bad)}", number)
            else:
                yield Row(number, data)


_READERS: dict[str, Callable[[IO[bytes], Report], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json_array,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}

"""Dataset files: every format gives the same rows, and what is wrong has a line."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from benchgen.bundle import load_folder, streams
from benchgen.bundle.dataset import read_rows, supported
from benchgen.bundle.problems import BundleInvalid, ProblemLog
from benchgen.bundle.tree import BundleFile, BundleTree

from .support import write

ROWS = [{"q": f"Wie groß ist {n}?", "a": f'{n}, "{n}"\nzwei'} for n in range(1_500)]


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"\r\n".join(orjson.dumps(row) for row in rows)


def as_json(rows: list[dict[str, Any]]) -> bytes:
    return orjson.dumps(rows, option=orjson.OPT_INDENT_2)


def as_csv(rows: list[dict[str, Any]], separator: str = ",") -> bytes:
    quoted = [['"' + str(value).replace('"', '""') + '"' for value in row.values()] for row in rows]
    return "\n".join(separator.join(cells) for cells in [list(rows[0]), *quoted]).encode()


def as_tsv(rows: list[dict[str, Any]]) -> bytes:
    return as_csv(rows, "\t")


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=100)
    return buffer.getvalue()


FORMATS = {".jsonl": as_jsonl, ".json": as_json, ".csv": as_csv, ".tsv": as_tsv, ".parquet": as_parquet}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: zstandard.compress(data[:999]) + zstandard.compress(data[999:]),
}


def read(folder: Path, name: str, data: bytes) -> tuple[list[tuple[int, dict[str, Any]]], list[str]]:
    """The rows of a file with their lines, and its problems."""
    tree = load_folder(write(folder, {name: data}))
    log = ProblemLog()
    rows = [(row.line, row.data) for row in read_rows(tree, name, log)]
    try:
        log.raise_if_any()
    except BundleInvalid as error:
        return rows, [str(problem) for problem in error.problems]
    return rows, []


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str, packed: str) -> None:
    data = PACKERS[packed](FORMATS[suffix](ROWS))
    rows, problems = read(tmp_path, f"data{suffix}{packed}", data)
    assert problems == []
    assert [row for _, row in rows] == ROWS


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_is_taken_off(tmp_path: Path, suffix: str) -> None:
    rows, problems = read(tmp_path, f"data{suffix}", b"\xef\xbb\xbf" + FORMATS[suffix](ROWS[:1]))
    assert (problems, rows[0][1]) == ([], ROWS[0])


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    assert [line for line, _ in read(tmp_path, "a.jsonl", b'{"a":1}\n\n{"a":2}\n')[0]] == [1, 3]
    assert [line for line, _ in read(tmp_path, "a.json", b'[\n{"a":\n1},\n\n{"a":2}]')[0]] == [2, 5]
    assert [line for line, _ in read(tmp_path, "a.csv", b'a,b\n"x\ny",1\nz,2\n')[0]] == [2, 4]


@pytest.mark.parametrize(
    ("name", "data", "kept", "expected"),
    [
        (
            "a.jsonl",
            b'{"a":1}\n{"a":\n{"a":3}\n',
            2,
            ["a.jsonl:2: expected a JSON object on one line, found: Expecting"],
        ),
        ("a.jsonl", b'{"a":1} x\n', 0, ["a.jsonl:1: expected a JSON object on one line, found: Extra data"]),
        (
            "a.jsonl",
            b'[1]\n"x"\nnull\n',
            0,
            ["found a list", "a.jsonl:2: expected an object, found the text", "null"],
        ),
        (
            "a.jsonl",
            b'{"a":1,"a":2}\n{"b":1}\n',
            1,
            ["a.jsonl:1: expected each key once, found a more than once"],
        ),
        ("a.jsonl", b'{"a":{"b":1,"b":2}}\n', 0, ["found b more than once"]),
        (
            "a.jsonl",
            b'{"a":NaN}\n{"a":-Infinity}\n',
            0,
            ["a.jsonl:1: expected numbers that JSON knows, found NaN", ":2:"],
        ),
        (
            "a.jsonl",
            b'{"a":1}\n{"a":"\xff"}\n',
            1,
            ["a.jsonl:2: expected UTF-8, found the byte 0xff at column 7"],
        ),
        ("a.jsonl", b'{"a":"\\ud800"}\n{"a":"\\ud83d\\ude00"}\n', 1, ["a.jsonl:1: expected valid Unicode"]),
        ("a.jsonl", b'{"a":' + b"[" * 9_000 + b"]" * 9_000 + b"}\n", 0, ["a.jsonl:1: expected less nesting"]),
        (
            "a.json",
            b'{"a":1}\n{"a":2}',
            0,
            ['a.json:1: expected an array of objects, found "{"; one object a line is'],
        ),
        ("a.json", b"", 0, ["expected an array of objects, found an empty file"]),
        ("a.json", b'[{"a":1},\n5,\n{"a":2}]', 2, ["a.json:2: expected an object, found the number 5"]),
        ("a.json", b'[{"a":1},\n{"a":1,"a":2},{"a":3}]', 2, ["a.json:2: expected each key once"]),
        ("a.json", b'[{"a":1},\n{"a":NaN},{"a":3}]', 2, ["a.json:2: expected numbers that JSON knows"]),
        (
            "a.json",
            b'[{"a":1},\n{"a" 1}]',
            1,
            ["a.json:2: expected valid JSON, found: Expecting ':' delimiter"],
        ),
        ("a.json", b'[{"a":1}\n{"a":1}]', 1, ['a.json:2: expected "," or "]" after an element, found "{"']),
        ("a.json", b'[{"a":1},\n', 1, ["a.json:2: expected valid JSON"]),
        ("a.json", b'[{"a":1}] x', 1, ['expected the end of the file after the array, found "x"']),
        ("a.csv", b"a,b\n1,2\n3\n4,5,6\n\n7,8\n", 2, ["a.csv:3: expected 2 columns, found 1", "a.csv:4:"]),
        ("a.csv", b"a,a\n1,2\n", 0, ["a.csv:1: expected each column once, found a more than once"]),
        ("a.csv", b"a,\n1,2\n", 0, ["a.csv:1: expected a name for each column, found an empty one"]),
        ("a.csv", b"", 0, ["a.csv:1: expected a line of column names"]),
        (
            "a.csv",
            b'a,b\n1,2\n"x,3\n',
            1,
            ["a.csv:3: expected well-formed columns, found: unexpected end of data"],
        ),
        ("a.csv", b"a\n\xe9\n", 0, ["a.csv:2: expected UTF-8, found the byte 0xe9 at column 1"]),
        ("a.parquet", b"nothing", 0, ["a.parquet: expected a Parquet file"]),
        ("a.jsonl.gz", b"nothing", 0, ["a.jsonl.gz: expected intact compressed data"]),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"a":1}\n' * 9)[:-9],
            0,
            ["a.jsonl.gz: expected intact compressed data"],
        ),
        ("a.jsonl.zst", b"nothing", 0, ["a.jsonl.zst: expected intact compressed data"]),
    ],
)
def test_bad_rows_are_told_with_their_line(
    tmp_path: Path, name: str, data: bytes, kept: int, expected: list[str]
) -> None:
    rows, problems = read(tmp_path, name, data)
    assert len(rows) == kept
    assert len(problems) == len(expected)
    for problem, words in zip(problems, expected, strict=True):
        assert words in problem


def test_parquet_numbers_must_be_finite(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, "a.parquet", as_parquet([{"a": 1.0}, {"a": float("nan")}]))
    assert len(rows) == 1
    assert problems == ["a.parquet:2: expected finite numbers, found nan in a"]


def test_decompression_and_lines_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_DATASET_BYTES", 1_000)
    _, problems = read(tmp_path, "a.jsonl.gz", gzip.compress(b'{"a":1}\n' * 1_000))
    assert "expected at most 1,000 bytes of data" in problems[0]
    monkeypatch.setattr(streams, "MAX_ROW_BYTES", 50)
    _, problems = read(tmp_path, "b.jsonl", b'{"a":1}\n{"a":"' + b"x" * 90)
    assert problems == ["b.jsonl:2: expected a line of at most 50 bytes, found more"]


def test_formats_are_told_by_name() -> None:
    assert supported("data/a.b.jsonl.gz")
    assert not supported("data/a.txt")
    assert not supported("data.csv/readme")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), max_size=4), st.integers(1, 40))
def test_an_array_is_read_whole_whatever_the_chunks(rows: list[dict[str, Any]], chunk: int) -> None:
    data = json.dumps(rows, indent=1).encode()

    class Dribble(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(chunk, size) if size and size > 0 else chunk)

    tree = BundleTree((BundleFile("a.json", len(data), ""),), lambda _: Dribble(data))
    log = ProblemLog()
    assert [row.data for row in read_rows(tree, "a.json", log)] == rows
    assert len(log) == 0

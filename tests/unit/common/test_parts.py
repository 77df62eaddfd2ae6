"""The index of materialised data, and files that are whole or not there."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchgen.errors import InvalidInput, NotFound
from services.common.parts import Index, Part, read_index, write_atomically


def index_of(*counts: int, **fields: Any) -> bytes:
    parts, first = [], 0
    for number, count in enumerate(counts):
        parts.append({"bytes": 10, "count": count, "first": first, "sha256": f"{number:064x}"})
        first += count
    return orjson.dumps({"cases": first, "kind": "inputs", "parts": parts, "schema": 1} | fields)


def test_an_index() -> None:
    index = read_index(index_of(3, 1, 2))
    assert index == Index(6, (Part(0, 3, f"{0:064x}"), Part(3, 1, f"{1:064x}"), Part(4, 2, f"{2:064x}")))
    assert [index.part_of(position).first for position in range(6)] == [0, 0, 0, 3, 4, 4]


@pytest.mark.parametrize("position", [-1, 6, 2**40])
def test_a_case_that_is_not_there(position: int) -> None:
    with pytest.raises(NotFound, match=f"no case at position {position}: the data has 6"):
        read_index(index_of(3, 1, 2)).part_of(position)


def test_nothing_at_all() -> None:
    with pytest.raises(NotFound):
        read_index(index_of()).part_of(0)


@pytest.mark.parametrize("schema", [2, 0, None, "1"])
def test_a_schema_of_another_day(schema: object) -> None:
    with pytest.raises(InvalidInput, match=r"index schema .*: expected 1"):
        read_index(index_of(1, schema=schema))


def test_a_file_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    contents = [bytes([number]) * 1_000_000 for number in range(4)]
    ended = threading.Event()

    def write() -> None:
        for number in range(40):
            write_atomically(path, contents[number % 4])
        ended.set()

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = 0
    while not ended.is_set():
        if path.exists():
            assert path.read_bytes() in contents
            seen += 1
    for writer in writers:
        writer.join()
    assert seen > 0
    assert [found.name for found in path.parent.iterdir()] == ["b.json"]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "taken"
    folder.mkdir()
    with pytest.raises(OSError, match="taken"):
        write_atomically(folder, b"x")
    assert [found.name for found in tmp_path.iterdir()] == ["taken"]

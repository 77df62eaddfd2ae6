"""Named statements in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.queries import load_queries


def write(folder: Path, text: str) -> Path:
    path = folder / "queries.sql"
    path.write_text(text, encoding="utf-8")
    return path


def test_statements_by_name(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "-- What this file is about.\n\n"
        "-- name: first\n-- Why.\nSELECT 1;\n\n"
        "-- name: second_one\nSELECT ';'\nFROM t -- name: not one\nWHERE a = $1;\n",
    )
    assert load_queries(path) == {
        "first": "-- Why.\nSELECT 1",
        "second_one": "SELECT ';'\nFROM t -- name: not one\nWHERE a = $1",
    }


def test_a_name_that_is_used_twice(tmp_path: Path) -> None:
    path = write(tmp_path, "-- name: a\nSELECT 1;\n-- name: a\nSELECT 2;\n")
    with pytest.raises(ValueError, match="a is defined twice"):
        load_queries(path)


def test_a_file_without_any(tmp_path: Path) -> None:
    assert load_queries(write(tmp_path, "SELECT 1;\n")) == {}


def test_the_files_of_this_project() -> None:
    files = sorted((Path(__file__).parents[3] / "services").rglob("*.sql"))
    queries = [path for path in files if path.name == "queries.sql"]
    assert len(queries) >= 3
    for path in queries:
        named = path.read_text(encoding="utf-8").count("\n-- name:") + path.read_text(
            encoding="utf-8"
        ).startswith("-- name:")
        # A line that is nearly right would hide its statement in the one before.
        assert len(load_queries(path)) == named, path

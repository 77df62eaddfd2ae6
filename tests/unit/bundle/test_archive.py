"""Folders and zips: what is taken, and what hostile ones are refused for."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from benchgen.bundle import BundleInvalid, load_folder, open_zip, pack, reader, tree
from benchgen.bundle.problems import ProblemLog

from .support import example, write

Entries = list[tuple[str | zipfile.ZipInfo, bytes]]


def make_zip(path: Path, entries: Entries, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(BundleInvalid) as caught:
        open_zip(path)
    return "\n".join(str(problem) for problem in caught.value.problems)


def special(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../evil", "an empty, . or .. component"),
        ("a/../../evil", "an empty, . or .. component"),
        ("/etc/passwd", "found an absolute one"),
        ("C:/evil", "found a drive letter"),
        ("a\\b", "found a backslash"),
        ("a//b", "an empty, . or .. component"),
        ("./a", "an empty, . or .. component"),
        ("a\nb", "found a control character"),
        ("x" * 600, "a path of at most 512 bytes"),
    ],
)
def test_names_that_escape(tmp_path: Path, name: str, expected: str) -> None:
    assert expected in refusal(make_zip(tmp_path / "b.zip", [("ok", b""), (name, b"x")]))


def test_a_name_with_a_nul(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "b.zip", [("ok", b""), ("aXb", b"x")])
    path.write_bytes(path.read_bytes().replace(b"aXb", b"a\0b"))
    assert "found a control character" in refusal(path)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(stat.S_IFLNK | 0o777, "found a symbolic link"), (stat.S_IFIFO | 0o644, "found a special file")],
)
def test_links_and_special_files(tmp_path: Path, mode: int, expected: str) -> None:
    assert expected in refusal(make_zip(tmp_path / "b.zip", [(special("link", mode), b"/etc/passwd")]))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a", "a", "expected each file once, found it twice"),
        ("a/B", "A/b", "the same file on some systems"),
        ("caf\u00e9", "cafe\u0301", "found it twice"),
        ("a", "a/b", "the same file on some systems"),
        ("a/b", "a", "the same file on some systems"),
    ],
)
def test_names_that_collide(tmp_path: Path, first: str, second: str, expected: str) -> None:
    assert expected in refusal(make_zip(tmp_path / "b.zip", [("top", b""), (first, b"1"), (second, b"2")]))


def test_a_bomb_is_measured_while_it_inflates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "RATIO_FLOOR_BYTES", 1 << 20)
    path = make_zip(tmp_path / "b.zip", [("a", b"\0" * (8 << 20))])
    assert "expected a compression ratio of at most 200 : 1" in refusal(path)


@pytest.mark.parametrize("declared", [10, 1 << 24])
def test_a_header_that_lies_about_the_size(tmp_path: Path, declared: int) -> None:
    path = make_zip(tmp_path / "b.zip", [("a", os.urandom(5_000))])
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 5_000), struct.pack("<I", declared)))
    assert f"expected the declared {declared:,} bytes, found 5,000" in refusal(path)


def test_limits_on_files_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "b.zip", [("a", b"x" * 60), ("b", b"x" * 60)])
    monkeypatch.setattr(reader, "MAX_TREE_BYTES", 100)
    assert "expected at most 100 bytes in all files" in refusal(path)
    monkeypatch.setattr(reader, "MAX_FILE_BYTES", 50)
    assert "expected a file of at most 50 bytes" in refusal(path)
    monkeypatch.setattr(reader, "MAX_FILES", 1)
    assert "expected at most 1 entries, found 2" in refusal(path)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda data: data[:100], "expected a zip archive"),
        (lambda data: b"no zip at all", "expected a zip archive"),
        (lambda data: data.replace(b"\x14\0\0\0", b"\x14\0\1\0"), "found an encrypted one"),
        (lambda data: data[:40] + b"\xff" * 20 + data[60:], "expected intact data"),
    ],
)
def test_damage_is_told(tmp_path: Path, damage: Callable[[bytes], bytes], expected: str) -> None:
    path = make_zip(tmp_path / "b.zip", [("a", os.urandom(500))])
    path.write_bytes(damage(path.read_bytes()))
    assert expected in refusal(path)


def test_unknown_compression(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "b.zip", [("a", b"x" * 99)], zipfile.ZIP_BZIP2)
    assert "found compression method 12" in refusal(path)


@pytest.mark.parametrize("zip64", [False, True])
def test_a_flood_of_entries_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zip64: bool
) -> None:
    if zip64:
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 10)
    path = make_zip(tmp_path / "b.zip", [(f"{n:04}", b"") for n in range(500)])
    assert len(open_zip(path).files) == 500
    monkeypatch.setattr(reader, "MAX_DIRECTORY_BYTES", 20_000)
    assert "expected a table of contents of at most 20,000 bytes, found 25,000" in refusal(path)


def test_all_problems_of_a_zip_at_once(tmp_path: Path) -> None:
    said = refusal(make_zip(tmp_path / "b.zip", [("../a", b""), ("/b", b""), ("c", b"")]))
    assert "../a" in said
    assert "/b" in said


@pytest.mark.parametrize("utf8", [True, False])
def test_names_beyond_ascii(tmp_path: Path, utf8: bool) -> None:
    """macOS writes UTF-8 without saying so; anything that is not UTF-8 is refused."""
    path = make_zip(tmp_path / "b.zip", [("ok", b""), ("d\u00e9j\u00e0.txt", b"x")])
    # Takes the UTF-8 flag off.
    path.write_bytes(path.read_bytes().replace(b"\x14\0\0\x08", b"\x14\0\0\0"))
    if utf8:
        assert open_zip(path).paths == ["d\u00e9j\u00e0.txt", "ok"]
    else:
        path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xe9x"))
        assert "expected a name in UTF-8" in refusal(path)


def test_one_top_folder_is_taken_off_and_leftovers_are_ignored(tmp_path: Path) -> None:
    entries: Entries = [
        ("proj/", b""),
        ("proj/environment.yaml", b"x"),
        ("proj/data/a.jsonl", b"y"),
        ("proj/.DS_Store", b"z"),
        ("__MACOSX/proj/._a", b"z"),
        ("proj/__pycache__/m.pyc", b"z"),
    ]
    assert open_zip(make_zip(tmp_path / "b.zip", entries)).paths == ["data/a.jsonl", "environment.yaml"]


def test_a_folder_ignores_what_is_not_content(tmp_path: Path) -> None:
    files = ["environment.yaml", ".git/config", "a/__pycache__/x.pyc", ".DS_Store", "a/.keep", "Thumbs.db"]
    write(tmp_path, dict.fromkeys(files, "x"))
    assert load_folder(tmp_path).paths == ["a/.keep", "environment.yaml"]


def test_a_folder_refuses_links_and_special_files(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a\\b").write_text("")
    with pytest.raises(BundleInvalid) as caught:
        load_folder(tmp_path)
    said = {problem.file: problem.message for problem in caught.value.problems}
    assert "symbolic link" in said["link"]
    assert "symbolic link" in said["loop"]
    assert "special file" in said["pipe"]
    assert len(said) == 4


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match="expected a folder, found none"):
        load_folder(tmp_path / "none")


def test_packing_depends_on_content_only(tmp_path: Path) -> None:
    folder = example(tmp_path / "one")
    first = pack(folder, tmp_path / "1.zip")
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    second = pack(folder, tmp_path / "2.zip")
    assert first == second
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    opened = open_zip(tmp_path / "1.zip")
    assert opened.digest == first.digest == load_folder(folder).digest
    assert first.files == 3
    assert first.bytes == (tmp_path / "1.zip").stat().st_size
    assert opened.read("data/test.jsonl", 1 << 20) == (folder / "data/test.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.zip", "2.zip", "one"]


def test_what_is_packed_can_be_opened_however_well_it_compresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "RATIO_FLOOR_BYTES", 1 << 20)
    folder = write(tmp_path / "env", {"zeros": b"\0" * (8 << 20), "text": "text " * 1_000})
    packed = pack(folder, tmp_path / "b.zip")
    assert open_zip(tmp_path / "b.zip").digest == packed.digest
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        methods = {info.filename: info.compress_type for info in archive.infolist()}
    assert methods == {"zeros": zipfile.ZIP_STORED, "text": zipfile.ZIP_DEFLATED}


def test_a_tree_reads_small_files_only(tmp_path: Path) -> None:
    opened = load_folder(write(tmp_path, {"a": "12345"}))
    assert "a" in opened
    assert "b" not in opened
    with pytest.raises(BundleInvalid, match="expected at most 3 bytes, found 5"):
        opened.read("a", 3)
    with pytest.raises(KeyError):
        opened.open("../a")


def test_folding_knows_folders() -> None:
    log = ProblemLog()
    register = tree.PathRegister(log)
    assert register.admit("Data/a")
    assert register.admit("Data/b")
    assert not register.admit("data")

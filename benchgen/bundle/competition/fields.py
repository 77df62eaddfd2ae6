"""Reads the fields of a ``competition.yaml``: generous with spellings, exact about what is wrong.

Real bundles write numbers as texts, booleans as words, and leave keys empty. All of that is read; what cannot be
is told with its line.
"""

from __future__ import annotations

import datetime
import posixpath
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dateutil import parser as dates

from benchgen.bundle.competition.model import COMPETITION_FILE, Reference
from benchgen.bundle.problems import ProblemLog, did_you_mean, found, listed
from benchgen.bundle.tree import BundleTree, nfc, parents
from benchgen.bundle.yamldoc import Path, YamlDocument, dotted

_YES = frozenset({"true", "yes", "on", "1"})
_NO = frozenset({"false", "no", "off", "0", "none", "null"})
_NOTHING = frozenset({"", "null", "none", "~"})
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
_MOST_COMPARED = 2_000
_LONGEST_DATE = 100
# A date that leaves something out takes it from here; one that comes out differently is not whole.
_ANCHORS = (
    datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC),
    datetime.datetime(2001, 2, 2, tzinfo=datetime.UTC),
)


class Source:
    """What every field is read from: the bundle, its YAML, and where problems and warnings go."""

    def __init__(self, tree: BundleTree, document: YamlDocument, log: ProblemLog, notes: ProblemLog) -> None:
        self.tree = tree
        self.document = document
        self.log = log
        self.notes = notes
        self.folders = {folder for path in tree.paths for folder in parents(path)}

    def problem(self, message: str, place: Path) -> None:
        """Something that the bundle cannot be used with."""
        self.log.add(COMPETITION_FILE, message, line=self.document.line(place), field=dotted(place) or None)

    def note(self, message: str, place: Path) -> None:
        """Something that is read, and perhaps not as it was meant."""
        self.notes.add(COMPETITION_FILE, message, line=self.document.line(place), field=dotted(place) or None)


class Fields:
    """One mapping of the file. A key that is absent and one that is null are the same."""

    def __init__(self, source: Source, values: Mapping[str, Any], place: Path) -> None:
        self.source = source
        self.values = values
        self.place = place

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def at(self, key: str | int) -> Path:
        """The place of a field."""
        return (*self.place, key)

    def problem(self, message: str, key: str | None = None) -> None:
        """A problem of a field, or of the whole mapping."""
        self.source.problem(message, self.place if key is None else self.at(key))

    def note(self, message: str, key: str | None = None) -> None:
        """A warning about a field, or about the whole mapping."""
        self.source.note(message, self.place if key is None else self.at(key))

    def text(self, key: str, default: str = "", *, required: bool = False, limit: int = 100_000) -> str:
        """A text; numbers, booleans and dates are taken as they are written."""
        value = self.values.get(key)
        if isinstance(value, list | dict):
            self.problem(f"expected a text, found {found(value)}", key)
            return default
        text = default if value is None else str(value).strip()
        if "\0" in text:
            self.problem("expected text without NUL characters, found one", key)
        elif len(text) > limit:
            self.problem(f"expected at most {limit:,} characters, found {len(text):,}", key)
        elif required and not text:
            missing = "found none" if value is None else "found an empty one"
            self.problem(f"expected a `{key}`, {missing}", key if value is not None else None)
        return text[:limit]

    def whole(self, key: str, default: int | None = None, *, least: int = 0) -> int | None:
        """A whole number, as a number or as digits in quotes."""
        value = self.values.get(key)
        if value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING):
            return default
        number = _whole(value)
        if number is None or number < least or number > 2**31 - 1:
            self.problem(f"expected a whole number of at least {least}, found {found(value)}", key)
            return default
        return number

    def most(self, key: str, default: int) -> int | None:
        """A limit; 0, less than that, and a key without a value are no limit."""
        value = self.values.get(key, default)
        if isinstance(value, int | float) and value <= 0:
            return None
        return self.whole(key, None if value is None or value == "" else default, least=-1) or None

    def digits(self, key: str) -> int:
        """How many digits are shown: 2 where nothing sensible is said."""
        match = re.search(r"\d{1,2}", str(self.values.get(key, "")))
        return int(match[0]) if match else 2

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false, as YAML writes it or as a word."""
        value = self.values.get(key)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        word = str(value).strip().lower()
        if word in _YES:
            return True
        if word in _NO or not word:
            return False
        self.problem(f"expected true or false, found {found(value)}", key)
        return default

    def choice(self, key: str, options: Sequence[str], default: str) -> str:
        """One of several words, in any case of letters."""
        word = self.text(key).lower()
        if not word or word in _NOTHING:
            return default
        if word not in options:
            self.problem(f'expected {" or ".join(options)}, found "{word}"{did_you_mean(word, options)}', key)
            return default
        return word

    def wholes(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers; one number alone, and numbers with commas in a text, are lists too."""
        value = self.values.get(key)
        if value is None:
            return ()
        if isinstance(value, str):
            value = [part for part in re.split(r"[,\s]+", value) if part]
        numbers: list[int] = []
        for entry in value if isinstance(value, list) else [value]:
            number = _whole(entry)
            if number is None or number < 0:
                self.problem(f"expected whole numbers, found {found(entry)}", key)
            elif number not in numbers:
                numbers.append(number)
        return tuple(numbers)

    def date(self, key: str) -> datetime.datetime | None:
        """A date with or without a time; month first where that is open; UTC where no zone is named."""
        value = self.values.get(key)
        if value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING):
            return None
        if isinstance(value, datetime.datetime):
            moment = value
        elif isinstance(value, datetime.date):
            moment = datetime.datetime.combine(value, datetime.time())
        else:
            read = self._parsed(key, str(value)[:_LONGEST_DATE])
            if read is None:
                return None
            moment = read
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)

    def _parsed(self, key: str, text: str) -> datetime.datetime | None:
        try:
            with warnings.catch_warnings(record=True) as doubts:
                warnings.simplefilter("always")
                read = [dates.parse(text, default=anchor) for anchor in _ANCHORS]
        except (ValueError, OverflowError, RecursionError):
            self.problem(f"expected a date such as 2026-01-31, found {found(text)}", key)
            return None
        if read[0] != read[1]:
            self.problem(f"expected a date with day, month and year, found {found(text)}", key)
            return None
        if doubts:
            self.note(f"the time zone of {found(text)} is not known; it is read as UTC", key)
        return read[0]

    def mapping(self, key: str) -> Fields | None:
        """A mapping; None where there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.problem(f"expected a mapping, found {found(value)}", key)
            return None
        return Fields(self.source, value, self.at(key))

    def entries(self, key: str) -> Iterator[Fields]:
        """The mappings of a list, or the values of a mapping."""
        value = self.values.get(key)
        if value is None:
            return
        if isinstance(value, dict):
            items: list[tuple[str | int, Any]] = list(value.items())
        elif isinstance(value, list):
            items = list(enumerate(value))
        else:
            self.problem(f"expected a list, found {found(value)}", key)
            return
        for name, entry in items:
            place = (*self.at(key), name)
            if isinstance(entry, dict):
                yield Fields(self.source, entry, place)
            elif entry is not None:
                self.source.problem(f"expected a mapping, found {found(entry)}", place)

    def file(self, key: str, what: str) -> str:
        """The path of a plain file of the bundle; empty where none is named or the file is not there."""
        path = self._path(key)
        if path is None:
            return ""
        if path in self.source.tree:
            return path
        self.problem(f'expected {what} in the bundle, found no file "{path}"{self._near(path)}', key)
        return ""

    def reference(self, key: str, what: str, *, needed: bool = True) -> Reference | None:
        """A program or data: a zip, a folder or one file of the bundle.

        What is not ``needed`` and cannot be found is a warning.
        """
        path = self._path(key)
        if path is None:
            return None
        source = self.source
        if path in source.tree:
            return Reference("zip" if path.lower().endswith(".zip") else "file", path)
        if path in source.folders:
            return Reference("folder", path)
        # Repositories keep the folder beside the zip that is made of it, and often only one of the two.
        stem = path[:-4] if path.lower().endswith(".zip") else path
        for other, kind in ((stem, "folder"), (f"{stem}.zip", "zip")):
            if (other in source.folders) if kind == "folder" else (other in source.tree):
                self.note(f'the bundle has no "{path}"; its {kind} "{other}" is used', key)
                return Reference("folder" if kind == "folder" else "zip", other)
        tell = self.problem if needed else self.note
        if _UUID.fullmatch(path):
            message = (
                f"expected {what} in the bundle, found the key {path} of something stored on another server;"
                " put its zip in the bundle and name that"
            )
            tell(message, key)
        else:
            tell(f'expected {what} in the bundle, found no "{path}"{self._near(path)}', key)
        return None

    def _path(self, key: str) -> str | None:
        """The path that a field names, in plain form; None where it names none or one outside the bundle."""
        value = self.values.get(key)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            self.problem(f"expected a path inside the bundle, found {found(value)}", key)
            return None
        path = posixpath.normpath(value.strip().replace("\\", "/"))
        if path.startswith(("/", "../")) or path in (".", "..") or path[1:2] == ":" or "\0" in path:
            self.problem(f"expected a path inside the bundle, found {found(value)}", key)
            return None
        return nfc(path)

    def _near(self, path: str) -> str:
        known = [*self.source.tree.paths, *self.source.folders][:_MOST_COMPARED]
        return did_you_mean(path, known) or f"; the bundle has {listed(_tops(known), 8)}"


def _tops(paths: list[str]) -> set[str]:
    return {path.split("/", 1)[0] for path in paths}


def _whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and re.fullmatch(r"\s*\+?\d{1,10}(?:\.0*)?\s*", value):
        return int(float(value))
    return None

"""What is wrong with a bundle: every problem with its place, all of them at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchgen.errors import InvalidInput

MAX_PROBLEMS = 100
MAX_FOUND = 80


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a bundle: what was expected at which place, and what was found there.

    ``file`` is a path inside the bundle (empty for the bundle as a whole), ``line`` counts from 1, ``field``
    is a dotted path in ``environment.yaml`` or a column of the dataset.
    """

    file: str
    message: str
    line: int | None = None
    field: str | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.field, self.message) if part)


@dataclass(frozen=True, slots=True)
class OutOfMemory(Problem):
    """A template that needs more memory than its process may have; how much that is, the process knows."""


class BundleInvalid(InvalidInput):
    """The environment has problems."""

    reason = "BUNDLE_INVALID"

    def __init__(self, problems: Sequence[Problem], more: int = 0) -> None:
        """``more`` counts the problems beyond those that are listed."""
        self.problems = list(problems)
        self.more = more
        count = len(self.problems) + more
        lines = [f"{count} problem{'' if count == 1 else 's'} found:", *(f"  {p}" for p in self.problems)]
        if more:
            lines.append(f"  and {more} more")
        super().__init__("\n".join(lines))


class ProblemLog:
    """Collects problems up to a bound, and counts the rest.

    The same fault on many rows is one fault: of the problems added under one ``group``, the first three are
    kept in full, and the others are counted in one closing problem.
    """

    _KEPT_OF_A_GROUP = 3

    def __init__(self) -> None:
        self._problems: list[Problem] = []
        self._more = 0
        self._groups: dict[str, int] = {}
        self._last: dict[str, Problem] = {}

    def __len__(self) -> int:
        """How many problems there are, those beyond the bound included."""
        return len(self._problems) + self._more

    @property
    def problems(self) -> list[Problem]:
        """Those that are kept in full."""
        return list(self._problems)

    def add(
        self,
        file: str,
        message: str,
        *,
        line: int | None = None,
        field: str | None = None,
        group: str | None = None,
        kind: type[Problem] = Problem,
    ) -> None:
        """Adds one problem of a kind; the other arguments are those of ``Problem``."""
        if group is not None:
            seen = self._groups[group] = self._groups.get(group, 0) + 1
            if seen > self._KEPT_OF_A_GROUP:
                self._last[group] = Problem(file, message, line, field)
                return
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(kind(file, message, line, field))
        else:
            self._more += 1

    def raise_if_any(self) -> None:
        """Raises ``BundleInvalid`` with everything collected so far."""
        if not self._problems:
            return
        problems = list(self._problems)
        more = self._more
        for group, last in self._last.items():
            count = self._groups[group] - self._KEPT_OF_A_GROUP
            if len(problems) < MAX_PROBLEMS:
                rows = f"{count} more row{'' if count == 1 else 's'}, the last at line {last.line}"
                problems.append(Problem(last.file, f"the same on {rows}", field=last.field))
            else:
                more += count
        raise BundleInvalid(problems, more)


def found(value: object) -> str:
    """A value as a problem shows it: its kind as YAML and JSON call it, and a short form of it."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return f"the boolean {'true' if value else 'false'}"
    if isinstance(value, int | float):
        return f"the number {value!r}"
    if isinstance(value, str):
        return f"the text {shortened(value)!r}"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    return f"the {type(value).__name__} {shortened(str(value))}"


def shortened(text: str) -> str:
    """The text, cut so that it fits in a message."""
    return text if len(text) <= MAX_FOUND else text[: MAX_FOUND - 1] + "…"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant; None where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return near[0] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean "x"?`` where a known word is near, else nothing."""
    near = nearest(word, known)
    return "" if near is None else f'; did you mean "{near}"?'


def listed(words: Iterable[str], limit: int = 12) -> str:
    """The words, comma separated, as a message shows them."""
    all_words = sorted(words)
    tail = f" and {len(all_words) - limit} more" if len(all_words) > limit else ""
    return ", ".join(all_words[:limit]) + tail

"""A ``competition.yaml`` bundle as values: the same for every dialect of the format."""

from __future__ import annotations

import datetime
import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

COMPETITION_FILE = "competition.yaml"
DEFAULT_SECONDS = 600
"""What a program may run for where a phase does not say, in seconds: as in the original."""

Sorting = Literal["asc", "desc"]
Computation = Literal["avg", "sum", "min", "max"]
ReferenceKind = Literal["zip", "folder", "file"]


class Dialect(StrEnum):
    """Which of the formats that share the file name a bundle is written in."""

    V2 = "2"
    V15 = "1.5"
    V18 = "1.8"


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a bundle holds a program or data: a zip in it, a folder of it, or one plain file."""

    kind: ReferenceKind
    path: str


@dataclass(frozen=True, slots=True)
class Page:
    """A tab with documentation: what stands on it, and the file that it was read from."""

    title: str
    file: str
    format: Literal["markdown", "html"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked and how it is scored. Phases and solutions name a task by ``index``."""

    index: int
    name: str
    scoring_program: Reference
    description: str = ""
    reference_data: Reference | None = None
    ingestion_program: Reference | None = None
    input_data: Reference | None = None
    ingestion_only_during_scoring: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One stage. ``index`` counts from 0 without gaps; ``start`` and ``end`` carry a time zone.

    ``seconds`` limits each program of the prediction and of the scoring. None of the two limits on
    submissions is no limit.
    """

    index: int
    name: str
    tasks: tuple[int, ...]
    description: str = ""
    start: datetime.datetime | None = None
    end: datetime.datetime | None = None
    seconds: int = DEFAULT_SECONDS
    max_submissions_per_day: int | None = None
    max_submissions: int | None = None
    auto_migrate: bool = False
    hide_output: bool = False
    hide_prediction_output: bool = False
    hide_score_output: bool = False
    public_data: Reference | None = None
    starting_kit: Reference | None = None


@dataclass(frozen=True, slots=True)
class Solution:
    """A submission that the author gives with the bundle; it is run before the bundle is published."""

    index: int
    name: str
    description: str
    tasks: tuple[int, ...]
    path: Reference


@dataclass(frozen=True, slots=True)
class Column:
    """One number of the leaderboard, found in the scores under ``key`` or computed from other columns.

    ``computed_from`` holds the indexes of those. ``precision`` is how many digits are shown, never how the
    value is stored or ranked.
    """

    key: str
    title: str
    index: int
    sorting: Sorting = "desc"
    computation: Computation | None = None
    computed_from: tuple[int, ...] = ()
    precision: int = 2
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Columns in the order of their indexes, and the index of the one that ranks first."""

    key: str
    title: str
    columns: tuple[Column, ...]
    primary_index: int
    submission_rule: str = ""
    hidden: bool = False

    @property
    def primary(self) -> Column:
        """The column that ranks first."""
        return next(column for column in self.columns if column.index == self.primary_index)


@dataclass(frozen=True, slots=True)
class FactQuestion:
    """One question of the fact sheet that a participant fills in."""

    key: str
    title: str
    type: str
    selection: tuple[str, ...]
    is_required: bool
    is_on_leaderboard: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Competition:
    """Everything that a bundle says. The first leaderboard ranks; columns of the others are kept as scores."""

    dialect: Dialect
    title: str
    phases: tuple[Phase, ...]
    tasks: tuple[Task, ...]
    leaderboards: tuple[Leaderboard, ...]
    description: str = ""
    image: str = ""
    terms: Page | None = None
    pages: tuple[Page, ...] = ()
    solutions: tuple[Solution, ...] = ()
    fact_sheet: tuple[FactQuestion, ...] = ()
    docker_image: str = ""
    contact_email: str = ""
    reward: str = ""
    kind: str = "competition"
    detailed_results: bool = False
    make_programs_available: bool = False
    make_input_data_available: bool = False

    @property
    def board(self) -> Leaderboard:
        """The leaderboard that ranks."""
        return self.leaderboards[0]

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of all leaderboards, each key once, those of the ranking one first."""
        found: dict[str, Column] = {}
        for board in self.leaderboards:
            for column in board.columns:
                found.setdefault(column.key, column)
        return tuple(found.values())

    def task(self, index: int) -> Task:
        """The task that phases and solutions name by this index."""
        return next(task for task in self.tasks if task.index == index)

    @property
    def slug(self) -> str:
        """The title as the name of an environment: lower-case letters, digits and single dashes."""
        plain = unicodedata.normalize("NFKD", self.title).encode("ascii", "ignore").decode().lower()
        words = re.findall(r"[a-z0-9]+", plain)
        return "-".join(words)[:80].rstrip("-") or "competition"

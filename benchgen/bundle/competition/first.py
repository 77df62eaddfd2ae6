"""Versions 1.5 and 1.8 of ``competition.yaml``: programs and data stand in the phases themselves."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from benchgen.bundle.competition.boards import read_old_boards
from benchgen.bundle.competition.common import check_phases, page, titled
from benchgen.bundle.competition.fields import Fields
from benchgen.bundle.competition.model import (
    DEFAULT_SECONDS,
    Competition,
    Dialect,
    Page,
    Phase,
    Task,
)

_ONE_DAY = datetime.timedelta(days=1)


def read_first(top: Fields) -> Competition | None:
    """The competition; None where something is missing without which there is none. Problems are in the log."""
    title = top.text("title", required=True, limit=256)
    terms, pages = _pages(top)
    image = top.file("image", "an image") or top.file("logo", "an image")
    boards = read_old_boards(top)
    entries, parallel = _phase_entries(top)
    tasks = [_task(entry, index) for index, entry in enumerate(entries)]
    phases = _phases(top, entries)
    check_phases(entries, phases)
    made = tuple(task for task in tasks if task is not None)
    if not (title and boards and made and phases):
        return None
    return Competition(
        dialect=Dialect.V18 if parallel else Dialect.V15,
        title=title,
        description=top.text("description"),
        image=image,
        terms=terms,
        pages=pages,
        phases=phases,
        tasks=made,
        leaderboards=boards,
        docker_image=top.text("competition_docker_image", limit=256) or top.text("docker_image", limit=256),
        detailed_results=top.flag("enable_detailed_results"),
    )


def _pages(top: Fields) -> tuple[Page | None, tuple[Page, ...]]:
    html = top.mapping("html")
    if html is None:
        if "html" not in top:
            top.note("the bundle has no pages: there is no mapping `html`")
        return None, ()
    pages: list[Page] = []
    terms: Page | None = None
    for name in html.values:
        made = page(html, name, titled(name) if name.islower() else name)
        if name == "terms":
            terms = made
        elif made is not None:
            pages.append(made)
    return terms, tuple(pages)


def _phase_entries(top: Fields) -> tuple[list[Fields], bool]:
    """The phases in the order of their numbers, without the parent of parallel ones."""
    entries = list(top.entries("phases"))
    if not entries:
        top.problem("expected a mapping `phases` with at least one phase, found none", "phases")
    entries.sort(key=lambda entry: entry.whole("phasenumber", 0) or 0)
    parallel = any(entry.flag("is_parallel_parent") or "parent_phasenumber" in entry for entry in entries)
    if parallel:
        children = [entry for entry in entries if not entry.flag("is_parallel_parent")]
        # The original drops the first phase, whichever it is.
        entries = children if len(children) < len(entries) else entries[1:]
    return entries, parallel


def _task(entry: Fields, index: int) -> Task | None:
    scoring = entry.reference("scoring_program", "a scoring program")
    reference = entry.reference("reference_data", "reference data")
    ingestion = entry.reference("ingestion_program", "an ingestion program")
    inputs = entry.reference("input_data", "input data")
    if scoring is None:
        if "scoring_program" not in entry:
            entry.problem("expected a `scoring_program`, found none")
        return None
    return Task(
        index=index,
        name=_name(entry, index),
        description=entry.text("description"),
        scoring_program=scoring,
        reference_data=reference,
        ingestion_program=ingestion,
        input_data=inputs,
        ingestion_only_during_scoring=entry.flag("ingestion_program_only_during_scoring")
        or entry.flag("ingestion_only_during_scoring"),
    )


def _name(entry: Fields, index: int) -> str:
    return entry.text("label", limit=256) or entry.text("name", limit=256) or f"Phase {index + 1}"


def _phases(top: Fields, entries: Sequence[Fields]) -> tuple[Phase, ...]:
    starts = [entry.date("start_date") for entry in entries]
    last = top.date("end_date")
    phases = []
    for index, entry in enumerate(entries):
        following = starts[index + 1] if index + 1 < len(starts) else None
        end = last if index + 1 == len(starts) else following - _ONE_DAY if following else None
        phases.append(
            Phase(
                index=index,
                name=_name(entry, index),
                description=entry.text("description"),
                tasks=(index,),
                start=starts[index],
                end=end,
                seconds=entry.whole("execution_time_limit", DEFAULT_SECONDS) or DEFAULT_SECONDS,
                max_submissions_per_day=entry.most("max_submissions_per_day", 5),
                max_submissions=entry.most("max_submissions", 100),
                auto_migrate=entry.flag("auto_migration"),
                hide_output=entry.flag("hide_output"),
                hide_prediction_output=entry.flag("hide_prediction_output"),
                hide_score_output=entry.flag("hide_score_output"),
                public_data=entry.reference("public_data", "`public_data`", needed=False),
                starting_kit=entry.reference("starting_kit", "`starting_kit`", needed=False),
            )
        )
    return tuple(phases)

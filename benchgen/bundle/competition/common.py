"""What the dialects share: pages, the fact sheet, and what is odd about a row of phases."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from benchgen.bundle.competition.fields import Fields
from benchgen.bundle.competition.model import FactQuestion, Page, Phase

MAX_PAGE_BYTES = 4 << 20
MAX_IMAGE_BYTES = 8 << 20

_FACT_TYPES = ("checkbox", "text", "select")


def page(entry: Fields, key: str, title: str) -> Page | None:
    """A page in the file that a field names; None where there is none."""
    path = entry.file(key, "a page")
    if not path:
        return None
    size = entry.source.tree.size(path)
    if size > MAX_PAGE_BYTES:
        entry.problem(f"expected a page of at most {MAX_PAGE_BYTES:,} bytes, found {size:,}", key)
    elif size == 0:
        entry.note(f'the page "{path}" is empty', key)
    name = posixpath.basename(path)
    is_html = name.lower().endswith((".html", ".htm"))
    return Page(title or titled(name), path, "html" if is_html else "markdown")


def titled(name: str) -> str:
    """A file name or a key as the title of a page: ``starting_kit.md`` is ``Starting kit``."""
    words = posixpath.splitext(name)[0].replace("_", " ").replace("-", " ").strip() or name
    return words[:1].upper() + words[1:]


def fact_sheet(top: Fields) -> tuple[FactQuestion, ...]:
    """The questions of the fact sheet."""
    sheet = top.mapping("fact_sheet")
    questions: list[FactQuestion] = []
    for name in sheet.values if sheet is not None else ():
        entry = sheet.mapping(name) if sheet is not None else None
        if entry is None:
            continue
        choices = entry.values.get("selection")
        selection = tuple(str(choice) for choice in choices) if isinstance(choices, list) else ()
        questions.append(
            FactQuestion(
                key=entry.text("key", name, limit=200) or name,
                title=entry.text("title", name) or name,
                type=entry.choice("type", _FACT_TYPES, "text"),
                selection=selection,
                is_required=entry.flag("is_required"),
                is_on_leaderboard=entry.flag("is_on_leaderboard"),
            )
        )
    return tuple(questions)


def check_phases(entries: Sequence[Fields], phases: Sequence[Phase]) -> None:
    """Warns of dates that cannot be meant, and refuses a migration into the first phase.

    Dates never keep anybody from running a phase here, so odd ones stop nothing.
    """
    for entry, phase in zip(entries, phases, strict=True):
        if phase.start is not None and phase.end is not None and phase.end < phase.start:
            entry.note(f"the phase ends ({phase.end:%Y-%m-%d}) before it starts ({phase.start:%Y-%m-%d})")
        if phase.auto_migrate and phase.index == 0:
            entry.note("there is no phase before the first one to migrate from")
    for entry, before, phase in zip(entries[1:], phases, phases[1:], strict=False):
        if before.end is not None and phase.start is not None and phase.start < before.end:
            entry.note("the phase starts before the one before it has ended")

"""Version 2 of ``competition.yaml``: tasks and solutions apart from the phases that use them."""

from __future__ import annotations

from collections.abc import Sequence

from benchgen.bundle.competition.boards import read_boards
from benchgen.bundle.competition.common import check_phases, fact_sheet, page
from benchgen.bundle.competition.fields import Fields
from benchgen.bundle.competition.model import (
    DEFAULT_SECONDS,
    Competition,
    Dialect,
    Page,
    Phase,
    Solution,
    Task,
)
from benchgen.bundle.problems import found


def read_second(top: Fields) -> Competition | None:
    """The competition; None where something is missing without which there is none. Problems are in the log."""
    tasks = _tasks(top)
    known = [task.index for task in tasks]
    boards = read_boards(top)
    title = top.text("title", required=True, limit=256)
    phases = _phases(top, known)
    pages = tuple(made for entry in top.entries("pages") if (made := _page(entry)) is not None)
    terms = page(top, "terms", "Terms")
    image = top.file("image", "an image")
    solutions = _solutions(top, known)
    if not (tasks and boards and phases and title):
        return None
    return Competition(
        dialect=Dialect.V2,
        title=title,
        description=top.text("description"),
        image=image,
        terms=terms,
        pages=pages,
        phases=phases,
        tasks=tuple(tasks),
        solutions=solutions,
        leaderboards=boards,
        fact_sheet=fact_sheet(top),
        docker_image=top.text("docker_image", limit=256),
        contact_email=top.text("contact_email", limit=256),
        reward=top.text("reward", limit=256),
        kind=top.text("competition_type", "competition", limit=50) or "competition",
        detailed_results=top.flag("enable_detailed_results"),
        make_programs_available=top.flag("make_programs_available"),
        make_input_data_available=top.flag("make_input_data_available"),
    )


def _page(entry: Fields) -> Page | None:
    title = entry.text("title", limit=200)
    if "file" not in entry:
        entry.problem("expected a `file` with the text of this page, found none")
        return None
    return page(entry, "file", title)


def _tasks(top: Fields) -> list[Task]:
    tasks: list[Task] = []
    seen: set[int] = set()
    entries = list(top.entries("tasks"))
    if not entries:
        top.problem("expected a list `tasks` with at least one task, found none", "tasks")
    for entry in entries:
        index = entry.whole("index")
        if index is None:
            if "index" not in entry:
                entry.problem("expected an `index` by which phases name this task, found none")
            continue
        if index in seen:
            entry.problem(f"expected each task index once, found {index} again", "index")
            continue
        seen.add(index)
        task = _task(entry, index)
        if task is not None:
            tasks.append(task)
    return tasks


def _task(entry: Fields, index: int) -> Task | None:
    if "scoring_program" not in entry:
        if "key" in entry:
            message = (
                "expected the files of this task in the bundle, found the key of a task on another server;"
                " name its scoring_program and reference_data instead"
            )
            entry.problem(message, "key")
        else:
            entry.problem("expected a `scoring_program`, found none")
        return None
    scoring = entry.reference("scoring_program", "a scoring program")
    reference = entry.reference("reference_data", "reference data")
    ingestion = entry.reference("ingestion_program", "an ingestion program")
    inputs = entry.reference("input_data", "input data")
    if scoring is None:
        return None
    return Task(
        index=index,
        name=entry.text("name", f"Task {index}", limit=256) or f"Task {index}",
        description=entry.text("description"),
        scoring_program=scoring,
        reference_data=reference,
        ingestion_program=ingestion,
        input_data=inputs,
        ingestion_only_during_scoring=entry.flag("ingestion_only_during_scoring"),
    )


def _tasks_of(entry: Fields, declared: frozenset[int] | None) -> tuple[int, ...]:
    """The tasks that a phase or solution names; `task` with one of them is read as well."""
    key = "task" if "task" in entry and "tasks" not in entry else "tasks"
    wanted = entry.wholes(key)
    for index in wanted:
        if declared is not None and index not in declared:
            known = ", ".join(map(str, sorted(declared)))
            entry.problem(f"expected indexes of tasks ({known}), found {index}", key)
    return wanted


def _phases(top: Fields, tasks: Sequence[int]) -> tuple[Phase, ...]:
    entries = list(top.entries("phases"))
    if not entries:
        top.problem("expected a list `phases` with at least one phase, found none", "phases")
    declared = _declared(top, tasks)
    # Phases are numbered anew in the order of their indexes.
    ordered = sorted(entries, key=lambda entry: entry.whole("index", 0) or 0)
    phases = tuple(_phase(entry, position, declared) for position, entry in enumerate(ordered))
    check_phases(ordered, phases)
    return phases


def _declared(top: Fields, tasks: Sequence[int]) -> frozenset[int] | None:
    """The indexes that tasks have, those with problems included: one fault is told once.

    None where a task has none that can be read: nobody knows then what names it.
    """
    value = top.values.get("tasks")
    entries = [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
    written = [str(entry.get("index")) for entry in entries]
    if not written or not all(index.isascii() and index.isdecimal() for index in written):
        return None
    return frozenset({*tasks, *map(int, written)})


def _phase(entry: Fields, position: int, tasks: frozenset[int] | None) -> Phase:
    wanted = _tasks_of(entry, tasks)
    if not wanted:
        if "tasks" in entry or "task" in entry:
            entry.problem("expected at least one task, found none", "tasks")
        else:
            entry.problem("expected `tasks` with the indexes of the tasks of this phase, found none")
    return Phase(
        index=position,
        name=entry.text("name", f"Phase {position + 1}", limit=256) or f"Phase {position + 1}",
        description=entry.text("description"),
        tasks=wanted,
        start=entry.date("start"),
        end=entry.date("end"),
        seconds=entry.whole("execution_time_limit", DEFAULT_SECONDS) or DEFAULT_SECONDS,
        # 0 and nothing are both no limit.
        max_submissions_per_day=entry.most("max_submissions_per_day", 5),
        max_submissions=entry.most("max_submissions", 100),
        auto_migrate=entry.flag("auto_migrate_to_this_phase"),
        hide_output=entry.flag("hide_output"),
        hide_prediction_output=entry.flag("hide_prediction_output"),
        hide_score_output=entry.flag("hide_score_output"),
        public_data=entry.reference("public_data", "`public_data`", needed=False),
        starting_kit=entry.reference("starting_kit", "`starting_kit`", needed=False),
    )


def _solutions(top: Fields, tasks: Sequence[int]) -> tuple[Solution, ...]:
    declared = _declared(top, tasks)
    solutions: list[Solution] = []
    for position, entry in enumerate(top.entries("solutions")):
        index = entry.whole("index", position)
        wanted = _tasks_of(entry, declared)
        if not wanted:
            entry.note("the solution names no tasks: it is run for all of them")
            wanted = tuple(sorted(declared or ()))
        if "path" not in entry:
            if "key" in entry:
                entry.note("the solution is stored on another server, so it is not run", "key")
            else:
                entry.problem("expected a `path` to the files of this solution, found none")
            continue
        path = entry.reference("path", "a solution")
        if path is None:
            continue
        number = position if index is None else index
        if any(solution.index == number for solution in solutions):
            entry.problem(f"expected each solution index once, found {found(number)} again", "index")
        name = entry.text("name", f"Solution {number}", limit=256) or f"Solution {number}"
        solutions.append(Solution(number, name, entry.text("description"), wanted, path))
    return tuple(solutions)

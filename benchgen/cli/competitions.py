"""What the command line says about ``competition.yaml`` bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from benchgen.cli import text
from benchgen.cli.output import note, print_json

if TYPE_CHECKING:
    from benchgen.bundle import BundleTree
    from benchgen.bundle.competition import Competition, ReadCompetition


def tell(tree: BundleTree, read: ReadCompetition, *, as_json: bool) -> None:
    """Say that a bundle is valid, what is in it, and what was probably not meant."""
    competition = read.competition
    if as_json:
        print_json(
            {
                "valid": True,
                "name": competition.slug,
                "digest": tree.digest,
                "cases": sum(len(phase.tasks) for phase in competition.phases),
                "problems": [],
                "warnings": [str(warning) for warning in read.warnings],
                "competition": outline(competition),
            }
        )
        return
    for warning in read.warnings:
        note(f"warning: {warning}")
    counts = ", ".join(
        text.counted(len(things), noun)
        for things, noun in (
            (competition.phases, "phase"),
            (competition.tasks, "task"),
            (competition.solutions, "solution"),
            (competition.columns, "column"),
        )
    )
    click.echo(
        f"valid: {competition.title} (competition.yaml, version {competition.dialect}), {counts},"
        f" digest {tree.digest[:12]}"
    )


def outline(competition: Competition) -> dict[str, Any]:
    """The phases, tasks and columns of a competition, as JSON."""
    return {
        "version": competition.dialect.value,
        "title": competition.title,
        "phases": [
            {
                "name": phase.name,
                "tasks": [competition.task(index).name for index in phase.tasks],
                "start": phase.start and phase.start.isoformat(),
                "end": phase.end and phase.end.isoformat(),
                "seconds": phase.seconds,
            }
            for phase in competition.phases
        ],
        "solutions": [solution.name for solution in competition.solutions],
        "columns": [
            {
                "key": column.key,
                "title": column.title,
                "sorting": column.sorting,
                "computation": column.computation,
                "primary": column.key == competition.board.primary.key,
            }
            for column in competition.columns
        ],
    }

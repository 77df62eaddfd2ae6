"""Leaderboards: what a run scored in each phase, and who ranks where."""

from __future__ import annotations

from collections import defaultdict

import orjson

from benchgen.bundle.competition.ranking import Entry, rank_by
from benchgen.eval.v1 import result_pb2, run_pb2
from services.common.competition.tasks import read_run
from services.scorer.cases import rules_of
from services.scorer.competition import store
from services.scorer.competition.store import SQL, Connection


async def put(connection: Connection, spec: run_pb2.RunSpec, label: str) -> None:
    """Put a run that is being reported on the boards of its phases: the mean over the tasks of each, by column.

    A column that a task of the phase has no score for has none there: a mean over what is left would reward it.
    """
    if spec.simulated:
        return
    competition = read_run(spec.competition_json)
    names = [rule.name for rule in rules_of(spec.scoring_json)]
    tasks: defaultdict[int, dict[int, dict[str, float]]] = defaultdict(dict)
    for row in await connection.fetch(SQL["means"], spec.run):
        scores = tasks[competition.phases[row["position"]]].setdefault(row["position"], {})
        if row["scored"] == row["made"]:
            scores[names[row["rule"]]] = row["mean"]
    for phase, found in sorted(tasks.items()):
        complete = competition.phases.count(phase) == len(found)
        columns = set.intersection(*(set(scores) for scores in found.values())) if complete else set()
        means = {
            column: sum(scores[column] for scores in found.values()) / len(found)
            for column in sorted(columns)
        }
        await connection.execute(
            SQL["put_on_leaderboard"], spec.digest, phase, spec.run, label, orjson.dumps(means).decode()
        )


async def ranked(connection: Connection, digest: str, phase: int, limit: int) -> result_pb2.Leaderboard:
    """The runs of a phase, the best first."""
    standings = await store.standings(connection, digest, phase)
    if not standings:
        return result_pb2.Leaderboard()
    competition = read_run(run_pb2.RunSpec.FromString(standings[0].spec).competition_json)
    by_key = {column.key: column for column in competition.columns}
    by_run = {standing.run_id: standing for standing in standings}
    entries = [Entry(one.run_id, one.scores, one.reported_at) for one in standings]
    board = result_pb2.Leaderboard(columns=competition.order)
    for found in rank_by([by_key[key] for key in competition.order], entries)[:limit]:
        standing = by_run[str(found.entry.run)]
        board.entries.add(
            place=found.place,
            run=standing.run_id,
            label=standing.label,
            scores=standing.scores,
            report_time=standing.reported_at,
        )
    return board

"""The statements that change a run or a shard do what the tables of the domain say, and nothing else does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.common.queries import load_queries
from services.hub.runs import store
from services.hub.runs.domain import SHARD_TRANSITIONS, ShardEvent, ShardState
from services.local.files import PROGRAM_ROOT
from tests.transitions import RUN_MOVES, SHARD_MOVES

#: The statements of each event.
STATEMENTS = {
    ShardEvent.RUNG: ["fill_window"],
    ShardEvent.LEASED: ["take_shard"],
    ShardEvent.KEPT: ["keep_shard"],
    ShardEvent.RETURNED: ["return_shard", "split_shard"],
    ShardEvent.WITHDRAWN: ["unqueue"],
    ShardEvent.COMPLETED: ["end_shard"],
    ShardEvent.GIVEN_UP: ["end_shard", "abandon_waiting"],
    ShardEvent.REOPENED: ["reopen_shards"],
}
#: Moves on fewer states than the event allows: what a runner holds is given up when it gives it back.
_NARROWER = {"abandon_waiting": {ShardState.PENDING, ShardState.QUEUED}}

_UPDATE = re.compile(r"UPDATE shards\b(?:(?!RETURNING|\bUPDATE\b).)*", re.DOTALL)
_TO = re.compile(r"SET state = (?:'(\w+)'|\$\d)")
_FROM = re.compile(r"\bstate (?:= '(\w+)'|IN \(([^)]*)\))")
_SETS = re.compile(r"UPDATE (runs|shards)\b[^;]*?\bSET\b(?:(?!\bWHERE\b|\bFROM\b).)*?\bstate = ", re.DOTALL)


def _moves(statement: str) -> tuple[set[ShardState], ShardState | None]:
    """From which states a statement moves a shard, and where to; None where its caller says."""
    update = _UPDATE.search(store.SQL[statement])
    assert update is not None, statement
    to = _TO.search(update[0])
    assert to is not None, statement
    one, several = _FROM.findall(update[0][update[0].index("WHERE") :])[-1]
    sources = {ShardState(name) for name in re.findall(r"\w+", one or several)}
    return sources, ShardState(to[1]) if to[1] else None


@pytest.mark.parametrize("event", ShardEvent)
def test_a_statement_is_its_events_row(event: ShardEvent) -> None:
    table = SHARD_TRANSITIONS[event]
    for statement in STATEMENTS[event]:
        sources, target = _moves(statement)
        assert sources == _NARROWER.get(statement, set(table)), statement
        assert {target or next(iter(table.values()))} == set(table.values()), statement


def test_no_other_statement_changes_a_state() -> None:
    known = {statement for statements in STATEMENTS.values() for statement in statements}
    for path in (PROGRAM_ROOT / "services").rglob("*.sql"):
        if path.parent.name != "migrations":
            _check_file(path, known)
    for path in (PROGRAM_ROOT / "services").rglob("*.py"):
        assert not _SETS.search(path.read_text()), path


def _check_file(path: Path, known: set[str]) -> None:
    for name, body in load_queries(path).items():
        for found in _SETS.finditer(body):
            allowed = {"move_run"} if found[1] == "runs" else known
            assert name in allowed, f"{path}: {name} changes the state of {found[1]}"


def test_no_shard_is_stuck() -> None:
    moves = {before: {after for first, after in SHARD_MOVES if first == before} for before in ShardState}
    assert all(moves.values())
    assert ("DONE", "ABANDONED") not in SHARD_MOVES
    assert ("SUCCEEDED", "CANCELLING") not in RUN_MOVES

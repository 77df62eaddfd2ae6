"""Every change of state that the hub may make, as pairs, and a guard in the database that lets no other through."""

from __future__ import annotations

from benchgen.errors import FailedPrecondition
from services.hub.runs.domain import SHARD_TRANSITIONS, RunEvent, RunState, transition


def _run_moves() -> set[tuple[str, str]]:
    moves = set()
    for state in RunState:
        for event in RunEvent:
            try:
                moves.add((str(state), str(transition(state, event))))
            except FailedPrecondition:
                continue
    return {(before, after) for before, after in moves if before != after}


RUN_MOVES = _run_moves()
SHARD_MOVES = {
    (str(before), str(after))
    for table in SHARD_TRANSITIONS.values()
    for before, after in table.items()
    if before != after
}


def _guard(table: str, moves: set[tuple[str, str]]) -> str:
    pairs = ", ".join(f"('{before}', '{after}')" for before, after in sorted(moves))
    return f"""
    CREATE OR REPLACE FUNCTION {table}_guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE EXCEPTION 'a row of {table} went from % to %', OLD.state, NEW.state;
    END $$;
    CREATE OR REPLACE TRIGGER {table}_guard BEFORE UPDATE OF state ON {table} FOR EACH ROW
    WHEN (OLD.state <> NEW.state AND (OLD.state, NEW.state) NOT IN ({pairs}))
    EXECUTE FUNCTION {table}_guard();
    """


#: For the hub's schema, once it is migrated.
GUARD = _guard("runs", RUN_MOVES) + _guard("shards", SHARD_MOVES)

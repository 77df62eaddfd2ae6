"""What never changes about a run, kept for the next lease of it."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import asyncpg

from benchgen.eval.v1 import run_pb2
from services.hub.runs import store
from services.hub.runs.domain import Pool, RunId

_KEPT = 128


class Plan(NamedTuple):
    """A run's permit pool and specification."""

    pool: Pool
    spec: run_pb2.RunSpec


class Plans:
    """The plans of the runs that were asked for last."""

    def __init__(self, db: asyncpg.Pool) -> None:
        self._db = db
        self._kept: OrderedDict[RunId, Plan] = OrderedDict()

    async def get(self, run: RunId) -> Plan:
        """:raises NotFound: there is no such run."""
        plan = self._kept.get(run)
        if plan is None:
            async with self._db.acquire() as conn:
                facts = await store.run_facts(conn, run)
            plan = Plan(facts.pool, run_pb2.RunSpec.FromString(facts.spec))
            self._kept[run] = plan
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(run)
        return plan

"""How a runner hears that a run was stopped, and what it stops."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from benchgen.eval.v1 import lease_pb2
from services.common.signing import Signer
from services.runner.keeper import Keeper
from services.runner.lanes import Lane
from tests.integration.runner.support import Hub, held, reached
from tests.integration.scorer.support import new_seed

STOP = lease_pb2.RenewLeaseResponse.VERDICT_STOP


@pytest.fixture
def hub() -> Hub:
    return Hub(Signer(new_seed()))


def claims(run: str, number: int, epoch: int = 1) -> lease_pb2.LeaseClaims:
    return lease_pb2.LeaseClaims(shard=f"{run}-{number:06d}", run=run, attempt=1, epoch=epoch)


async def test_what_stops_one_shard_of_a_run_stops_all_of_them(hub: Hub) -> None:
    hub.seconds = 60
    lane = Lane("m")
    async with reached(hub) as stub:
        keeper = Keeper(stub, "runner-1")
        one, two, later, other = (
            held(hub, lane, claims("r1", 0)),
            held(hub, lane, claims("r1", 1)),
            held(hub, lane, claims("r1", 2, epoch=2)),
            held(hub, lane, claims("r2", 0)),
        )
        async with keeper.kept(one), keeper.kept(two), keeper.kept(later), keeper.kept(other):
            hub.verdict = STOP
            one.wake.set()
            async with asyncio.timeout(5):
                await asyncio.gather(one.ended.wait(), two.ended.wait())
            assert two.verdict == STOP
            assert len(hub.renewals) == 1, "calls of the second could be started while it asked for itself"
            assert not later.ended.is_set()
            assert not other.ended.is_set()


@pytest.mark.parametrize("hears", [True, False])
async def test_who_hears_no_rings_asks_often(hub: Hub, hears: bool) -> None:
    hub.seconds = 60
    async with reached(hub) as stub:
        keeper = Keeper(stub, "runner-1", lambda: hears)
        lease = held(hub, Lane("m"), claims("r1", 0))
        async with keeper.kept(lease):
            hub.verdict = STOP
            asked = monotonic()
            if hears:
                await asyncio.sleep(2)
                assert hub.renewals == []
            else:
                async with asyncio.timeout(2):
                    await lease.ended.wait()
                assert monotonic() - asked < 2

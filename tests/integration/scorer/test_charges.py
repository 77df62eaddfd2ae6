"""What results count for against budgets, by the lease that they came under: once each, whatever is sent again."""

from __future__ import annotations

import pytest

from benchgen.eval.v1 import lease_pb2, result_pb2, run_pb2
from tests.integration.scorer.support import Environment, Scorer, answer, claims_of, fault

pytestmark = pytest.mark.asyncio(loop_scope="module")


def charge(picousd: int, tokens: int = 0) -> result_pb2.Charge:
    return result_pb2.Charge(picousd=picousd, tokens=tokens)


async def charges(scorer: Scorer, *leases: lease_pb2.LeaseClaims) -> list[tuple[int, int]]:
    request = result_pb2.GetChargesRequest(
        run=leases[0].run,
        leases=[result_pb2.LeaseName(shard=claims.shard, attempt=claims.attempt) for claims in leases],
    )
    found = await scorer.records("hub").GetCharges(request)
    return [(each.picousd, each.tokens) for each in found.charges]


async def test_charges_are_counted_once_and_by_lease(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec(cases=10)
    first, second = claims_of(spec), claims_of(spec, attempt=2)
    batch = [answer(0, charge=charge(7, 70)), fault(1, charge=charge(5, 50)), answer(2)]
    await scorer.record(first, *batch)
    assert await charges(scorer, first, second) == [(12, 120), (0, 0)]
    # The acknowledgement was lost, and more comes with what is sent again.
    await scorer.record(first, *batch, answer(3, charge=charge(1, 10)))
    assert await charges(scorer, first) == [(13, 130)]
    # The next one makes the fault good, and answers once more what was held: both were paid for.
    await scorer.record(second, answer(0, charge=charge(7, 70)), answer(1, charge=charge(9, 90)))
    assert await charges(scorer, second, first) == [(16, 160), (13, 130)]


async def test_a_charge_that_cannot_be_is_refused(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec(cases=10)
    async with scorer.stream(claims_of(spec)) as stream:
        refused = await stream.send(answer(0, charge=charge(-1)), answer(1, charge=charge(2**51)), answer(2))
    assert [rejection.position for rejection in refused] == [0, 1]
    assert await charges(scorer, claims_of(spec)) == [(0, 0)]


async def test_the_report_says_what_was_spent_of_what(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec(cases=3)
    await scorer.record(claims_of(spec), answer(0), answer(1), fault(2))
    budget = run_pb2.Budget(cost_picousd=10**12, used=run_pb2.BudgetUse(cost_picousd=10**11))
    request = result_pb2.SealRunRequest(
        spec=spec, final_state=run_pb2.Run.STATE_SUCCEEDED, seconds=1, budget=budget
    )
    await scorer.records("hub").SealRun(request)
    told = (await scorer.report(spec.run)).budget
    assert (told.cost_picousd, told.used.cost_picousd, told.used.errors) == (10**12, 10**11, 1)
    assert not told.HasField("tokens")

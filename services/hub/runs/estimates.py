"""What a run would take, from its prompts as they are stored; said before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from benchgen.eval.v1 import run_pb2
from services.common.models.bounds import Tariff, input_bound, prices_of, reply_bound
from services.common.parts import CaseReader
from services.hub.runs.budget_messages import parameters, unbounded
from services.hub.runs.budgets import Limits

#: Of more cases than this, as many are read, in stretches over all of them.
_MOST_READ = 5_000
_STRETCHES = 10
_BYTES_PER_TOKEN = 4
#: Requests carry a seed of their own, of at most so many digits.
_SEED = 2**64 - 1


class Estimator:
    """Estimates runs.

    :param inputs: reads prompts.
    """

    def __init__(self, inputs: CaseReader) -> None:
        self._inputs = inputs

    async def estimate(self, spec: run_pb2.RunSpec, selection: Sequence[int] | None) -> run_pb2.RunEstimate:
        """What a run of this specification would take.

        :param selection: the dataset positions of its cases; None: the first ones.
        :raises Unavailable: the prompts cannot be read now.
        """
        estimate = run_pb2.RunEstimate(environment=spec.environment, planned=spec.planned)
        if spec.subject.WhichOneof("kind") != "model" or not spec.subject.model.base_url:
            # Nothing is called, and nothing is spent.
            estimate.input_tokens = estimate.most_input_tokens = estimate.most_output_tokens = 0
            estimate.most_cost_picousd = 0
            return estimate
        params = parameters(spec)
        reply = reply_bound(params)
        estimate.unknown.extend(unbounded(Limits(0, 0), spec))
        if spec.harness_json:
            most = int(orjson.loads(spec.harness_json)["calls"])
            estimate.calls = spec.planned * most
            estimate.unknown.append(
                f"a program decides what it asks, and how often: at most {most:,} calls a trial"
            )
            return estimate
        estimate.calls = spec.planned
        if reply is not None:
            estimate.most_output_tokens = reply * spec.planned
        await self._add_prompts(estimate, spec, selection, params | {"seed": _SEED}, reply)
        return estimate

    async def _add_prompts(
        self,
        estimate: run_pb2.RunEstimate,
        spec: run_pb2.RunSpec,
        selection: Sequence[int] | None,
        params: dict[str, object],
        reply: int | None,
    ) -> None:
        positions = _to_read(range(spec.cases) if selection is None else selection)
        written, most = 0, 0
        for start in range(0, len(positions), 500):
            for row in await self._inputs.rows(spec.inputs_digest, positions[start : start + 500]):
                messages = row["messages"]
                written += sum(len(str(message.get("content") or "").encode()) for message in messages)
                bound = input_bound(messages, params)
                if bound is None:
                    estimate.unknown.append("some prompts have more than text: nobody can tell their tokens")
                    return
                most += bound
        share = spec.planned / max(1, len(positions))
        estimate.input_tokens = -int(-written * share // _BYTES_PER_TOKEN)
        estimate.most_input_tokens = round(most * share)
        if len(positions) < spec.cases:
            estimate.unknown.append(
                f"prompts are counted from {len(positions):,} of {spec.cases:,} cases, so the most is not exact"
            )
        prices = prices_of(spec.subject.model)
        replies_cost = prices.output is not None and (reply is not None or not prices.output)
        if prices.input is not None and replies_cost:
            worst = Tariff(prices).most(estimate.most_input_tokens, (reply or 0) * spec.planned)
            estimate.most_cost_picousd = worst.picousd


def _to_read(positions: Sequence[int]) -> Sequence[int]:
    """Positions in stretches over all of them, where there are many."""
    if len(positions) <= _MOST_READ:
        return positions
    length, step = _MOST_READ // _STRETCHES, len(positions) // _STRETCHES
    return [
        position
        for stretch in range(_STRETCHES)
        for position in positions[stretch * step : stretch * step + length]
    ]

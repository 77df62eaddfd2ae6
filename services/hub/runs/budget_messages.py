"""Budgets, grants and what holders say of them, as messages and as values."""

from __future__ import annotations

import math
from datetime import timedelta

import orjson
from google.protobuf.duration_pb2 import Duration

from benchgen.errors import InvalidInput
from benchgen.eval.v1 import lease_pb2, run_pb2
from services.common.amounts import Amount
from services.common.auth import Principal
from services.common.models.bounds import prices_of, reply_bound
from services.hub.runs.budget_store import Spend
from services.hub.runs.budgets import Budget, Limits, Word
from services.hub.runs.metering import GrantTold

#: Numbers are int8 in the tables, and sums of them must be, too.
_MOST = 2**60
_MOST_SECONDS = 10.0 * 366 * 86_400
_MOST_ERRORS = 2**31 - 1


def read_budget(message: run_pb2.Budget) -> Budget:
    """A budget as it came.

    :raises InvalidInput: a limit makes no sense; names all that do not.
    """
    problems = []
    seconds = message.time.ToTimedelta().total_seconds() if message.HasField("time") else None
    if message.HasField("cost_picousd") and not 0 <= message.cost_picousd <= _MOST:
        problems.append(f"budget.cost_picousd: expected 0 to {_MOST:,}, found {message.cost_picousd:,}")
    if message.tokens > _MOST:
        problems.append(f"budget.tokens: expected 0 to {_MOST:,}, found {message.tokens:,}")
    if seconds is not None and not 0 < seconds <= _MOST_SECONDS:
        problems.append(f"budget.time: expected more than 0 s and at most ten years, found {seconds:,g} s")
    if message.errors > _MOST_ERRORS:
        problems.append(f"budget.errors: expected 0 to {_MOST_ERRORS:,}, found {message.errors:,}")
    if problems:
        raise InvalidInput("; ".join(problems))
    return Budget(
        picousd=message.cost_picousd if message.HasField("cost_picousd") else None,
        tokens=message.tokens if message.HasField("tokens") else None,
        seconds=seconds,
        errors=message.errors if message.HasField("errors") else None,
    )


def budget_message(spend: Spend, faults: int) -> run_pb2.Budget:
    """What a run may spend, and did.

    :param faults: how many of its results stand at one.
    """
    budget = spend.budget
    return run_pb2.Budget(
        cost_picousd=budget.picousd,
        tokens=budget.tokens,
        time=None if budget.seconds is None else duration(budget.seconds),
        errors=budget.errors,
        used=run_pb2.BudgetUse(
            cost_picousd=spend.spent.picousd,
            tokens=spend.spent.tokens,
            time=duration(spend.worked),
            errors=max(0, faults - spend.errors_before),
            reserved_picousd=spend.reserved.picousd,
            reserved_tokens=spend.reserved.tokens,
        ),
    )


def unbounded(limits: Limits, spec: run_pb2.RunSpec) -> list[str]:
    """Why these limits cannot be kept for a run; empty where they can.

    Recorded answers cost nothing, and nor do built-in models that need no call.
    """
    if spec.subject.WhichOneof("kind") != "model" or not spec.subject.model.base_url:
        return []
    model, prices = spec.subject.model, prices_of(spec.subject.model)
    found = []
    replies_are_bounded = reply_bound(parameters(spec)) is not None
    if limits.picousd is not None:
        unknown = [
            name for name, price in (("prompts", prices.input), ("replies", prices.output)) if price is None
        ]
        if unknown:
            found.append(
                f"budget.cost: the price of {' and '.join(unknown)} of `{model.name}` is not known, so nobody can"
                " tell what a call costs; add the model again with its prices (--price-in, --price-out)"
            )
        elif prices.output and not replies_are_bounded:
            found.append(
                "budget.cost: nothing bounds what a reply can cost; set max_tokens, of the run (--max-reply-tokens),"
                " the environment or the model"
            )
    if limits.tokens is not None and not replies_are_bounded:
        found.append(
            "budget.tokens: nothing bounds how long a reply can get; set max_tokens, of the run (--max-reply-tokens),"
            " the environment or the model"
        )
    return found


def parameters(spec: run_pb2.RunSpec) -> dict[str, object]:
    """What requests of a run say about how a model is asked, as far as it bounds their replies."""
    generation = spec.generation
    params: dict[str, object] = orjson.loads(generation.extra_json) if generation.extra_json else {}
    if generation.HasField("max_tokens"):
        params["max_tokens"] = generation.max_tokens
    return params


def key_limits(who: Principal) -> Limits:
    """What an API key may spend a day."""
    return Limits(who.daily.picousd, who.daily.tokens)


def read_word(message: lease_pb2.Spending) -> Word:
    """What a holder says about its grant. It is a service of ours; numbers that cannot be are bounded."""
    return Word(
        sequence=message.sequence,
        spent=_amount(message.spent_picousd, message.spent_tokens),
        held=_amount(message.held_picousd, message.held_tokens),
        next=_amount(message.next_picousd, message.next_tokens),
        wanted=_amount(message.wanted_picousd, message.wanted_tokens),
        errors=message.errors,
    )


def _amount(picousd: int, tokens: int) -> Amount:
    return Amount(min(max(0, picousd), _MOST), min(tokens, _MOST))


def grant_message(told: GrantTold | None) -> lease_pb2.Grant | None:
    """A grant as it travels."""
    if told is None:
        return None
    return lease_pb2.Grant(
        cost_picousd=told.picousd,
        tokens=told.tokens,
        errors=told.errors,
        time=None if told.seconds is None else duration(told.seconds),
    )


def duration(seconds: float) -> Duration:
    """As it travels, in whole milliseconds."""
    message = Duration()
    message.FromTimedelta(timedelta(milliseconds=math.floor(seconds * 1000)))
    return message

"""Grants as messages and as the meter of a lease knows them."""

from __future__ import annotations

import math

from benchgen.eval.v1 import lease_pb2
from services.common.models.meter import Allowance, Meter


def read_grant(grant: lease_pb2.Grant, sent: float) -> Allowance:
    """What a grant allows.

    :param sent: when it was asked for, of the monotonic clock, seconds.
    """
    return Allowance(
        grant.cost_picousd if grant.HasField("cost_picousd") else None,
        grant.tokens if grant.HasField("tokens") else None,
        sent + grant.time.ToTimedelta().total_seconds() if grant.HasField("time") else math.inf,
        grant.errors if grant.HasField("errors") else None,
    )


def said(meter: Meter | None, *, last: bool = False) -> lease_pb2.Spending | None:
    """What to say about a grant in the message that is about to be sent.

    :param last: no more calls are made.
    """
    if meter is None:
        return None
    word = meter.word(last=last)
    return lease_pb2.Spending(
        sequence=word.sequence,
        spent_picousd=word.spent.picousd,
        spent_tokens=word.spent.tokens,
        held_picousd=word.held.picousd,
        held_tokens=word.held.tokens,
        next_picousd=word.next.picousd,
        next_tokens=word.next.tokens,
        wanted_picousd=word.wanted.picousd,
        wanted_tokens=word.wanted.tokens,
        errors=word.errors,
    )

"""The most that one call can use and cost, known before it is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from benchgen.eval.v1 import model_pb2
from benchgen.scoring import cost
from benchgen.scoring.cost import Prices, cost_picousd
from services.common.amounts import Amount
from services.common.models.types import Usage

_REPLY_LIMITS = ("max_tokens", "max_completion_tokens")
#: Request fields that ask for several replies.
_REPLIES = ("n", "best_of")


def reply_bound(params: Mapping[str, Any]) -> int | None:
    """The most tokens that a request lets a model reply with; None where nothing bounds it."""
    limits = _counts(params, _REPLY_LIMITS)
    if not limits:
        return None
    return max(limits) * max(1, *_counts(params, _REPLIES), 1)


def input_bound(messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> int | None:
    """The most tokens that a prompt can have; None where nothing bounds it.

    No tokeniser in use makes more than one token of a byte, and what a chat template writes around a message is shorter
    than what JSON does. A picture or a sound is no text: how many tokens it takes is the provider's to say.
    """
    if any(_has_more_than_text(message.get("content")) for message in messages):
        return None
    return len(orjson.dumps(messages)) + len(orjson.dumps(params))


def _counts(params: Mapping[str, Any], names: Sequence[str]) -> list[int]:
    found = [params.get(name) for name in names]
    return [value for value in found if isinstance(value, int) and not isinstance(value, bool)]


def _has_more_than_text(content: Any) -> bool:
    return isinstance(content, list) and any(
        not isinstance(part, Mapping) or part.get("type") != "text" for part in content
    )


def prices_of(model: model_pb2.Model) -> Prices:
    """The prices of a model; what is not stated is not known."""
    price = model.price
    return Prices.per_million(
        input=price.input_usd_per_mtok or None,
        output=price.output_usd_per_mtok or None,
        input_cached=price.cached_usd_per_mtok or None,
    )


@dataclass(frozen=True, slots=True)
class Tariff:
    """What calls of one model count for."""

    prices: Prices

    def most(self, given: int | None, made: int | None) -> Amount:
        """What a call of so many tokens in and out counts for at most.

        What nothing bounds counts as nothing: whoever limits it has made sure that it is bounded.
        """
        tokens = (given or 0) + (made or 0)
        prices = self.prices
        if prices.input is None or prices.output is None:
            return Amount(0, tokens)
        dearest = max(prices.input, prices.input_cached or 0)
        return Amount((given or 0) * dearest + (made or 0) * prices.output, tokens)

    def used(self, usage: Usage, most: Amount) -> Amount:
        """What a call counts for that has ended: as it says, and at the most that it can be where it does not say."""
        known = usage.input is not None and usage.output is not None
        tokens = (usage.input or 0) + (usage.output or 0) if known else most.tokens
        picousd = cost_picousd(
            cost.Usage(input_total=usage.input, input_cached=usage.cached, output_total=usage.output),
            self.prices,
        )
        return Amount(most.picousd if picousd is None else picousd, tokens)

"""What a call costs, in whole pico-dollars, so that a million calls add up without rounding."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Self

PICOUSD_PER_USD = 10**12

# A price of 1 USD per million tokens is 1e-6 USD, or a million pico-dollars, per token.
_PICOUSD_PER_TOKEN = 10**6


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call in one form for all providers. None is unknown, which is not 0.

    The totals include their parts: ``input_total`` the cached and the cache-writing tokens (Anthropic's API
    counts them apart, its adapter adds them), ``output_total`` the tokens of reasoning.
    """

    input_total: int | None = None
    input_cached: int | None = None
    input_cache_write: int | None = None
    output_total: int | None = None
    output_reasoning: int | None = None


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of a model in pico-dollars per token. None: not known, or no price of its own."""

    input: int | None = None
    output: int | None = None
    input_cached: int | None = None  # default: as other input
    input_cache_write: int | None = None  # default: as other input
    output_reasoning: int | None = None  # default: as other output

    @classmethod
    def per_million(
        cls,
        input: str | None = None,
        output: str | None = None,
        input_cached: str | None = None,
        input_cache_write: str | None = None,
        output_reasoning: str | None = None,
    ) -> Self:
        """From USD per million tokens as decimal text; ``ValueError`` for what is no price."""
        return cls(
            input=_picousd_per_token(input),
            output=_picousd_per_token(output),
            input_cached=_picousd_per_token(input_cached),
            input_cache_write=_picousd_per_token(input_cache_write),
            output_reasoning=_picousd_per_token(output_reasoning),
        )


def _picousd_per_token(usd_per_million: str | None) -> int | None:
    if usd_per_million is None:
        return None
    try:
        price = Decimal(usd_per_million)
    except InvalidOperation:
        price = Decimal("NaN")
    # The upper bound keeps a run of any size within the 64 bits of a stored sum.
    if not price.is_finite() or not 0 <= price <= 100_000:
        raise ValueError(f"expected USD per million tokens, 0 to 100000, found {usd_per_million!r}")
    scaled = price * _PICOUSD_PER_TOKEN
    if scaled != int(scaled):
        raise ValueError(
            f"expected at most 6 decimals in a price per million tokens, found {usd_per_million!r}"
        )
    return int(scaled)


def cost_picousd(usage: Usage, prices: Prices) -> int | None:
    """What the call cost; None when usage or price is unknown, or when the usage contradicts itself."""
    if (
        usage.input_total is None
        or usage.output_total is None
        or prices.input is None
        or prices.output is None
    ):
        return None
    cached = usage.input_cached or 0
    written = usage.input_cache_write or 0
    reasoning = usage.output_reasoning or 0
    plain_input = usage.input_total - cached - written
    plain_output = usage.output_total - reasoning
    if min(plain_input, plain_output, cached, written, reasoning) < 0:
        return None
    return (
        plain_input * prices.input
        + cached * _or(prices.input_cached, prices.input)
        + written * _or(prices.input_cache_write, prices.input)
        + plain_output * prices.output
        + reasoning * _or(prices.output_reasoning, prices.output)
    )


def _or(price: int | None, default: int) -> int:
    return default if price is None else price


def usd(picousd: int) -> float:
    """Pico-dollars as dollars, for display and JSON."""
    return picousd / PICOUSD_PER_USD

"""Money and tokens, together: what budgets are made of."""

from __future__ import annotations

from typing import NamedTuple


class Amount(NamedTuple):
    """Money in 1e-12 US dollars, and tokens in and out."""

    picousd: int = 0
    tokens: int = 0

    def plus(self, other: Amount) -> Amount:
        """The sum."""
        return Amount(self.picousd + other.picousd, self.tokens + other.tokens)

    def minus(self, other: Amount) -> Amount:
        """The difference."""
        return Amount(self.picousd - other.picousd, self.tokens - other.tokens)

    def at_least(self, other: Amount) -> Amount:
        """The larger one of each."""
        return Amount(max(self.picousd, other.picousd), max(self.tokens, other.tokens))


NOTHING = Amount()

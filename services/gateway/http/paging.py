"""Pages of lists, and names in paths."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.convertors import Convertor, register_url_convertor

PageSize = Annotated[int, Query(ge=1, le=1000, description="How many items at most.")]
PageToken = Annotated[
    str, Query(max_length=2000, description="The `next_page_token` of the page before; empty for the first.")
]


class _Slashed(Convertor[str]):
    """A name with at most one slash in it, such as `org/name`."""

    regex = "[^/]+(?:/[^/]+)?"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("slashed", _Slashed())

"""Page tokens: what was given out comes back, and nothing else gets in."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchgen.errors import InvalidInput
from services.common.paging import DEFAULT_PAGE, MAX_PAGE, Page, next_token

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@given(st.lists(TEXTS | st.integers(-(2**53), 2**53), min_size=1, max_size=3))
def test_a_token_gives_its_key_back(key: list[str | int]) -> None:
    token = next_token(key)
    kinds = [type(value) for value in key]
    assert Page.of(0, token, kinds=kinds).after == key
    with pytest.raises(InvalidInput, match="page_token"):
        Page.of(0, token, kinds=[*kinds, str])


@given(st.text(min_size=1))
def test_whatever_else_comes_is_refused_or_a_key(token: str) -> None:
    try:
        page = Page.of(0, token, kinds=(str,))
    except InvalidInput:
        return
    assert page.after is not None


@pytest.mark.parametrize("content", [b"[1]", b'"a"', b"{}", b'["a\\u0000"]', b"[", b"[true]"])
def test_tokens_that_nobody_gave_out(content: bytes) -> None:
    with pytest.raises(InvalidInput, match="page_token"):
        Page.of(0, base64.urlsafe_b64encode(content).decode(), kinds=(str,))


def test_sizes() -> None:
    assert Page.of(0, "", kinds=(int,)) == Page(DEFAULT_PAGE, None)
    assert Page.of(MAX_PAGE, "", kinds=(int,)).size == MAX_PAGE
    for size in (-1, MAX_PAGE + 1):
        with pytest.raises(InvalidInput, match=f"found {size}"):
            Page.of(size, "", kinds=(int,))

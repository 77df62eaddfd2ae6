"""Page tokens and request ids."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchgen.errors import InvalidInput
from services.hub.wire import checked_page_size, checked_request_id, page_token, read_page_token

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_a_token_gives_its_key_back(key: list[str]) -> None:
    token = page_token(key)
    assert read_page_token(token, len(key)) == key
    with pytest.raises(InvalidInput):
        read_page_token(token, len(key) + 1)


@given(st.text(min_size=1))
def test_whatever_else_comes_is_refused_or_a_key(token: str) -> None:
    try:
        key = read_page_token(token, 1)
    except InvalidInput:
        return
    assert key is not None


@pytest.mark.parametrize("content", [b"[1]", b'"a"', b"{}", b'["a\\u0000"]', b"["])
def test_tokens_that_nobody_gave_out(content: bytes) -> None:
    with pytest.raises(InvalidInput, match="page_token"):
        read_page_token(base64.urlsafe_b64encode(content).decode(), 1)


def test_sizes_and_ids() -> None:
    assert (checked_page_size(0), checked_page_size(1_000)) == (50, 1_000)
    for wrong in (-1, 1_001):
        with pytest.raises(InvalidInput, match="page_size"):
            checked_page_size(wrong)
    with pytest.raises(InvalidInput, match="request_id"):
        checked_request_id("")

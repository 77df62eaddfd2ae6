"""Request ids."""

from __future__ import annotations

import uuid

import pytest

from benchgen.errors import InvalidInput
from services.hub.wire import checked_request_id


def test_a_request_id_is_a_uuid() -> None:
    given = uuid.uuid4()
    assert checked_request_id(str(given)) == given


@pytest.mark.parametrize("text", ["", "7", "not-a-uuid", "\0"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="request_id"):
        checked_request_id(text)

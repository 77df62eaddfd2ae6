"""What names a request."""

from __future__ import annotations

import pytest

from benchgen.eval.v1 import environment_pb2
from services.common.models.asking import Asking
from services.common.models.types import ChatRequest

MESSAGES = [{"role": "user", "content": "6 * 7?"}]


def digest(
    messages: list[dict[str, str]] | None = None, *, trial: int = 0, seed: int = 1, **fields: object
) -> str:
    asking = Asking(environment_pb2.Generation(**fields), seed)  # type: ignore[arg-type]
    return asking.digest(asking.request(messages or MESSAGES, "c-1", trial))


OTHERS = {
    "messages": digest([{"role": "user", "content": "6 * 8?"}]),
    "roles": digest([{"role": "system", "content": "6 * 7?"}]),
    "temperature": digest(temperature=0.0),
    "top_p": digest(top_p=0.5),
    "length": digest(max_tokens=5),
    "stop": digest(stop=["a"]),
    "stop that is not sent": digest(stop=["a", "b", "c", "d", "e"]),
    "another that is not sent": digest(stop=["a", "b", "c", "d", "f"]),
    "field": digest(extra_json='{"top_k": 5}'),
    "value": digest(extra_json='{"top_k": 6}'),
    "no seed": digest(extra_json='{"seed": null}'),
    "fixed seed": digest(extra_json='{"seed": 4}'),
    "run seed": digest(seed=2),
    "trial": digest(trial=1),
}


def test_whatever_is_asked_otherwise_has_another_name() -> None:
    assert len({digest(), *OTHERS.values()}) == len(OTHERS) + 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a": 1, "b": {"c": 2, "d": 3}}', '{"b": {"d": 3, "c": 2}, "a": 1}'),
        ('{"a": null}', "{}"),
    ],
)
def test_what_is_the_same_to_an_endpoint_has_the_same_name(one: str, other: str) -> None:
    assert digest(extra_json=one) == digest(extra_json=other)


def test_what_a_harness_adds_to_a_request_counts() -> None:
    asking = Asking(environment_pb2.Generation(), 1)
    plain = asking.request(MESSAGES, "c-1", 0)
    with_tools = ChatRequest(plain.messages, {**plain.params, "tools": [{"type": "function"}]})
    assert asking.digest(plain) != asking.digest(with_tools)

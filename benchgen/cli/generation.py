"""From the options of a command to how a model is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from benchgen.eval.v1 import environment_pb2


def generation_of(given: Mapping[str, Any]) -> environment_pb2.Generation:
    """What the options of ``generation_options`` say; those that were not given stay unset."""
    from benchgen.eval.v1 import environment_pb2

    return environment_pb2.Generation(
        temperature=given["temperature"],
        top_p=given["top_p"],
        max_tokens=given["max_tokens"],
        stop=given["stop"],
        extra_json=_extra(given["extra"]),
    )


def _extra(raw: str | None) -> str:
    if not raw:
        return ""
    try:
        fields = json.loads(raw)
    except ValueError as error:
        raise click.UsageError(f"--extra: expected a JSON object, found no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise click.UsageError(f"--extra: expected a JSON object, found {raw[:80]!r}")
    return json.dumps(fields)

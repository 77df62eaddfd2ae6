"""Tasks of competitions as the steps need them, from the rows of inputs and targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from benchgen.bundle.competition import Dialect
from benchgen.bundle.competition.model import Column
from services.common.competition import PackStore, Program, Work
from services.common.objects import Bucket


@dataclass(frozen=True, slots=True)
class RunCompetition:
    """What a run's specification says of its competition."""

    dialect: Dialect
    image: str
    columns: tuple[Column, ...]
    order: tuple[str, ...]
    phases: tuple[int, ...]
    """The phase of each case, by position."""


def read_run(competition_json: str) -> RunCompetition:
    """Read ``RunSpec.competition_json``."""
    fields: dict[str, Any] = orjson.loads(competition_json)
    columns = (
        Column(**{**column, "computed_from": tuple(column["computed_from"])}) for column in fields["columns"]
    )
    return RunCompetition(
        Dialect(fields["dialect"]),
        fields["image"],
        tuple(columns),
        tuple(fields["order"]),
        tuple(case["phase"] for case in fields["cases"]),
    )


async def work_of(packs: PackStore, bucket: Bucket, task: Mapping[str, Any], image: str) -> Work:
    """A task with its files on disk, as far as a store has them."""

    async def program(name: str) -> Program | None:
        pack = task.get(name)
        if pack is None:
            return None
        return Program(await packs.zip(bucket, pack["sha256"]), tuple(pack["commands"]))

    async def data(name: str) -> Any:
        pack = task.get(name)
        return None if pack is None else await packs.folder(bucket, pack["sha256"])

    return Work(
        seconds=task["seconds"],
        image=image,
        ingestion=await program("ingestion_program"),
        input_data=await data("input_data"),
        ingestion_during_scoring=task["ingestion_during_scoring"],
        scoring=await program("scoring_program"),
        reference=await data("reference_data"),
    )

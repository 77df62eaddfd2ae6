"""How much a program of a bundle may use, as people write it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_SECONDS = 3_600.0


class ProgramLimits(BaseModel):
    """Bounds of one start of a program. What goes over them is ended, with all processes that it has started."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = Field(
        default=300.0, description="Time on the clock."
    )
    cpu_seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] | None = Field(
        default=None, description="Processor time; as much as `seconds` when not given."
    )
    memory_mb: Annotated[int, Field(ge=16, le=65_536)] = Field(default=1_024, description="Memory, in MiB.")
    processes: Annotated[int, Field(ge=1, le=4_096)] = Field(
        default=64, description="Processes and threads at one time."
    )
    disk_mb: Annotated[int, Field(ge=1, le=65_536)] = Field(
        default=512, description="Files that it writes, in MiB. They are kept in memory."
    )
    output_mb: Annotated[float, Field(gt=0, le=64)] = Field(
        default=1.0, description="Standard output, and as much of standard error, in MiB."
    )

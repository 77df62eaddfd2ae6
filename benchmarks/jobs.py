"""What is measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: What the simulator says to whoever is not one of our own runs.
CANNED = "simulated answer"

_MANIFEST = """\
schema: 1
name: bench-{name}
version: 1.0.0
title: Benchmark questions
description: Generated questions for measuring the platform, not a model.
category: other
license: Apache-2.0
dataset:
  file: data/test.jsonl
  id: id
  target: answer
harness:
  type: chat
  prompt: "{{{{ question }}}}"
  generation: {{temperature: 0, max_tokens: 64}}
oracle: answer
scoring:
  - {{name: correct, type: exact_match, primary: true}}
"""


@dataclass(frozen=True, slots=True)
class Job:
    """One run to measure.

    :ivar latency_ms: how long the simulator takes for an answer.
    :ivar concurrency: how many calls may be in flight over all runners.
    """

    name: str
    cases: int
    concurrency: int
    latency_ms: int
    what: str

    @property
    def ideal_seconds(self) -> float | None:
        """What the calls alone would take; None where they take no time."""
        return self.cases * self.latency_ms / 1000 / self.concurrency if self.latency_ms else None

    @property
    def right(self) -> int:
        """How many cases have to come out right."""
        return sum(_answer(number) == CANNED for number in range(self.cases))

    def write_environment(self, folder: Path) -> None:
        """Write the environment that the job runs."""
        (folder / "data").mkdir(parents=True)
        (folder / "environment.yaml").write_text(_MANIFEST.format(name=self.name))
        with (folder / "data" / "test.jsonl").open("w") as file:
            for number, question in enumerate(self._questions()):
                row = {"id": f"q{number:06d}", "question": question, "answer": _answer(number)}
                file.write(json.dumps(row) + "\n")

    def _questions(self) -> Iterator[str]:
        for number in range(self.cases):
            boxes, each, gone = number % 57 + 2, number % 41 + 2, number % 19
            yield (
                f"Problem {number:06d}: a shop has {100 + number} tiles and gets {boxes} boxes with {each} tiles in"
                f" each. It sells {gone} tiles. How many tiles are left?"
            )


def _answer(number: int) -> str:
    """Four of five questions have the simulator's one answer as their target, so the score is known."""
    return CANNED if number % 5 else "another answer"


JOBS = (
    Job("warm-up", 1_000, 64, 0, "not counted: caches are cold, pages are new"),
    Job("latency", 1_000, 64, 50, "does waiting for the model hide all other work?"),
    Job("throughput", 10_000, 64, 0, "how fast is everything but the model?"),
    Job("wide", 10_000, 256, 0, "and with more calls in flight?"),
    Job("memory", 50_000, 256, 0, "does memory stay flat as runs grow?"),
)

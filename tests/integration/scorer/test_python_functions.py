"""The ready environment `python-functions`: its hidden tests pass what is right and catch what only looks right."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from benchgen.scoring.rules import SlowRule, compile_rules
from benchgen.scoring.spec import parse_rules
from services.common.objects import ObjectStore
from services.common.sandbox.bubblewrap import Bubblewrap
from services.common.sandbox.runtimes import Runtimes
from services.scorer.domain import Outcome, Subject, TrialKey
from services.scorer.judging import BoxJudge
from tests.integration.scorer.test_boxes import objects

__all__ = ["objects"]

FOLDER = Path(__file__).parents[3] / "environments" / "python-functions"
ROWS: list[dict[str, Any]] = [
    orjson.loads(line) for line in (FOLDER / "data" / "test.jsonl").read_bytes().splitlines()
]


def _rule() -> SlowRule:
    (spec,) = yaml.safe_load((FOLDER / "environment.yaml").read_text())["scoring"]
    # What is far too slow need not be waited for as long as a model's answer is.
    spec["limits"]["seconds"] = 2
    (rule,) = compile_rules(parse_rules([spec]))
    assert isinstance(rule, SlowRule)
    return rule


def _subject(rule: SlowRule, number: int, trial: int, code: str) -> Subject:
    row = ROWS[number]
    values = {"setup": row["prompt"], "tests": row["tests"], "entry_point": row["entry_point"]}
    answer = rule.answer(f"Here it is:\n```python\n{code}```\n")
    assert isinstance(answer, str)
    return Subject(TrialKey(number, trial), row["task_id"], Outcome.OK, answer, values)


def test_every_task_has_what_it_takes() -> None:
    assert len(ROWS) >= 60
    assert len({row["task_id"] for row in ROWS}) == len(ROWS)
    assert min(Counter(row["difficulty"] for row in ROWS).values()) >= 20
    for row in ROWS:
        assert row["wrong"], row["task_id"]
        assert row["tests"].count("assert") >= 3, row["task_id"]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_right_passes_and_what_looks_right_does_not(objects: ObjectStore) -> None:
    judge = BoxJudge(Bubblewrap(Runtimes({"default": sys.base_prefix})), objects, 2)
    rule = _rule()
    subjects = [
        _subject(rule, number, trial, code)
        for number, row in enumerate(ROWS)
        for trial, code in enumerate([row["solution"], *row["wrong"]])
    ]
    unlike = []
    async for scores in judge.judge(rule, subjects):
        for key, score in scores.items():
            if score.error is not None or score.passed is not (key.trial == 0):
                unlike.append((ROWS[key.position]["task_id"], key.trial, score))
    assert not unlike

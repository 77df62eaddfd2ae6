"""How responses become scores by rules that take longer: code and programs in boxes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import assert_never

from benchgen.scoring.rules import SlowRule
from benchgen.scoring.spec import CodeTests, ColumnRule, ProgramRule
from services.common.objects import ObjectStore
from services.common.sandbox import Provider, SandboxFailed
from services.scorer import code_tests, program_rule
from services.scorer.domain import Subject
from services.scorer.pending import CannotJudge, Scores, SlowJudge


class ByKind:
    """Judges each rule by what is made for its kind."""

    def __init__(self, columns: SlowJudge, others: SlowJudge) -> None:
        self._columns = columns
        self._others = others

    def _of(self, rule: SlowRule) -> SlowJudge:
        return self._columns if isinstance(rule.spec, ColumnRule) else self._others

    def batch(self, rule: SlowRule) -> int:
        """As many as the rule's own judge takes."""
        return self._of(rule).batch(rule)

    async def check(self, rule: SlowRule) -> None:
        """:raises CannotJudge: the rule's own judge cannot work."""
        await self._of(rule).check(rule)

    def judge(self, rule: SlowRule, subjects: Sequence[Subject]) -> AsyncIterator[Scores]:
        """What the rule's own judge says."""
        return self._of(rule).judge(rule, subjects)


#: Each has a box of its own, so a claim takes few: others have work, too.
_CODE_BATCH = 8


class BoxJudge:
    """Judges in boxes. Without a sandbox it judges nothing, and says why: nothing ever runs bare.

    :param boxes: how many there may be at once.
    """

    def __init__(self, provider: Provider, objects: ObjectStore, boxes: int) -> None:
        self._provider = provider
        self._programs = program_rule.Programs(objects)
        self._room = asyncio.Semaphore(boxes)

    def batch(self, rule: SlowRule) -> int:
        """How many responses one claim takes."""
        return rule.spec.batch if isinstance(rule.spec, ProgramRule) else _CODE_BATCH

    async def check(self, rule: SlowRule) -> None:
        """:raises CannotJudge: there is no sandbox."""
        try:
            await self._provider.check()
        except SandboxFailed as error:
            raise CannotJudge(f"it needs a sandbox, and this scorer has none: {error.message}") from None

    async def judge(self, rule: SlowRule, subjects: Sequence[Subject]) -> AsyncIterator[Scores]:
        """Yield scores as they are made.

        :raises CannotJudge: a box could not be made.
        """
        try:
            match rule.spec:
                case CodeTests():
                    for subject in subjects:
                        async with self._room:
                            score = await code_tests.judge(self._provider, rule.spec, subject)
                        yield {subject.key: score}
                case ProgramRule():
                    async with self._room:
                        async for scores in program_rule.judge(
                            self._provider, self._programs, rule.spec, subjects
                        ):
                            yield scores
                case ColumnRule():
                    raise CannotJudge("columns of competitions are judged by their scoring program")
                case _:
                    assert_never(rule.spec)
        except SandboxFailed as error:
            raise CannotJudge(f"the sandbox failed: {error.message}") from None

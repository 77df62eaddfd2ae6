"""When nothing of a run succeeds from its first call on: it is stopped early, and not after ten thousand failures."""

from __future__ import annotations

import re
from collections import OrderedDict

from benchgen.eval.v1 import result_pb2

#: So many trials that fail alike with what another try cannot mend: a parameter is wrong, or the address.
ALIKE = 5
#: So many trials that fail in any way, after all their tries: nobody is there.
FAILED = 20

#: What differs between two messages that say the same: quoted words, numbers, names with numbers.
_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\S*\d\S*")
#: How many runs are remembered.
_MOST_RUNS = 256


class Streak:
    """How the trials of one run have ended in this process. Nothing here waits.

    Once a trial has been answered, here or before, the endpoint and the parameters are good, and what fails is about
    its case: then nothing stops the run. Failures come back sooner than answers, so those that began before are waited
    for.
    """

    def __init__(self) -> None:
        self.answered = False
        """Whether the model has answered any trial of the run."""
        self._failed = 0
        self._alike = 0
        self._last = ""
        self._begun = 0
        self._open: set[int] = set()
        self._verdict = ""
        self._verdict_at = 0

    def begin(self) -> int:
        """A trial begins; returns its number."""
        self._begun += 1
        self._open.add(self._begun)
        return self._begun

    def drop(self, number: int) -> None:
        """A trial ends without a result, or has ended."""
        self._open.discard(number)

    def end(self, number: int, result: result_pb2.TrialResult) -> str | None:
        """A trial ends with a result; says why the run should not go on, None while it should."""
        self._open.discard(number)
        if result.outcome == result_pb2.OUTCOME_PROVIDER_ERROR:
            self._note(result.error, retried=result.calls > 1)
        elif result.outcome <= result_pb2.OUTCOME_LIMIT:
            self.answered = True
        if self.answered or not self._verdict or any(one <= self._verdict_at for one in self._open):
            return None
        return self._verdict

    def _note(self, error: str, *, retried: bool) -> None:
        self._failed += 1
        kind = _PARTICULAR.sub("", error)
        self._alike = self._alike + 1 if kind == self._last else 1
        self._last = kind
        if self._verdict:
            return
        # Too long for the model is about the cases, however many of them come first.
        is_about_all = not retried and not error.startswith("context_length")
        if is_about_all and self._alike >= ALIKE:
            self._verdict = f"no trial was answered, and the first {self._alike} failed alike: {error}"
        elif self._failed >= FAILED:
            self._verdict = (
                f"no trial was answered, and the first {self._failed} failed, the last with {error}"
            )
        self._verdict_at = self._begun


class Streaks:
    """The streaks of the latest runs, by run and epoch: a run that is resumed has another chance."""

    def __init__(self) -> None:
        self._by_run: OrderedDict[tuple[str, int], Streak] = OrderedDict()

    def of(self, run: str, epoch: int) -> Streak:
        """The streak of a run; a new one when it has none."""
        streak = self._by_run.setdefault((run, epoch), Streak())
        self._by_run.move_to_end((run, epoch))
        if len(self._by_run) > _MOST_RUNS:
            self._by_run.popitem(last=False)
        return streak

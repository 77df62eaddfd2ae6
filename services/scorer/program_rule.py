"""``program``: a program of the bundle judges responses, in a box of its own, a batch at a time.

It reads a JSON object a line on its standard input and appends one a line to a file; ``docs/code-tests.md`` is the
contract. What it does not judge has no score: a program that fails never makes a response wrong.
"""

from __future__ import annotations

import io
import math
import tarfile
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson

from benchgen.bundle.programs import MAX_PROGRAM_BYTES, program_key
from benchgen.errors import InvalidInput, NotFound
from benchgen.scoring.rules import RuleScore, bounded, rule_error
from benchgen.scoring.spec import ProgramRule
from services.common.objects import Bucket, ObjectStore
from services.common.sandbox import Archive, Ended, Finished, Job, Provider, run
from services.scorer.code_tests import limits_of
from services.scorer.domain import Subject, TrialKey

PROTOCOL = 1
RESULTS = "/app/output/results.jsonl"
_MOST_KEPT = 4
_MOST_RESULTS = 64 << 20
_MOST_TEXT = 2_000

Scores = dict[TrialKey, RuleScore]


class Programs:
    """Programs of bundles as boxes take them; the last few are kept in memory."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    async def get(self, digest: str) -> bytes:
        """A program's files as a tar.

        :raises InvalidInput: it is not there.
        :raises Unavailable: the object store is away.
        """
        if digest not in self._kept:
            try:
                packed = await self._objects.get(Bucket.TARGETS, program_key(digest))
            except NotFound:
                raise InvalidInput(f"the program {digest[:12]} of the environment is not stored") from None
            self._kept[digest] = _tar(packed)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(digest)
        return self._kept[digest]


def _tar(packed: bytes) -> bytes:
    found = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive, tarfile.open(fileobj=found, mode="w") as tar:
        left = MAX_PROGRAM_BYTES
        for entry in archive.infolist():
            data = archive.read(entry)
            left -= len(data)
            if left < 0:
                raise InvalidInput("the program is larger than a program may be")
            member = tarfile.TarInfo(entry.filename)
            member.size, member.mode = len(data), 0o755
            tar.addfile(member, io.BytesIO(data))
    return found.getvalue()


async def judge(
    provider: Provider, programs: Programs, spec: ProgramRule, subjects: Sequence[Subject]
) -> AsyncIterator[Scores]:
    """Yield the scores of all of them.

    Where the program breaks over a batch, those that it has not judged are given to it one by one: what it breaks over
    must not take the others with it.

    :raises SandboxFailed: there is no box.
    """
    found, why = await _started(provider, programs, spec, subjects)
    left = [subject for subject in subjects if subject.key not in found]
    if found:
        yield found
    if len(subjects) == 1:
        if left:
            yield {left[0].key: rule_error(why)}
        return
    for subject in left:
        alone, why = await _started(provider, programs, spec, [subject])
        yield alone or {subject.key: rule_error(why)}


async def _started(
    provider: Provider, programs: Programs, spec: ProgramRule, subjects: Sequence[Subject]
) -> tuple[Scores, str]:
    """One start of the program: what it judged, and what to say of the rest."""
    assert spec.program is not None, "publishing sets it"
    seconds = spec.limits.seconds
    limits = limits_of(spec.limits, cpu=spec.limits.cpu_seconds or seconds, wall=seconds)
    finished = await run(
        provider,
        Job(
            command=list(spec.command),
            cwd="/app/program",
            env={"BENCHGEN_RESULTS": RESULTS},
            archives=[Archive(await programs.get(spec.program), "/app/program")],
            stdin=b"".join(orjson.dumps(_line(subject)) + b"\n" for subject in subjects),
            limits=limits,
        ),
    )
    found = _read(finished.read(RESULTS, _MOST_RESULTS) or b"", subjects)
    return found, _missing(finished)


def _line(subject: Subject) -> dict[str, Any]:
    return {
        "protocol": PROTOCOL,
        "case_id": subject.case_id,
        "trial": subject.key.trial,
        "response": subject.response,
        "target": subject.values.get("target"),
        "outcome": subject.outcome.name.lower(),
    }


def _missing(finished: Finished) -> str:
    """Why a response has no line."""
    why = "the scoring program wrote no line for this response"
    if finished.ended is not Ended.EXITED or finished.exit_code != 0:
        why = f"the scoring program {finished.describe()}"
    words = finished.stderr.decode(errors="replace").strip().splitlines()
    return f"{why}: {words[-1]}" if words else why


def _read(data: bytes, subjects: Sequence[Subject]) -> Scores:
    """The scores in what a program wrote. Lines that make no sense, or are of no response, are nobody's."""
    trials: dict[str, list[TrialKey]] = defaultdict(list)
    for subject in subjects:
        trials[subject.case_id].append(subject.key)
    found: Scores = {}
    for line in data.splitlines():
        try:
            fields = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        key = _key_of(fields, trials) if isinstance(fields, dict) else None
        if key is not None:
            found[key] = _score(fields) if key not in found else rule_error("the program judged it twice")
    return found


def _key_of(fields: dict[str, Any], trials: dict[str, list[TrialKey]]) -> TrialKey | None:
    case_id = fields.get("case_id")
    keys = trials.get(case_id, []) if isinstance(case_id, str) else []
    if fields.get("trial") is None:
        # Whose it is can be told only where the case was asked once.
        return keys[0] if len(keys) == 1 else None
    return next((key for key in keys if key.trial == fields["trial"]), None)


def _score(fields: dict[str, Any]) -> RuleScore:
    if fields.get("error"):
        return rule_error(f"the scoring program says: {fields['error']}")
    value, verdict = fields.get("value"), fields.get("passed")
    if isinstance(value, bool):
        value = float(value)
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        return rule_error(f"expected a `value` from 0 to 1, found {value!r}"[:200])
    if verdict is not None and not isinstance(verdict, bool):
        return rule_error(f"expected `passed` to be true or false, found {verdict!r}"[:200])
    answer = fields.get("answer")
    explanation = fields.get("explanation") or ""
    return RuleScore(
        float(value),
        value >= 1 if verdict is None else verdict,
        None if answer is None else bounded(str(answer), _MOST_TEXT),
        bounded(str(explanation), _MOST_TEXT),
        None,
    )

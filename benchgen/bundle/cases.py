"""One pass over the rows of a bundle: rendered cases come out, problems go to a log.

Validation and materialisation are both this pass; they differ in what they do with the cases.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

from benchgen.bundle.dataset import Row, formats, read_rows, supported
from benchgen.bundle.digest import canonical_json
from benchgen.bundle.harness import harness_problem
from benchgen.bundle.manifest import CaseRecipe, FewShot, ProgramHarness
from benchgen.bundle.plan import CasePlan, MessagePart, Part, RuleValue, compile_plan
from benchgen.bundle.problems import ProblemLog, did_you_mean, found, listed
from benchgen.bundle.programs import program_problem
from benchgen.bundle.render import RenderError, RenderMemoryError, text_of
from benchgen.bundle.tree import MANIFEST_FILE, BundleTree
from benchgen.bundle.yamldoc import YamlDocument, dotted
from benchgen.scoring.spec import ProgramRule

MAX_ID_CHARACTERS = 256
MAX_CASE_CHARACTERS = 2 << 20
MAX_VALUE_BYTES = 1 << 20
MAX_POOL_ROWS = 200_000
MAX_ABSENT_LINES = 10_000
MAX_POOL_CHARACTERS = 128 << 20

T = TypeVar("T")
Message = dict[str, str]


class Case(NamedTuple):
    """A rendered case.

    ``fields`` are what a program sees beside the messages, None where no program runs. ``rules`` holds what single
    rules take instead of ``target``; ``solution`` is the oracle's answer, None
    where there is no oracle.
    """

    position: int
    id: str
    messages: list[Message]
    fields: dict[str, Any] | None
    target: Any
    rules: dict[str, dict[str, Any]]
    cluster: str | None
    slices: dict[str, str]
    solution: str | None


class _Absent(NamedTuple):
    """A field that a part asked for and rows did not have."""

    part: Part
    name: str


class _Faults:
    """Problems of rows. A field that no row has is one problem of the manifest, not one of each row."""

    def __init__(self, document: YamlDocument, log: ProblemLog) -> None:
        self._document = document
        self._log = log
        self._columns: dict[str, set[str]] = {}
        self._absent: dict[str, dict[_Absent, list[int]]] = {}

    def saw(self, file: str, row: Row) -> None:
        """Notes the fields of a row."""
        columns = self._columns.setdefault(file, set())
        if not row.data.keys() <= columns:
            columns.update(row.data)

    def add(self, file: str, row: Row, part: Part, error: RenderError) -> None:
        """Notes that a part yielded nothing usable on a row."""
        absent = part.compiled.fields - row.data.keys()
        if absent:
            for name in absent:
                lines = self._absent.setdefault(file, {}).setdefault(_Absent(part, name), [])
                if len(lines) < MAX_ABSENT_LINES:
                    lines.append(row.line)
            return
        place = dotted(part.place)
        group = f"{file} {place}"
        self._log.add(file, str(error), line=row.line, field=place, group=group, kind=error.kind)

    def close(self) -> None:
        """Puts what could only be judged at the end into the log."""
        for file, absences in self._absent.items():
            columns = self._columns.get(file, set())
            for (part, name), lines in absences.items():
                place = dotted(part.place)
                if name not in columns:
                    known = f"{listed(columns)}" if columns else "none"
                    message = (
                        f'expected a field of {file} ({known}), found "{name}"{did_you_mean(name, columns)}'
                    )
                    self._log.add(MANIFEST_FILE, message, line=self._document.line(part.place), field=place)
                    continue
                for line in lines:
                    message = f"expected this field, which {place} needs, found none in this row"
                    self._log.add(file, message, line=line, field=name, group=f"{file} {place} {name}")


class _Attempt:
    """The rendering of one row: goes on after a problem, so that all of them are found."""

    def __init__(self, file: str, row: Row, faults: _Faults) -> None:
        self._file = file
        self._row = row
        self._faults = faults
        self.failed = False

    def value(self, part: Part, convert: Callable[[Any], T], fallback: T) -> T:
        """What a part yields, converted; ``fallback`` after a problem."""
        return self._guarded(part, lambda data: convert(part.value(data)), fallback)

    def text(self, part: Part) -> str:
        """What a part yields as text; empty after a problem."""
        return self._guarded(part, part.text, "")

    def _guarded(self, part: Part, work: Callable[[Mapping[str, Any]], T], fallback: T) -> T:
        try:
            return work(self._row.data)
        except RenderError as error:
            self.failed = True
            self._faults.add(self._file, self._row, part, error)
            return fallback

    def messages(self, parts: tuple[MessagePart, ...]) -> list[Message]:
        """The messages of the parts; content must not be empty."""
        return [
            {"role": part.role, "content": self._guarded(part.content, _filled(part.content), "")}
            for part in parts
        ]


def _filled(part: Part) -> Callable[[Mapping[str, Any]], str]:
    def text(data: Mapping[str, Any]) -> str:
        content = part.text(data)
        if not content.strip():
            raise RenderError("expected a message with content, found an empty one")
        return content

    return text


class CasePass:
    """The pass over the rows of one bundle.

    Missing files, bad templates and everything else that the manifest alone tells are in the log after the
    constructor; iterating adds what the rows tell.
    """

    def __init__(self, tree: BundleTree, recipe: CaseRecipe, document: YamlDocument, log: ProblemLog) -> None:
        self._tree = tree
        self._log = log
        self._document = document
        self._faults = _Faults(document, log)
        self._dataset = recipe.dataset
        self._check_harness(recipe)
        self._check_programs(recipe)
        self._plan = compile_plan(recipe, document, log)

    def cases(self) -> Iterator[Case]:
        """The cases in dataset order up to the first problem; from there on rows are only checked."""
        few_shot = self._dataset.few_shot
        readable = self._readable(self._dataset.file, "dataset", "file")
        examples = readable
        if few_shot is not None and few_shot.file is not None:
            examples = self._readable(few_shot.file, "dataset", "few_shot", "file")
        shots = self._shots(self._plan, few_shot) if few_shot is not None and examples else None
        if readable:
            yield from self._rendered(self._plan, shots)
        self._faults.close()

    def _check_harness(self, recipe: CaseRecipe) -> None:
        """Makes sure that the program is there, and that nothing which it must not see is in its folder."""
        harness = recipe.harness
        if not isinstance(harness, ProgramHarness) or self._document.is_broken(("harness", "files")):
            return
        problem = harness_problem(self._tree, recipe)
        if problem is not None:
            self._blame(problem, "harness", "files")

    def _check_programs(self, recipe: CaseRecipe) -> None:
        """Makes sure that the folders of programs are there."""
        for index, rule in enumerate(recipe.scoring):
            place = ("scoring", index, "files")
            if not isinstance(rule, ProgramRule) or self._document.is_broken(place):
                continue
            problem = program_problem(self._tree, rule.files)
            if problem is not None:
                self._blame(problem, *place)

    def _readable(self, file: str, *place: str) -> bool:
        """Whether a dataset file is there and of a known format; a problem where it is not."""
        if self._document.is_broken(place):
            return False
        if file not in self._tree:
            near = did_you_mean(file, self._tree.paths)
            self._blame(f'expected a file of the bundle, found none at "{file}"{near}', *place)
            return False
        if not supported(file):
            self._blame(f'expected one of {formats()}, found "{file}"', *place)
            return False
        return True

    def _blame(self, message: str, *place: str | int) -> None:
        """Puts a problem of the manifest into the log."""
        self._log.add(MANIFEST_FILE, message, line=self._document.line(place), field=dotted(place))

    def _rendered(self, plan: CasePlan, shots: _Shots | None) -> Iterator[Case]:
        file = self._dataset.file
        lines: dict[str, int] = {}
        position = -1
        known_problems = len(self._log)
        for position, row in enumerate(read_rows(self._tree, file, self._log)):
            self._faults.saw(file, row)
            attempt = _Attempt(file, row, self._faults)
            case = _render(plan, attempt, position, shots.drawn(position) if shots else [])
            if plan.id is not None and case.id:
                self._check_id(case.id, row, lines)
            if sum(len(message["content"]) for message in case.messages) > MAX_CASE_CHARACTERS:
                message = f"expected a case of at most {MAX_CASE_CHARACTERS:,} characters, found more"
                self._log.add(file, message, line=row.line, group="too large")
            elif not attempt.failed and not self._log:
                yield case
        if position < 0 and len(self._log) == known_problems:
            self._log.add(file, "expected at least one row, found none")

    def _check_id(self, case_id: str, row: Row, lines: dict[str, int]) -> None:
        if case_id not in lines:
            lines[case_id] = row.line
        else:
            message = f'expected each id once, found "{case_id}" again (first at line {lines[case_id]})'
            self._log.add(self._dataset.file, message, line=row.line, field=self._dataset.id)

    def _shots(self, plan: CasePlan, few_shot: FewShot) -> _Shots:
        """Renders every example of the pool once; they are drawn from case by case."""
        same = few_shot.file is None or few_shot.file == self._dataset.file
        file = self._dataset.file if few_shot.file is None else few_shot.file
        pool: list[list[Message]] = []
        size = 0
        # The rows of the dataset itself report their problems when they are rendered as cases.
        faults = _Faults(self._document, ProblemLog()) if same else self._faults
        answer_faults = self._faults if few_shot.answer is not None else faults
        for row in read_rows(self._tree, file, ProblemLog() if same else self._log):
            self._faults.saw(file, row)
            turns = _Attempt(file, row, faults).messages(plan.turns)
            if plan.answer is not None:
                answer = _Attempt(file, row, answer_faults).text(plan.answer)
                turns.append({"role": "assistant", "content": answer})
            pool.append(turns)
            size += sum(len(turn["content"]) for turn in turns)
            if len(pool) > MAX_POOL_ROWS or size > MAX_POOL_CHARACTERS:
                bound = f"{MAX_POOL_ROWS:,} examples and {MAX_POOL_CHARACTERS:,} characters"
                self._log.add(file, f"expected at most {bound}, found more", line=row.line)
                break
        available = len(pool) - 1 if same else len(pool)
        place = ("dataset", "few_shot", "count")
        if available < few_shot.count and not self._document.is_broken(place):
            offered = f"the {max(available, 0)} examples that {file} offers"
            self._blame(f"expected at most {offered}, found {few_shot.count}", *place)
        return _Shots(pool, few_shot, excluding=same)


class _Shots:
    """Draws the few-shot examples, case after case in document order from one seeded stream."""

    def __init__(self, pool: list[list[Message]], few_shot: FewShot, *, excluding: bool) -> None:
        self._pool = pool
        self._count = few_shot.count
        self._excluding = excluding
        # Reproducible, not secret.
        self._random = random.Random(few_shot.seed)  # noqa: S311

    def drawn(self, position: int) -> list[Message]:
        """The turns of the examples for the case at a position, which is no example of itself."""
        available = len(self._pool) - 1 if self._excluding else len(self._pool)
        if available < self._count:
            return []
        picks = self._random.sample(range(available), self._count)
        if self._excluding:
            picks = [pick + 1 if pick >= position else pick for pick in picks]
        return [turn for pick in picks for turn in self._pool[pick]]


def _render(plan: CasePlan, attempt: _Attempt, position: int, shots: list[Message]) -> Case:
    rules: dict[str, dict[str, Any]] = {}
    for rule in plan.rules:
        rules[rule.name] = {name: attempt.value(part, _RULE_VALUES[name], None) for name, part in rule.values}
    slices = {name: attempt.value(part, _label, None) for name, part in plan.slices}
    return Case(
        position=position,
        id=str(position) if plan.id is None else attempt.value(plan.id, _case_id, ""),
        messages=[*attempt.messages(plan.system), *shots, *attempt.messages(plan.turns)],
        fields=None
        if plan.fields is None
        else {name: attempt.value(part, _field_value, None) for name, part in plan.fields},
        target=None if plan.target is None else attempt.value(plan.target, _json_value, None),
        rules=rules,
        cluster=None if plan.cluster is None else attempt.value(plan.cluster, _label, None),
        slices={name: label for name, label in slices.items() if label is not None},
        solution=None if plan.oracle is None else attempt.text(plan.oracle),
    )


# --------------------------------------------------------------------------------- what values become


def _case_id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RenderError(f"expected an id that is a text or a whole number, found {found(value)}")
    text = str(value)
    if not text or len(text) > MAX_ID_CHARACTERS or not text.isprintable():
        raise RenderError(
            f"expected an id of 1 to {MAX_ID_CHARACTERS} printable characters, found {found(value)}"
        )
    return text


def _label(value: Any) -> str | None:
    """A cluster or slice: a short text, None for null."""
    if value is None:
        return None
    if isinstance(value, list | tuple | dict):
        raise RenderError(f"expected a single value, found {found(value)}")
    text = text_of(value)
    if len(text) > MAX_ID_CHARACTERS:
        raise RenderError(f"expected at most {MAX_ID_CHARACTERS} characters, found {len(text):,}")
    return text


def _field_value(value: Any) -> Any:
    """What a program sees of a row: any JSON value."""
    return None if value is None else _json_value(value)


def _json_value(value: Any) -> Any:
    """A target: any JSON value but null."""
    if value is None:
        raise RenderError("expected a target, found nothing (null)")
    try:
        if not isinstance(value, str):
            value = json.loads(json.dumps(value, allow_nan=False, default=_json_default))
        size = len(canonical_json(value))
    except (ValueError, TypeError, RecursionError) as error:
        raise RenderError(f"expected a value that JSON can hold, found: {error}") from None
    except MemoryError:
        raise RenderMemoryError from None
    if size > MAX_VALUE_BYTES:
        raise RenderError(f"expected at most {MAX_VALUE_BYTES:,} bytes, found {size:,}")
    return value


def _json_default(value: Any) -> Any:
    """Values of Parquet that JSON has no own form for."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"a {type(value).__name__}")


def _options(value: Any) -> list[str]:
    """The texts of the options of a choice."""
    if not isinstance(value, list | tuple) or not value:
        raise RenderError(f"expected a list of option texts, found {found(value)}")
    if any(isinstance(option, list | tuple | dict) for option in value):
        raise RenderError("expected a list of option texts, found a list of lists or mappings")
    options = [text_of(option) for option in value]
    _json_value(options)
    return options


def _code(value: Any) -> str:
    """Source code."""
    if not isinstance(value, str):
        raise RenderError(f"expected source code, found {found(value)}")
    _json_value(value)
    return value


def _entry_point(value: Any) -> str:
    """The name of something that code defines."""
    if not isinstance(value, str) or not value.isidentifier():
        raise RenderError(f"expected the name of a function or class, found {found(value)}")
    return value


def _tests(value: Any) -> Any:
    """Tests: code, or what a program is given and has to print."""
    if isinstance(value, str):
        if not value.strip():
            raise RenderError("expected tests, found an empty text")
        return _code(value)
    if not isinstance(value, list | tuple) or not value:
        raise RenderError(f"expected source code, or a list of {{stdin, stdout}}, found {found(value)}")
    tests = []
    for test in value:
        if not isinstance(test, Mapping) or not {"stdout"} <= test.keys() <= {"stdin", "stdout"}:
            raise RenderError(f"expected a list of {{stdin, stdout}}, found {found(test)} in it")
        if not all(isinstance(text, str) for text in test.values()):
            raise RenderError("expected `stdin` and `stdout` to be texts; write numbers in quotes")
        tests.append({"stdin": test.get("stdin", ""), "stdout": test["stdout"]})
    _json_value(tests)
    return tests


_RULE_VALUES: Mapping[RuleValue, Callable[[Any], Any]] = {
    "target": _json_value,
    "choices": _options,
    "setup": _code,
    "tests": _tests,
    "entry_point": _entry_point,
}

"""Everything that a manifest computes from a row, compiled once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from benchgen.bundle.manifest import CaseRecipe, ProgramHarness
from benchgen.bundle.problems import Problem, ProblemLog
from benchgen.bundle.render import Field, RenderError, Template, compile_source, is_template, text_of
from benchgen.bundle.tree import MANIFEST_FILE
from benchgen.bundle.yamldoc import Path, YamlDocument, dotted
from benchgen.scoring.spec import CodeTests, FastSpec, ProgramRule, Regex, RuleSpec


@dataclass(frozen=True, slots=True)
class Part:
    """One source of the manifest, compiled, with its place there."""

    place: Path
    compiled: Field | Template

    def text(self, row: Mapping[str, Any]) -> str:
        """What it yields on a row, as text; raises ``RenderError``."""
        if isinstance(self.compiled, Template):
            return self.compiled.text(row)
        return text_of(self.compiled.value(row))

    def value(self, row: Mapping[str, Any]) -> Any:
        """What it yields on a row, in its own type; raises ``RenderError``."""
        return self.compiled.value(row)


@dataclass(frozen=True, slots=True)
class MessagePart:
    """One message: its role and what its content is made from."""

    role: str
    content: Part


RuleValue = Literal["target", "choices", "setup", "tests", "entry_point"]
_RULE_VALUES: tuple[RuleValue, ...] = ("target", "choices", "setup", "tests", "entry_point")


@dataclass(frozen=True, slots=True)
class RuleParts:
    """What one rule takes from a row instead of what the dataset gives to all."""

    name: str
    values: tuple[tuple[RuleValue, Part], ...]


@dataclass(frozen=True, slots=True)
class CasePlan:
    """The compiled sources of a manifest, without those that have problems.

    ``fields`` are what a program sees of a row, None where no program runs. ``answer`` is what the assistant says in
    few-shot examples.
    """

    system: tuple[MessagePart, ...]
    turns: tuple[MessagePart, ...]
    fields: tuple[tuple[str, Part], ...] | None
    id: Part | None
    target: Part | None
    cluster: Part | None
    slices: tuple[tuple[str, Part], ...]
    rules: tuple[RuleParts, ...]
    oracle: Part | None
    answer: Part | None


class _Compiler:
    def __init__(self, document: YamlDocument, log: ProblemLog) -> None:
        self._document = document
        self._log = log

    def problem(self, message: str, *place: str | int, kind: type[Problem] = Problem) -> None:
        line = self._document.line(place)
        self._log.add(MANIFEST_FILE, message, line=line, field=dotted(place), kind=kind)

    def source(self, source: str | None, *place: str | int) -> Part | None:
        """A field or a template; None where there is none, or where it has a problem."""
        return None if source is None else self._part(compile_source, source, place)

    def message(self, role: str, source: str, *place: str | int) -> list[MessagePart]:
        """A message; its source is a template even where it has no Jinja in it."""
        part = self._part(Template, source, place)
        return [] if part is None else [MessagePart(role, part)]

    def plain(self, names: Sequence[str], *place: str) -> Iterator[tuple[str, Part]]:
        """Fields that are never templates: the slices, and what a program sees."""
        for index, name in enumerate(names):
            part = self._part(Field, name, (*place, index))
            if part is not None:
                yield name, part

    def _part(self, compiled: Callable[[str], Field | Template], source: str, place: Path) -> Part | None:
        if self._document.is_broken(place):
            return None
        try:
            return Part(place, compiled(source))
        except RenderError as error:
            self.problem(str(error), *place, kind=error.kind)
            return None


def compile_plan(recipe: CaseRecipe, document: YamlDocument, log: ProblemLog) -> CasePlan:
    """Compiles the sources of a manifest; those that cannot be compiled are left out and put in the log."""
    compiler = _Compiler(document, log)
    messages = _messages(recipe, compiler)
    # System messages lead; what follows is repeated by each few-shot example.
    leading = next((n for n, message in enumerate(messages) if message.role != "system"), len(messages))
    dataset = recipe.dataset
    harness = recipe.harness
    target = compiler.source(dataset.target, "dataset", "target")
    oracle = compiler.source(recipe.oracle, "oracle")
    return CasePlan(
        system=tuple(messages[:leading]),
        turns=tuple(messages[leading:]),
        fields=tuple(compiler.plain(harness.fields, "harness", "fields"))
        if isinstance(harness, ProgramHarness)
        else None,
        id=compiler.source(dataset.id, "dataset", "id"),
        target=target,
        cluster=compiler.source(dataset.cluster, "dataset", "cluster"),
        slices=tuple(compiler.plain(dataset.slices, "dataset", "slices")),
        rules=_rules(recipe, compiler),
        oracle=oracle,
        answer=_answer(recipe, compiler, oracle, target),
    )


def _answer(recipe: CaseRecipe, compiler: _Compiler, oracle: Part | None, target: Part | None) -> Part | None:
    few_shot = recipe.dataset.few_shot
    if few_shot is None:
        return None
    if few_shot.answer is not None:
        return compiler.source(few_shot.answer, "dataset", "few_shot", "answer")
    if recipe.oracle is not None:
        return oracle
    if recipe.dataset.target is None:
        message = "expected an `answer` for the examples, since there is neither an oracle nor a target"
        compiler.problem(message, "dataset", "few_shot")
    return target


def _messages(recipe: CaseRecipe, compiler: _Compiler) -> list[MessagePart]:
    harness = recipe.harness
    messages: list[MessagePart] = []
    if harness.system is not None:
        messages += compiler.message("system", harness.system, "harness", "system")
    if harness.prompt is not None:
        if is_template(harness.prompt):
            messages += compiler.message("user", harness.prompt, "harness", "prompt")
        else:
            part = compiler.source(harness.prompt.strip(), "harness", "prompt")
            messages += [MessagePart("user", part)] if part else []
    for index, message in enumerate(harness.messages):
        place = ("harness", "messages", index, "content")
        messages += compiler.message(message.role, message.content, *place)
    return messages


def _rules(recipe: CaseRecipe, compiler: _Compiler) -> tuple[RuleParts, ...]:
    rules: list[RuleParts] = []
    for index, rule in enumerate(recipe.scoring):
        values: list[tuple[RuleValue, Part]] = []
        for name in _RULE_VALUES:
            part = compiler.source(getattr(rule, name, None), "scoring", index, name)
            if part is not None:
                values.append((name, part))
        if _needs_target(rule) and rule.target is None and recipe.dataset.target is None:
            message = "expected a target for this rule: set `dataset.target`, or `target` here"
            compiler.problem(message, "scoring", index)
        if isinstance(rule, ProgramRule) and rule.program is not None:
            compiler.problem("expected no such field: publishing sets it", "scoring", index, "program")
        if isinstance(rule, CodeTests) and rule.join == "auto" and rule.setup and rule.entry_point is None:
            message = (
                "expected an `entry_point`, which tells a whole answer from one that goes on; or set `join`"
            )
            compiler.problem(message, "scoring", index, "join")
        if values:
            rules.append(RuleParts(rule.name, tuple(values)))
    return tuple(rules)


def _needs_target(rule: RuleSpec) -> TypeGuard[FastSpec]:
    """Whether a rule compares with a target."""
    if isinstance(rule, CodeTests | ProgramRule):
        return False
    return not (isinstance(rule, Regex) and rule.pattern is not None)

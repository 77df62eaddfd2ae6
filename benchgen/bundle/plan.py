"""Everything that a manifest computes from a row, compiled once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchgen.bundle.manifest import EnvironmentManifest
from benchgen.bundle.problems import ProblemLog
from benchgen.bundle.render import Field, RenderError, Template, compile_source, is_template, text_of
from benchgen.bundle.tree import MANIFEST_FILE
from benchgen.bundle.yamldoc import Path, YamlDocument, dotted
from benchgen.scoring.spec import Choice, Regex


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


@dataclass(frozen=True, slots=True)
class RuleParts:
    """What one rule takes from a row instead of what the dataset gives to all."""

    name: str
    target: Part | None
    choices: Part | None


@dataclass(frozen=True, slots=True)
class CasePlan:
    """The compiled sources of a manifest. ``answer`` is what the assistant says in few-shot examples."""

    system: tuple[MessagePart, ...]
    turns: tuple[MessagePart, ...]
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
        self.failed = False

    def problem(self, message: str, *place: str | int) -> None:
        line = self._document.line(place)
        self._log.add(MANIFEST_FILE, message, line=line, field=dotted(place))
        self.failed = True

    def source(self, source: str | None, *place: str | int) -> Part | None:
        """A field or a template; None where there is none, or where it has a problem."""
        if source is None:
            return None
        try:
            return Part(place, compile_source(source))
        except RenderError as error:
            self.problem(str(error), *place)
            return None

    def message(self, role: str, source: str, *place: str | int) -> list[MessagePart]:
        """A message; its source is a template even where it has no Jinja in it."""
        try:
            return [MessagePart(role, Part(place, Template(source)))]
        except RenderError as error:
            self.problem(str(error), *place)
            return []


def compile_plan(manifest: EnvironmentManifest, document: YamlDocument, log: ProblemLog) -> CasePlan | None:
    """Compiles the sources of a manifest; None, with every problem in the log, where some have problems."""
    compiler = _Compiler(document, log)
    messages = _messages(manifest, compiler)
    # System messages lead; what follows is repeated by each few-shot example.
    leading = next((n for n, message in enumerate(messages) if message.role != "system"), len(messages))
    dataset = manifest.dataset
    target = compiler.source(dataset.target, "dataset", "target")
    oracle = compiler.source(manifest.oracle, "oracle")
    answer = None
    if dataset.few_shot is not None:
        own = compiler.source(dataset.few_shot.answer, "dataset", "few_shot", "answer")
        answer = own or oracle or target
        if answer is None and not compiler.failed:
            message = "expected an `answer` for the examples, since there is neither an oracle nor a target"
            compiler.problem(message, "dataset", "few_shot")
    plan = CasePlan(
        system=tuple(messages[:leading]),
        turns=tuple(messages[leading:]),
        id=compiler.source(dataset.id, "dataset", "id"),
        target=target,
        cluster=compiler.source(dataset.cluster, "dataset", "cluster"),
        slices=tuple(
            (name, Part(("dataset", "slices", index), Field(name)))
            for index, name in enumerate(dataset.slices)
        ),
        rules=_rules(manifest, compiler),
        oracle=oracle,
        answer=answer,
    )
    return None if compiler.failed else plan


def _messages(manifest: EnvironmentManifest, compiler: _Compiler) -> list[MessagePart]:
    harness = manifest.harness
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


def _rules(manifest: EnvironmentManifest, compiler: _Compiler) -> tuple[RuleParts, ...]:
    rules: list[RuleParts] = []
    for index, rule in enumerate(manifest.scoring):
        target = compiler.source(rule.target, "scoring", index, "target")
        source = rule.choices if isinstance(rule, Choice) else None
        choices = compiler.source(source, "scoring", index, "choices")
        needs_target = not (isinstance(rule, Regex) and rule.pattern is not None)
        if needs_target and rule.target is None and manifest.dataset.target is None:
            message = f'expected a target for the rule "{rule.name}": set `dataset.target`, or `target` here'
            compiler.problem(message, "scoring", index)
        if target is not None or choices is not None:
            rules.append(RuleParts(rule.name, target, choices))
    return tuple(rules)

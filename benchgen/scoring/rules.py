"""Judging a response by a rule.

::

    response -> without reasoning -> extracted -> normalised -> compared with the target -> RuleScore

A rule that cannot judge (its pattern takes too long, its target makes no sense) gives no score and an error
that begins with ``rule_error``, never 0: that would blame the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, assert_never

from benchgen.scoring.choices import LETTERS, choose, find_words, target_index
from benchgen.scoring.extract import CompiledExtract, compile_extract, strip_thinking
from benchgen.scoring.jsonmatch import JsonComparison
from benchgen.scoring.jsontext import MISSING, find_json, json_text, parse_json, too_deep
from benchgen.scoring.normalise import Normaliser, compile_normalise
from benchgen.scoring.numbers import as_number, last_number, within
from benchgen.scoring.patterns import PATTERN_TIMEOUT_S, compile_pattern
from benchgen.scoring.spec import (
    F1,
    Choice,
    CodeTests,
    ColumnRule,
    ExactMatch,
    FastSpec,
    Includes,
    JsonMatch,
    Numeric,
    ProgramRule,
    Regex,
    RuleSpec,
    SlowSpec,
)

MAX_RESPONSE_CHARS = 500_000
"""Of a longer response only the end is judged, so many characters of it."""

MAX_ANSWER_CHARS = 2_000
"""A longer answer is kept shortened in its score; the whole response is stored elsewhere."""

MAX_EXPLANATION_CHARS = 200


_TOO_SLOW = f"pattern took longer than {PATTERN_TIMEOUT_S} s"


class RuleScore(NamedTuple):
    """What one rule says about one response. A tuple, because it is made millions of times."""

    value: float | None  # None: the rule could not judge, see `error`
    passed: bool | None  # None with `value`
    answer: str | None  # what was taken out of the response; None when nothing was found
    explanation: str  # why it failed, at most MAX_EXPLANATION_CHARS; empty when there is nothing to say
    error: str | None  # begins with "rule_error: "; None when the rule could judge

    @property
    def too_slow(self) -> bool:
        """Whether a pattern of the rule took longer than it may."""
        return self.error == f"rule_error: {_TOO_SLOW}"


Judge = Callable[[str, Any, Sequence[str] | None], RuleScore]
"""(answer, target, choices) -> score. Raises :class:`RuleFailed` when it cannot judge."""


class RuleFailed(Exception):
    """The rule cannot judge this response; the message says why."""


class Answers:
    """Takes the answer of a rule out of responses."""

    __slots__ = ("_extract", "_keeps_thinking")

    def __init__(self, spec: FastSpec | CodeTests) -> None:
        self._keeps_thinking = spec.think == "keep"
        self._extract: CompiledExtract | None = compile_extract(spec.extract)

    def find(self, response: str) -> str | RuleScore:
        """The answer; where there is none, the score that says so.

        :raises TimeoutError: a pattern takes too long.
        """
        text: str | None = response
        if not self._keeps_thinking:
            text = strip_thinking(response)
            if text is None:
                return failed(None, "no answer found: the reasoning never ends")
        assert text is not None
        if len(text) > MAX_RESPONSE_CHARS:
            text = text[-MAX_RESPONSE_CHARS:]
        if self._extract is not None:
            text = self._extract.find(text)
            if text is None:
                return failed(None, f"no answer found: {self._extract.nothing}")
        return text


class SlowRule:
    """A rule that needs more than a moment: it is judged after a response is stored, elsewhere."""

    __slots__ = ("_answers", "name", "primary", "spec")

    def __init__(self, spec: SlowSpec, *, primary: bool) -> None:
        self.name: str = spec.name
        self.primary = primary
        self.spec = spec
        self._answers = Answers(spec) if isinstance(spec, CodeTests) else None

    def answer(self, response: str) -> str | RuleScore:
        """What of a response is judged; where there is nothing, the score that says so. Never raises."""
        if self._answers is None:
            return response
        try:
            return self._answers.find(response)
        except TimeoutError:
            return rule_error(_TOO_SLOW)


class CompiledRule:
    """A rule that is ready to judge. It has no state: threads may share it."""

    __slots__ = ("_answers", "_judge", "name", "primary")

    def __init__(self, spec: FastSpec, *, primary: bool) -> None:
        self.name: str = spec.name
        self.primary = primary
        self._answers = Answers(spec)
        self._judge = _compile_judge(spec)

    def score(self, response: str, target: Any, choices: Sequence[str] | None = None) -> RuleScore:
        """The verdict on ``response``. Never raises.

        ``target`` is any JSON value; a list means that any of its items is right, except for ``json_match``.
        ``choices`` are the texts of the options, if the rule is a ``choice`` and they are known.
        """
        try:
            return self._score(response, target, choices)
        except TimeoutError:
            return rule_error(_TOO_SLOW)
        except RuleFailed as error:
            return rule_error(str(error))
        except Exception as error:  # a fault of ours must not stop the results of a whole batch
            return rule_error(f"{type(error).__name__}: {error}")

    def _score(self, response: str, target: Any, choices: Sequence[str] | None) -> RuleScore:
        answer = self._answers.find(response)
        return self._judge(answer, target, choices) if isinstance(answer, str) else answer


Rule = CompiledRule | SlowRule


def compile_rules(specs: Sequence[RuleSpec]) -> list[Rule]:
    """The rules in the same order. Exactly one is primary: the one that says so, else the first."""
    primary = next((spec.name for spec in specs if spec.primary), specs[0].name if specs else "")
    return [
        SlowRule(spec, primary=spec.name == primary)
        if isinstance(spec, CodeTests | ProgramRule | ColumnRule)
        else CompiledRule(spec, primary=spec.name == primary)
        for spec in specs
    ]


def rule_error(why: str) -> RuleScore:
    """The rule could not judge."""
    return RuleScore(None, None, None, "", _short(f"rule_error: {why}"))


def passed(answer: str | None) -> RuleScore:
    """The response is right."""
    return RuleScore(1.0, True, _kept(answer), "", None)


def failed(answer: str | None, explanation: str, *, most: int = MAX_EXPLANATION_CHARS) -> RuleScore:
    """The response is wrong.

    :param most: characters of the explanation that are kept.
    """
    return RuleScore(0.0, False, _kept(answer), bounded(explanation, most), None)


def _kept(answer: str | None) -> str | None:
    return None if answer is None else bounded(answer, MAX_ANSWER_CHARS)


def _short(text: str) -> str:
    return bounded(text, MAX_EXPLANATION_CHARS)


def bounded(text: str, limit: int) -> str:
    """A text that every store and every message takes: not too long, no NUL, no half of a surrogate pair."""
    if len(text) > limit:
        text = f"{text[: limit - 3]}..."
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\0", "\ufffd") if "\0" in text else text


def _shown(text: str) -> str:
    """An answer or target in an explanation."""
    if not text:
        return "nothing"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _differs(answer: str, targets: Sequence[str]) -> str:
    wanted = _shown(targets[0])
    if len(targets) > 1:
        wanted = f"{wanted} or {len(targets) - 1} other"
    return f"expected {wanted}, got {_shown(answer)}"


def _targets(target: Any) -> list[Any]:
    """The accepted targets: the items of a list, or the one."""
    targets = target if isinstance(target, list | tuple) else [target]
    if not targets:
        raise RuleFailed("expected a target, found an empty list")
    return list(targets)


def _text(target: Any) -> str:
    if isinstance(target, str):
        return target
    if isinstance(target, bool | int | float):
        return json_text(target)
    kind = "none" if target is None else f"a {type(target).__name__}"
    raise RuleFailed(f"expected a text as target, found {kind}")


def _compile_judge(spec: FastSpec) -> Judge:
    normalise = compile_normalise(spec.normalise)
    match spec:
        case ExactMatch():
            return _exact_match(normalise)
        case Includes():
            return _includes(spec, normalise)
        case Regex():
            return _regex(spec, normalise)
        case Choice():
            return _choice(normalise)
        case Numeric():
            return _numeric(spec, normalise)
        case F1():
            return _f1(spec, normalise)
        case JsonMatch():
            return _json_match(spec, normalise)
        case _:
            assert_never(spec)


def _exact_match(normalise: Normaliser) -> Judge:
    def judge(answer: str, target: Any, _: Sequence[str] | None) -> RuleScore:
        answer = normalise(answer)
        if isinstance(target, str):
            wanted = normalise(target)
            return passed(answer) if answer == wanted else failed(answer, _differs(answer, [wanted]))
        targets = [normalise(_text(item)) for item in _targets(target)]
        return passed(answer) if answer in targets else failed(answer, _differs(answer, targets))

    return judge


def _includes(spec: Includes, normalise: Normaliser) -> Judge:
    def judge(answer: str, target: Any, _: Sequence[str] | None) -> RuleScore:
        targets = [normalise(_text(item)) for item in _targets(target)]
        if not all(targets):
            raise RuleFailed("expected a target that is not empty after normalisation")
        normal = normalise(answer)
        missing = [
            item for item in targets if (find_words(normal, item) < 0 if spec.words else item not in normal)
        ]
        if not missing or (spec.mode == "any" and len(missing) < len(targets)):
            return passed(answer)
        return failed(answer, f"not found in the response: {', '.join(map(_shown, missing[:3]))}")

    return judge


def _regex(spec: Regex, normalise: Normaliser) -> Judge:
    fixed = None if spec.pattern is None else [compile_pattern(spec.pattern, spec.flags)]

    def judge(answer: str, target: Any, _: Sequence[str] | None) -> RuleScore:
        patterns = fixed
        if patterns is None:
            patterns = [compile_pattern(_text(item), spec.flags) for item in _targets(target)]
        normal = normalise(answer)
        for pattern in patterns:
            search = pattern.search if spec.match == "search" else pattern.fullmatch
            match = search(normal, timeout=PATTERN_TIMEOUT_S)
            if match is not None:
                return passed(match[0])
        return failed(None, f"no match for {_shown(patterns[0].pattern)}")

    return judge


def _choice(normalise: Normaliser) -> Judge:
    def judge(answer: str, target: Any, choices: Sequence[str] | None) -> RuleScore:
        options = None if choices is None else [_text(option) for option in choices]
        if options is not None and not 1 <= len(options) <= len(LETTERS):
            raise RuleFailed(f"expected 1 to {len(LETTERS)} choices, found {len(options)}")
        right: list[int] = []
        for item in _targets(target):
            index = target_index(item, options, normalise)
            if index is None:
                raise RuleFailed(f"expected a target that names a choice, found {_shown(str(item))}")
            right.append(index)
        chosen = choose(answer, options, normalise)
        if chosen.option is None:
            return failed(None, chosen.problem)
        letter = LETTERS[chosen.option]
        if chosen.option in right:
            return passed(letter)
        return failed(letter, _differs(letter, [LETTERS[index] for index in right]))

    return judge


def _numeric(spec: Numeric, normalise: Normaliser) -> Judge:
    exact = not spec.abs_tol and not spec.rel_tol

    def judge(answer: str, target: Any, _: Sequence[str] | None) -> RuleScore:
        answer = normalise(answer)
        # Most answers and targets are whole numbers, which need no search and no decimals.
        if exact and isinstance(target, str) and _is_whole(answer) and _is_whole(target):
            return (
                passed(answer) if int(answer) == int(target) else failed(answer, _differs(answer, [target]))
            )
        targets = [(item, as_number(item)) for item in _targets(target)]
        found = last_number(answer)
        for item, wanted in targets:
            if wanted is None:
                raise RuleFailed(f"expected a number as target, found {_shown(str(item))}")
            if found is not None and within(found.value, wanted, spec.abs_tol, spec.rel_tol):
                return passed(found.text)
        if found is None:
            return failed(None, f"no number found in {_shown(answer.strip())}")
        return failed(found.text, _differs(found.text, [str(item) for item, _ in targets]))

    return judge


def _is_whole(text: str) -> bool:
    return len(text) < 16 and text.isdecimal()


def _f1(spec: F1, normalise: Normaliser) -> Judge:
    def judge(answer: str, target: Any, _: Sequence[str] | None) -> RuleScore:
        words = normalise(answer).split()
        texts = [_text(item) for item in _targets(target)]
        scores = [word_f1(words, normalise(text).split()) for text in texts]
        best = max(scores)
        if best >= spec.threshold:
            return RuleScore(best, True, _kept(answer), "", None)
        explanation = f"F1 {best:.2f} of {spec.threshold:g}: {_differs(answer, [texts[scores.index(best)]])}"
        return RuleScore(best, False, _kept(answer), _short(explanation), None)

    return judge


def word_f1(answer: Sequence[str], target: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of words, 0 to 1; two empty lists agree."""
    if not answer or not target:
        return float(not answer and not target)
    common = (Counter(answer) & Counter(target)).total()
    return 2 * common / (len(answer) + len(target))


def _json_match(spec: JsonMatch, normalise: Normaliser) -> Judge:
    comparison = JsonComparison(spec, normalise)

    def judge(answer: str, target: Any, _: Sequence[str] | None) -> RuleScore:
        if isinstance(target, str):
            target = parse_json(target)
        if target is MISSING or too_deep(target):
            raise RuleFailed("expected a JSON value as target")
        if comparison.has_nothing_of(target):
            raise RuleFailed("expected a target with at least one of the fields of the rule")
        value = find_json(answer)
        if value is MISSING:
            return failed(None, "no JSON found in the response")
        difference = comparison.difference(value, target)
        text = json_text(value)
        return passed(text) if difference is None else failed(text, difference)

    return judge

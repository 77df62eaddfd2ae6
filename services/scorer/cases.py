"""What scoring a shard needs: its compiled rules and the targets of its cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from benchgen.scoring.rules import CompiledRule, Rule, RuleScore, SlowRule, compile_rules
from benchgen.scoring.spec import parse_rules
from services.common.parts import CaseReader
from services.scorer.domain import Outcome
from services.scorer.intake import clean

#: On so many responses the patterns of one rule may take too long; then it judges none.
_MOST_SLOW = 3
_GIVEN_UP = RuleScore(None, None, None, "", "rule_error: the pattern was too slow on earlier answers")


@lru_cache(maxsize=64)
def rules_of(scoring_json: str) -> tuple[Rule, ...]:
    """The compiled rules of a scoring; the text is small and the same for all shards of a run."""
    return tuple(compile_rules(parse_rules(orjson.loads(scoring_json))))


def primary_of(rules: Sequence[Rule]) -> int:
    """The place of the primary rule."""
    return next(place for place, rule in enumerate(rules) if rule.primary)


def slow_places(scoring_json: str) -> list[int]:
    """The places of the rules that judge later."""
    return [place for place, rule in enumerate(rules_of(scoring_json)) if isinstance(rule, SlowRule)]


@dataclass(frozen=True, slots=True)
class Target:
    """What a response to one case is compared with, by rule: the target, and the options where they are known.

    For a slow rule the target is a mapping of everything that the environment says for this case and rule.
    """

    case_id: str
    by_rule: tuple[tuple[Any, Sequence[str] | None], ...]
    cluster: str | None
    slices: dict[str, str] | None


class Judge:
    """Scores responses to some cases of one version: those of a shard, or of a verification.

    A rule whose patterns took too long on three of its responses judges no more of them, so that a pattern which is
    slow on many keeps the scoring thread for a second a shard, and not for a minute.
    """

    def __init__(self, rules: tuple[Rule, ...], targets: dict[int, Target]) -> None:
        self.rules = rules
        self.primary = primary_of(rules)
        self._targets = targets
        self.has_slow_rules = any(isinstance(rule, SlowRule) for rule in rules)
        self._slow = [0] * len(rules)

    def target(self, position: int) -> Target | None:
        """The target of a case; None when the case is not among those that were asked for."""
        return self._targets.get(position)

    def score(self, position: int, outcome: Outcome, response: str) -> tuple[RuleScore | None, ...]:
        """One score per rule, None where it is made later; nothing for an outcome that is not the model's doing.

        :param response: is judged as it is stored, without what a database has no place for.
        """
        if not outcome.final:
            return ()
        response = clean(response)
        return tuple(
            self._judged(place, response, target, choices)
            for place, (target, choices) in enumerate(self._targets[position].by_rule)
        )

    def _judged(
        self, place: int, response: str, target: Any, choices: Sequence[str] | None
    ) -> RuleScore | None:
        rule = self.rules[place]
        if not isinstance(rule, CompiledRule):
            return None
        if self._slow[place] >= _MOST_SLOW:
            return _GIVEN_UP
        score = rule.score(response, target, choices)
        if score.error is not None and score.too_slow:
            self._slow[place] += 1
        return score


async def judge_of(
    reader: CaseReader, targets_digest: str, scoring_json: str, positions: Sequence[int]
) -> Judge:
    """A judge for these cases.

    :param reader: reads the store of targets.
    :raises NotFound: there is no such case or data.
    """
    rules = rules_of(scoring_json)
    rows = await reader.rows(targets_digest, positions)
    return Judge(rules, {row["position"]: _target(row, rules) for row in rows})


def _target(row: dict[str, Any], rules: Sequence[Rule]) -> Target:
    by_rule = tuple(_compared(row["target"], row["rules"].get(rule.name, {}), rule) for rule in rules)
    slices = {clean(name): clean(value) for name, value in row["slices"].items()}
    cluster = None if row["cluster"] is None else clean(row["cluster"])
    return Target(row["id"], by_rule, cluster, slices or None)


def _compared(target: Any, own: dict[str, Any], rule: Rule) -> tuple[Any, Sequence[str] | None]:
    if isinstance(rule, SlowRule):
        return {"target": target, **own}, None
    return own.get("target", target), own.get("choices")

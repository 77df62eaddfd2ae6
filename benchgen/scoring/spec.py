"""Scoring rules as people write them: pydantic models, one for each ``type``.

A rule takes an answer out of a response (``think``, ``extract``), brings answer and target to one form
(``normalise``) and compares them. The descriptions of the fields are the reference documentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    TypeAdapter,
    field_validator,
    model_validator,
)

from benchgen.scoring.patterns import Flag, compile_pattern

MAX_RULES = 32
"""The most rules one environment may have."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def _checked_pattern(pattern: str) -> str:
    compile_pattern(pattern)
    return pattern


Pattern = Annotated[str, StringConstraints(min_length=1), AfterValidator(_checked_pattern)]
Patterns = Annotated[tuple[Pattern, ...], Field(strict=False)]
Flags = Annotated[tuple[Flag, ...], Field(strict=False)]
Tolerance = Annotated[float, Field(ge=0)]


# --------------------------------------------------------------------------------------------- extraction


class RegexExtract(_Strict):
    """What a pattern matches: ``{regex: 'A:\\s*(.*)', take: last}``."""

    regex: Pattern = Field(description="The pattern, in the syntax of the Python library `regex`.")
    group: Annotated[int, Field(ge=0)] | str | None = Field(
        default=None,
        description="Number or name of the group to take; 0 is the whole match. "
        "Default: the first group that took part in the match, or the whole match if there is no group.",
    )
    take: Literal["first", "last"] = Field(
        default="first", description="Which match counts when there are several."
    )
    flags: Flags = Field(default=(), description="`ignore_case`, `multiline`, `dot_all`.")

    @model_validator(mode="after")
    def _group_exists(self) -> Self:
        pattern = compile_pattern(self.regex, self.flags)
        known = {*range(pattern.groups + 1), *pattern.groupindex, None}
        if self.group not in known:
            raise ValueError(f"group: expected a group of the pattern, found {self.group!r}")
        return self


class PointerExtract(_Strict):
    """A value of the JSON in the response: ``{json_pointer: /answer}``."""

    json_pointer: Annotated[str, StringConstraints(pattern=r"^(/([^~/]|~[01])*)*$")] = Field(
        description="RFC 6901 pointer into the JSON of the response (the whole of it, a fenced block, or the "
        "last object or array in the text). Empty: the whole value. Strings are taken as they are, other "
        "values as JSON text; null counts as nothing found."
    )


class TagExtract(_Strict):
    """The content of the last such element: ``{tag: answer}`` takes what is in ``<answer>...</answer>``."""

    tag: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.:-]*$")] = Field(
        description="Name of the element. One that was opened last and never closed reaches to the end "
        "of the response, because a stop sequence may have cut the closing tag off."
    )


class LineExtract(_Strict):
    """One line that is not blank: ``{line: last}``."""

    line: Literal["first", "last"] = Field(description="Which of the lines that are not blank.")


class BoxedExtract(_Strict):
    """The content of the last LaTeX box, braces balanced: ``{boxed: true}``."""

    boxed: Literal[True] = Field(description="Take what is inside the last `\\boxed{...}`.")


class AfterExtract(_Strict):
    """What follows the last occurrence of a marker: ``{after: '####'}``."""

    after: Annotated[str, StringConstraints(min_length=1, max_length=200)] = Field(
        description="The marker, taken literally. The answer is the rest of its line, or the next line that "
        "is not blank when nothing follows on the same line."
    )


_EXTRACT_KEYS = ("regex", "json_pointer", "tag", "line", "boxed", "after")


def _extract_kind(value: Any) -> str | None:
    """The key that tells one kind of extraction from another; None when there is none."""
    for key in _EXTRACT_KEYS:
        if key in value if isinstance(value, Mapping) else hasattr(value, key):
            return key
    return None


Extract = Annotated[
    Annotated[RegexExtract, Tag("regex")]
    | Annotated[PointerExtract, Tag("json_pointer")]
    | Annotated[TagExtract, Tag("tag")]
    | Annotated[LineExtract, Tag("line")]
    | Annotated[BoxedExtract, Tag("boxed")]
    | Annotated[AfterExtract, Tag("after")],
    Discriminator(
        _extract_kind,
        custom_error_type="extract_kind",
        custom_error_message="expected one of the keys regex, json_pointer, tag, line, boxed, after",
    ),
]


def _as_list(value: Any) -> Any:
    """One extraction, or none, written without a list."""
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)


# ------------------------------------------------------------------------------------------ normalisation


class Normalise(_Strict):
    """How answer and target are brought to one form before they are compared, in the order of the fields.

    Fields that are not given keep the default of the rule's type.
    """

    remove: Patterns = Field(default=(), description="Patterns whose matches are removed.")
    nfkc: bool = Field(
        default=False, description="Unicode form NFKC: full-width digits, ligatures, `²` to `2`."
    )
    case_fold: bool = Field(default=False, description="Ignore upper and lower case.")
    strip_punctuation: bool = Field(default=False, description="Remove ASCII and Unicode punctuation.")
    strip_articles: bool = Field(default=False, description="Remove the English words a, an, the.")
    collapse_whitespace: bool = Field(default=False, description="Make every run of white space one space.")
    strip: bool = Field(default=False, description="Remove white space at both ends.")


# -------------------------------------------------------------------------------------------------- rules


class _Rule(_Strict):
    """What all rules have in common."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")] = Field(
        description="Name of the metric: letters, digits, underscores; unique in the environment."
    )
    primary: bool = Field(
        default=False, description="The figure that counts. A sole rule is primary without saying so."
    )
    think: Literal["strip", "keep"] = Field(
        default="strip",
        description="`strip`: reasoning in `<think>...</think>` is removed first, and a response whose "
        "reasoning never ends has no answer. `keep`: such text is judged like any other.",
    )
    extract: Annotated[tuple[Extract, ...], BeforeValidator(_as_list), Field(strict=False)] = Field(
        default=(),
        description="Where the answer is in the response: one way, or a list of ways of which the first "
        "that finds something counts. Without it the whole response is the answer.",
    )
    normalise: Normalise = Field(default=Normalise(strip=True), description="See `Normalise`.")
    target: str | None = Field(
        default=None,
        description="A field of the row, or a template: the target of this rule instead of `dataset.target`.",
    )

    @field_validator("normalise", mode="before")
    @classmethod
    def _keep_defaults(cls, value: Any) -> Any:
        """What is not given keeps the default of this type of rule."""
        if not isinstance(value, Mapping):
            return value
        default: Normalise = cls.model_fields["normalise"].default
        return {**default.model_dump(), **value}


class ExactMatch(_Rule):
    """The answer equals the target. A list of targets: any of them. Default normalisation: `strip`."""

    type: Literal["exact_match"] = "exact_match"


class Includes(_Rule):
    """The answer contains the target. Default normalisation: `case_fold`, `collapse_whitespace`, `strip`."""

    type: Literal["includes"] = "includes"
    normalise: Normalise = Field(
        default=Normalise(case_fold=True, collapse_whitespace=True, strip=True),
        description="See `Normalise`.",
    )
    mode: Literal["any", "all"] = Field(
        default="any", description="With a list of targets: one is enough, or all."
    )
    words: bool = Field(
        default=False, description="The target must not begin or end in the middle of a word."
    )


class Regex(_Rule):
    """A pattern matches the answer. Without `pattern` the target is the pattern (a list: any of them).

    Normalisation is applied to the answer only. Default: none.
    """

    type: Literal["regex"] = "regex"
    normalise: Normalise = Field(default=Normalise(), description="See `Normalise`.")
    pattern: Pattern | None = Field(
        default=None, description="The pattern; default: the target is the pattern."
    )
    match: Literal["search", "fullmatch"] = Field(
        default="search",
        description="`search`: somewhere in the answer; `fullmatch`: from its start to its end.",
    )
    flags: Flags = Field(default=(), description="`ignore_case`, `multiline`, `dot_all`.")


class Choice(_Rule):
    """The answer names the right option.

    The target is a letter (`B`), a number counted from 0 (an integer, or digits that are not themselves the
    text of an option), or the text of an option. Recognised in a response: `B`, `(B)`, `**B**`, `B.`,
    `Answer: B`, `the answer is B`, a boxed letter, and the text of exactly one option when the options are
    known. Default normalisation, for the texts of options: `nfkc`, `case_fold`, `collapse_whitespace`,
    `strip`.
    """

    type: Literal["choice"] = "choice"
    normalise: Normalise = Field(
        default=Normalise(nfkc=True, case_fold=True, collapse_whitespace=True, strip=True),
        description="See `Normalise`.",
    )
    choices: str | None = Field(
        default=None,
        description="A field of the row, or a template, that yields the list of the options' texts.",
    )


class Numeric(_Rule):
    """The answer is the target as a number.

    The last number in the extracted text counts. Understood: `1,234.5`, `$18`, `-3`, `−3`, `50%` (the sign is
    dropped: 50), `1/2`, `1 1/2`, `\\frac{1}{2}`, `1.5e3`, `1.5 × 10^3`, punctuation around. The
    comparison is exact in decimal, without the noise of binary fractions, unless a tolerance is given.
    """

    type: Literal["numeric"] = "numeric"
    abs_tol: Tolerance = Field(default=0.0, description="Largest difference that still passes.")
    rel_tol: Tolerance = Field(
        default=0.0, description="The same, as a fraction of the target's absolute value."
    )


class F1(_Rule):
    """Overlap of words between answer and target, as in SQuAD; the best of a list of targets.

    Default normalisation: `case_fold`, `strip_punctuation`, `strip_articles`, `collapse_whitespace`, `strip`.
    """

    type: Literal["f1"] = "f1"
    normalise: Normalise = Field(
        default=Normalise(
            case_fold=True, strip_punctuation=True, strip_articles=True, collapse_whitespace=True, strip=True
        ),
        description="See `Normalise`.",
    )
    threshold: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="The F1 from which on the case has passed; the score is the F1 itself."
    )


class JsonMatch(_Rule):
    """The answer is JSON and equals the target, which is a JSON value or JSON text.

    The target is one value, also when it is a list. Numbers compare as numbers (`1` equals `1.0`).
    Normalisation is applied to strings inside the values. Default: none.
    """

    type: Literal["json_match"] = "json_match"
    normalise: Normalise = Field(default=Normalise(), description="See `Normalise`.")
    fields: Annotated[tuple[str, ...], Field(strict=False)] | None = Field(
        default=None,
        min_length=1,
        description="Compare only these: names of top-level members, or JSON pointers. Default: everything.",
    )
    allow_extra: bool = Field(default=False, description="Members that the target does not have are ignored.")
    ignore_order: bool = Field(default=False, description="Arrays are compared without regard to order.")
    abs_tol: Tolerance = Field(
        default=0.0, description="Largest difference between numbers that still passes."
    )
    rel_tol: Tolerance = Field(
        default=0.0, description="The same, as a fraction of the target's absolute value."
    )


RuleSpec = Annotated[
    ExactMatch | Includes | Regex | Choice | Numeric | F1 | JsonMatch, Field(discriminator="type")
]
"""One scoring rule."""


def _check_together(rules: tuple[RuleSpec, ...]) -> tuple[RuleSpec, ...]:
    if not 1 <= len(rules) <= MAX_RULES:
        raise ValueError(f"expected 1 to {MAX_RULES} rules, found {len(rules)}")
    names = [rule.name for rule in rules]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"expected every rule to have its own name, found twice: {', '.join(twice)}")
    primary = [rule.name for rule in rules if rule.primary]
    if len(primary) > 1:
        raise ValueError(f"expected at most one primary rule, found {', '.join(primary)}")
    return rules


RuleSpecs = Annotated[
    tuple[RuleSpec, ...],
    Field(strict=False),
    AfterValidator(_check_together),
]
"""The rules of an environment: at least one, names unique, at most one primary."""

_RULES: TypeAdapter[tuple[RuleSpec, ...]] = TypeAdapter(RuleSpecs)


def parse_rules(raw: Sequence[Mapping[str, Any]]) -> list[RuleSpec]:
    """The rules in a list as it stands in a manifest or in ``scoring_json``.

    Raises ``pydantic.ValidationError`` with every problem that was found.
    """
    return list(_RULES.validate_python(raw))


def dump_rules(rules: Sequence[RuleSpec]) -> list[dict[str, Any]]:
    """JSON values that parse back equal, every default written out so that stored rules keep their sense."""
    return [rule.model_dump(mode="json") for rule in rules]

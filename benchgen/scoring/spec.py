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

from benchgen.scoring.limits import ProgramLimits
from benchgen.scoring.patterns import Flag, compile_pattern

MAX_RULES = 32
"""The most rules one environment may have."""
MAX_COLUMNS = 1_000
"""The most columns one competition may have."""


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


class CodeExtract(_Strict):
    """The last fenced block, or the whole text where there is none: ``{code: true}``."""

    code: Literal[True] = Field(
        description="Take what is in the last block between three backticks, or the whole response when there is no "
        "such block. A block that was opened and never closed reaches to the end."
    )


_EXTRACT_KEYS = ("regex", "json_pointer", "tag", "line", "boxed", "after", "code")


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
    | Annotated[AfterExtract, Tag("after")]
    | Annotated[CodeExtract, Tag("code")],
    Discriminator(
        _extract_kind,
        custom_error_type="extract_kind",
        custom_error_message=f"expected one of the keys {', '.join(_EXTRACT_KEYS)}",
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


class _Named(_Strict):
    """What all rules have in common."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")] = Field(
        description="Name of the metric: letters, digits, underscores; unique in the environment."
    )
    primary: bool = Field(
        default=False, description="The figure that counts. A sole rule is primary without saying so."
    )


class _Extracting(_Named):
    """A rule that takes the answer out of the response."""

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


class _Rule(_Extracting):
    """A rule that compares the answer with a target."""

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


# ------------------------------------------------------------------------------- rules that run programs


class CodeTests(_Extracting):
    """The answer is code, and hidden tests pass on it, in a sandbox.

    ``setup``, ``tests`` and ``entry_point`` are fields of the row, or templates; they are kept with the targets.
    """

    type: Literal["code_tests"] = "code_tests"
    extract: Annotated[tuple[Extract, ...], BeforeValidator(_as_list), Field(strict=False)] = Field(
        default=(CodeExtract(code=True),),
        description="Where the code is in the response. Default: `{code: true}`.",
    )
    language: Literal["python"] = Field(default="python", description="The language of the code.")
    setup: str | None = Field(
        default=None, description="What stands before the code: imports, the start of a function to complete."
    )
    tests: Annotated[str, StringConstraints(min_length=1)] = Field(
        description="Code that raises an exception when the answer is wrong; or a list of "
        "`{stdin: ..., stdout: ...}`: the code is run as a program, once for each."
    )
    entry_point: str | None = Field(
        default=None, description="The name of what the code has to define; `join: auto` needs it."
    )
    join: Literal["auto", "completion", "whole"] = Field(
        default="auto",
        description="`completion`: the code goes on where `setup` ends. `whole`: it stands on its own. `auto`: "
        "the latter when it defines `entry_point`, after a `setup` that runs on its own.",
    )
    isolation: Literal["values", "none"] = Field(
        default="values",
        description="`values`: tests run in another process than the code, and see what it returns as plain values and "
        "handles. `none`: they run in the same process, where code that is made to deceive can do so.",
    )
    limits: ProgramLimits = Field(
        default=ProgramLimits(seconds=10.0, memory_mb=512), description="See `Limits`."
    )

    @field_validator("limits", mode="before")
    @classmethod
    def _keep_default_limits(cls, value: Any) -> Any:
        return {"seconds": 10.0, "memory_mb": 512, **value} if isinstance(value, Mapping) else value


def _checked_folder(folder: str) -> str:
    if folder.startswith("/") or "\\" in folder or any(part in ("", ".", "..") for part in folder.split("/")):
        raise ValueError("expected a plain relative path inside the bundle, with / between folders")
    return folder


ProgramFolder = Annotated[
    str, StringConstraints(min_length=1, max_length=512), AfterValidator(_checked_folder)
]
CommandWord = Annotated[str, StringConstraints(min_length=1, max_length=4_096)]


class ProgramRule(_Named):
    """A program of the bundle judges, in a sandbox of its own."""

    type: Literal["program"] = "program"
    files: ProgramFolder = Field(
        description="A folder of the bundle. The program finds it at `/app/program`, read-only."
    )
    command: Annotated[tuple[CommandWord, ...], Field(strict=False, min_length=1, max_length=100)] = Field(
        description="The program and its arguments, without a shell, such as `[python3, score.py]`."
    )
    batch: Annotated[int, Field(ge=1, le=256)] = Field(
        default=64, description="How many responses one start of the program judges at most."
    )
    target: str | None = Field(
        default=None,
        description="A field of the row, or a template: the target that the program sees instead of `dataset.target`.",
    )
    limits: ProgramLimits = Field(default=ProgramLimits(), description="See `Limits`.")
    program: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="Set when the environment is published: the digest of the packed folder."
    )


class ColumnRule(_Strict):
    """A column of a competition's leaderboard: the scoring program of the bundle gives its value.

    Made when a competition.yaml bundle is published; environment.yaml has no such rule.
    """

    name: Annotated[str, StringConstraints(min_length=1, max_length=100)] = Field(
        description="The column's key."
    )
    primary: bool = Field(default=False, description="Whether the column ranks first.")
    type: Literal["column"] = "column"


FastSpec = ExactMatch | Includes | Regex | Choice | Numeric | F1 | JsonMatch
"""Rules that judge a response in a moment, before it is stored."""

SlowSpec = CodeTests | ProgramRule | ColumnRule
"""Rules that need more: a response is stored first, and judged then."""

RuleSpec = Annotated[FastSpec | SlowSpec, Field(discriminator="type")]
"""One scoring rule."""


def _check_together(rules: tuple[RuleSpec, ...]) -> tuple[RuleSpec, ...]:
    columns = bool(rules) and all(isinstance(rule, ColumnRule) for rule in rules)
    most = MAX_COLUMNS if columns else MAX_RULES
    if not 1 <= len(rules) <= most:
        raise ValueError(f"expected 1 to {most} rules, found {len(rules)}")
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

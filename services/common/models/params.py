"""Parameters written behind a name, as in ``simulated?accuracy=0.8&latency_ms=50``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl

from benchgen.errors import InvalidInput

Value = str | int | float


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter. ``low`` and ``high``, both included, bound a number or the characters of a text."""

    name: str
    kind: Literal["text", "integer", "number"]
    default: Value | None
    low: float
    high: float
    description: str

    def read(self, raw: str, subject: str) -> Value:
        """Read one value. Raises InvalidInput with what was expected and found."""
        expected = f"{subject}: {self.name}: expected {self._expectation()}, found {raw[:80]!r}"
        value: Value
        try:
            value = raw if self.kind == "text" else int(raw) if self.kind == "integer" else float(raw)
        except ValueError:
            raise InvalidInput(expected) from None
        size = len(value) if isinstance(value, str) else value
        if not self.low <= size <= self.high:
            raise InvalidInput(expected)
        return value

    def _expectation(self) -> str:
        if self.kind == "text":
            return f"a text of {self.low:g} to {self.high:g} characters"
        article = "an integer" if self.kind == "integer" else "a number"
        return f"{article} from {self.low:.10g} to {self.high:.10g}"


def read_params(subject: str, query: str, known: Sequence[Param]) -> dict[str, Value]:
    """Read ``key=value&key=value``. Returns what was given and the defaults that are not None.

    :raises InvalidInput: a key is unknown, given twice or has no value, or a value is wrong; names all of
    them.
    """
    table: Mapping[str, Param] = {param.name: param for param in known}
    values: dict[str, Value] = {param.name: param.default for param in known if param.default is not None}
    problems: list[str] = []
    seen: set[str] = set()
    for name, raw in _pairs(subject, query):
        param = table.get(name)
        if param is None:
            allowed = ", ".join(sorted(table)) or "none"
            problems.append(f"{subject}: unknown parameter {name[:80]!r}; allowed: {allowed}")
        elif name in seen:
            problems.append(f"{subject}: {name} is given twice")
        else:
            try:
                values[name] = param.read(raw, subject)
            except InvalidInput as error:
                problems.append(error.message)
        seen.add(name)
    if problems:
        raise InvalidInput("; ".join(problems))
    return values


def _pairs(subject: str, query: str) -> list[tuple[str, str]]:
    if not query:
        return []
    try:
        return parse_qsl(
            query, keep_blank_values=True, strict_parsing=True, max_num_fields=64, errors="strict"
        )
    except ValueError as error:
        raise InvalidInput(
            f"{subject}: expected key=value&key=value after '?', found {query[:80]!r}"
        ) from error

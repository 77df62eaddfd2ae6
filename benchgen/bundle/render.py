"""Templates over the fields of a row: Jinja2 in a sandbox, strict about what is undefined, deterministic.

Time and memory are bounded by the process that renders, not here: a template can ask for more than any check
in its own process could refuse in time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from jinja2 import StrictUndefined, TemplateError, Undefined, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from benchgen.bundle.problems import OutOfMemory, Problem, found

MAX_RENDERED_CHARACTERS = 1 << 20
MAX_RANGE = 10_000
_PLAIN = (str, int, float, bool, Decimal, date, datetime, time)


class RenderError(Exception):
    """A template or field that yields nothing usable on a row; the message says why."""

    kind: type[Problem] = Problem


class MissingFieldError(RenderError):
    """A row lacks the field that is named."""


class RenderMemoryError(RenderError):
    """There is not enough memory for a template or for what it yields."""

    kind = OutOfMemory

    def __init__(self) -> None:
        super().__init__("expected the template to render, found that it needs more memory than there is")


def _limited_range(*arguments: int) -> range:
    numbers = range(*arguments)
    if len(numbers) > MAX_RANGE:
        raise RenderError(f"expected a range of at most {MAX_RANGE:,} numbers, found {len(numbers):,}")
    return numbers


def _plain_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own ``tojson`` escapes for HTML, which a prompt is not."""
    if isinstance(value, Undefined):
        str(value)
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str)


def _printable(value: Any) -> Any:
    """Refuses to print what nobody meant: nulls, methods, and objects whose text holds an address."""
    if isinstance(value, str):
        return value
    if value is None:
        raise RenderError(
            "expected a value to print, found null; write {{ field or '' }} where it may be null"
        )
    if isinstance(value, (*_PLAIN, list, tuple, dict, Undefined)):
        return value
    raise RenderError(f"expected a value to print, found a {type(value).__name__}")


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, without anything that differs from one rendering to the next."""

    def __init__(self) -> None:
        super().__init__(
            undefined=StrictUndefined,
            autoescape=False,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=False,
            finalize=_printable,
            cache_size=0,
        )
        namespace = self.globals["namespace"]
        self.globals.clear()
        self.globals.update({"range": _limited_range, "dict": dict, "namespace": namespace})
        del self.filters["random"]
        self.filters["tojson"] = _plain_json


_ENVIRONMENT = _Environment()


def is_template(source: str) -> bool:
    """Whether a source has any Jinja in it; a source without is the name of a field, or literal text."""
    return "{{" in source or "{%" in source or "{#" in source


class Field:
    """The value of a field of a row, as it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fields = frozenset({name})

    def value(self, row: Mapping[str, Any]) -> Any:
        """Raises ``MissingFieldError`` where the row has no such field."""
        try:
            return row[self.name]
        except KeyError:
            raise MissingFieldError(f'expected the field "{self.name}", found none in this row') from None


class Template:
    """A compiled template. ``fields`` are the names it takes from a row; ``row`` is the row itself.

    Raises ``RenderError`` where the source is no valid template.
    """

    def __init__(self, source: str) -> None:
        try:
            tree = _ENVIRONMENT.parse(source)
            self._template = _ENVIRONMENT.from_string(source)
            self._expression = self._single_expression(source, tree)
            self._constant = None if is_template(source) else self._template.render()
            self.fields = frozenset(meta.find_undeclared_variables(tree)) - {*_ENVIRONMENT.globals, "row"}
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            where = f" (line {line} of the template)" if line and "\n" in source else ""
            raise RenderError(f"expected a valid template, found: {error.message or error}{where}") from None
        except RecursionError:
            raise RenderError("expected a simpler template, found too deep nesting") from None
        except MemoryError:
            # Jinja computes constant expressions while it compiles.
            raise RenderMemoryError from None

    @staticmethod
    def _single_expression(source: str, tree: nodes.Template) -> Callable[..., Any] | None:
        """What ``{{ one expression }}`` and nothing else evaluates to, in its own type."""
        text = source.strip()
        alone = (
            len(tree.body) == 1 and isinstance(tree.body[0], nodes.Output) and len(tree.body[0].nodes) == 1
        )
        if not (alone and text.startswith("{{") and text.endswith("}}")):
            return None
        inner = text[2:-2].removeprefix("-").removeprefix("+").removesuffix("-").removesuffix("+")
        return _ENVIRONMENT.compile_expression(inner, undefined_to_none=False)

    def text(self, row: Mapping[str, Any]) -> str:
        """The rendered text; raises ``RenderError``."""
        if self._constant is not None:
            return self._constant
        try:
            text = self._template.render(row if "row" in row else {**row, "row": row})
        except Exception as error:
            # A template calls methods of values, so it can raise whatever they raise.
            raise _render_error(error) from None
        if len(text) > MAX_RENDERED_CHARACTERS:
            message = f"expected at most {MAX_RENDERED_CHARACTERS:,} characters, found {len(text):,}"
            raise RenderError(message)
        return text

    def value(self, row: Mapping[str, Any]) -> Any:
        """A single expression in its own type, anything else as text; raises ``RenderError``."""
        if self._expression is None:
            return self.text(row)
        try:
            value = self._expression(row if "row" in row else {**row, "row": row})
            if isinstance(value, Undefined):
                str(value)
            if not isinstance(value, (*_PLAIN, list, tuple, dict)) and value is not None:
                # Filters such as map and select are lazy.
                value = list(value)
        except Exception as error:
            raise _render_error(error) from None
        return value


def compile_source(source: str) -> Field | Template:
    """A field name or a template, as it is meant: only a template has Jinja in it."""
    return Template(source) if is_template(source) else Field(source)


def text_of(value: Any) -> str:
    """A value as text: texts as they are, anything else as JSON; raises ``RenderError`` for null."""
    if isinstance(value, str):
        return value
    if value is None:
        raise RenderError(f"expected a text, found {found(value)}")
    return _plain_json(value)


def _render_error(error: Exception) -> RenderError:
    if isinstance(error, RenderError):
        return error
    if isinstance(error, MemoryError):
        return RenderMemoryError()
    if isinstance(error, TemplateError):
        return RenderError(f"expected the template to render, found: {error.message or error}")
    return RenderError(f"expected the template to render, found {type(error).__name__}: {error}")

"""Reads a YAML file into plain values and remembers on which line each of them stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from benchgen.bundle.problems import ProblemLog, found

Path = tuple[str | int, ...]

MAX_YAML_BYTES = 1 << 20
MAX_NODES = 20_000
MAX_DEPTH = 32
_KEPT_ESCAPES = ("\\n", "\\t")


@dataclass(slots=True)
class YamlDocument:
    """The values of a YAML file, and the line of each by its path.

    ``broken`` are the paths of values that are told to be unusable, with everything in them.
    ``quoted`` are the paths of scalars in single quotes with a backslash and an n or t as two characters.
    """

    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    quoted: list[Path] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)

    def line(self, path: Sequence[str | int]) -> int | None:
        """The line of a value, or of the nearest thing around it."""
        for end in range(len(path), -1, -1):
            line = self.lines.get(tuple(path[:end]))
            if line is not None:
                return line
        return None

    def is_broken(self, path: Path) -> bool:
        """Whether a value is unusable, or in something that is."""
        return any(path[: len(broken)] == broken for broken in self.broken)


def read_yaml(content: bytes, file: str, log: ProblemLog, *, lenient: bool = False) -> YamlDocument | None:
    """The document, or None with problems in the log where it cannot be read at all.

    ``lenient`` reads what every YAML parser reads, for files that were not written for us: aliases and merged
    mappings are written out, keys of any type become texts, of equal keys the last one counts, and what a tag
    or its spelling makes a value of another type is its text where it cannot be that.
    """
    if len(content) > MAX_YAML_BYTES:
        log.add(file, f"expected at most {MAX_YAML_BYTES:,} bytes, found {len(content):,}")
        return None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        log.add(file, f"expected UTF-8, found the byte 0x{content[error.start]:02x}", line=line)
        return None
    try:
        if not _depth_allowed(text, file, log, aliases=lenient):
            return None
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(part for part in (error.context, error.problem) if part)
        log.add(file, f"expected valid YAML, found: {said}", line=mark.line + 1 if mark else None)
        return None
    except yaml.YAMLError as error:
        log.add(file, f"expected valid YAML, found: {error}")
        return None
    builder = _Lenient(file, log) if lenient else _Builder(file, log)
    builder.document.data = None if node is None else builder.build(node, ())
    return builder.document


def _depth_allowed(text: str, file: str, log: ProblemLog, *, aliases: bool) -> bool:
    """Checks nesting on the event stream: composing is recursive and would overflow first."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        line = event.start_mark.line + 1 if event.start_mark else None
        if depth > MAX_DEPTH:
            log.add(file, f"expected at most {MAX_DEPTH} levels of nesting, found more", line=line)
            return False
        if count > 2 * MAX_NODES:
            log.add(file, f"expected at most {MAX_NODES:,} values, found more", line=line)
            return False
        if isinstance(event, yaml.AliasEvent) and not aliases:
            message = f"expected plain values, found the alias *{event.anchor}; write the value out"
            log.add(file, message, line=line)
            return False
    return True


class _Builder:
    """Turns YAML nodes into values; there are no aliases any more, so each node is met once."""

    def __init__(self, file: str, log: ProblemLog) -> None:
        self.document = YamlDocument()
        self._file = file
        self._log = log
        self._scalars = yaml.constructor.SafeConstructor()

    def build(self, node: yaml.Node, path: Path) -> Any:
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self._scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                shown = "a collection" if key is None else f"{found(key)}; put it in quotes"
                self._problem(f"expected a text as key, found {shown}", path, line)
            elif key in values:
                message = f'expected each key once, found "{key}" again (first on line {first_lines[key]})'
                self._problem(message, (*path, key), line)
            else:
                first_lines[key] = line
                self.document.lines[(*path, key)] = line
                values[key] = self.build(value_node, (*path, key))
        return values

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        single_quoted = isinstance(node, yaml.ScalarNode) and node.style == "'"
        if single_quoted and any(escape in node.value for escape in _KEPT_ESCAPES):
            self.document.quoted.append(path)
        try:
            return self._scalars.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError, OverflowError):
            message = f"expected a plain value, found {node.value!r} with the tag {node.tag}"
            self._problem(message, path, node.start_mark.line + 1)
            self.document.broken.append(path)
            return node.value

    def _problem(self, message: str, path: Path, line: int) -> None:
        self._log.add(self._file, message, line=line, field=dotted(path) or None)


class _Lenient(_Builder):
    """Reads as PyYAML does. Aliases are written out, within the same bounds as what is written out already."""

    def __init__(self, file: str, log: ProblemLog) -> None:
        super().__init__(file, log)
        self._nodes = 0
        self._cut = False

    def build(self, node: yaml.Node, path: Path) -> Any:
        self._nodes += 1
        if len(path) > MAX_DEPTH or self._nodes > MAX_NODES:
            if not self._cut:
                bounds = f"{MAX_NODES:,} values and {MAX_DEPTH} levels"
                message = f"expected at most {bounds} with all aliases written out, found more"
                self._problem(message, path, node.start_mark.line + 1)
            self._cut = True
            return None
        return super().build(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                for source in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                    built = self.build(source, path)
                    merged = {**(built if isinstance(built, dict) else {}), **merged}
            elif isinstance(key_node, yaml.ScalarNode):
                key = key_node.value
                self.document.lines[(*path, key)] = line
                values[key] = self.build(value_node, (*path, key))
            else:
                self._problem("expected a text as key, found a collection", path, line)
        return {**merged, **values}

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        try:
            return self._scalars.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError, OverflowError):
            # Whoever reads the field says what is wrong with it.
            return node.value


def dotted(path: Sequence[str | int]) -> str:
    """A path as a problem shows it: ``scoring[0].extract``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text

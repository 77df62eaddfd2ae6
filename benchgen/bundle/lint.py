"""What is allowed in a bundle and probably not meant. Warnings never stop anything."""

from __future__ import annotations

import re
from collections.abc import Iterator

from benchgen.bundle.manifest import EnvironmentManifest
from benchgen.bundle.parse import parse_manifest
from benchgen.bundle.problems import Problem, ProblemLog, did_you_mean
from benchgen.bundle.programs import program_files
from benchgen.bundle.render import is_template
from benchgen.bundle.tree import MANIFEST_FILE, BundleTree
from benchgen.bundle.yamldoc import Path, YamlDocument, dotted
from benchgen.scoring.spec import ProgramRule

# Inside Jinja and in patterns a backslash and an n do mean a line break.
_JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
_SCRIPTS = (".py", ".sh", ".pl", ".js")
_PLAIN_TEXT = frozenset({"system", "prompt", "content", "stop", "oracle", "target", "answer", "after"})


def lint(tree: BundleTree) -> list[Problem]:
    """Warnings about a bundle that is valid otherwise; empty for one that has problems."""
    log = ProblemLog()
    manifest, document = parse_manifest(tree, log)
    if manifest is None or document is None:
        return []
    return [
        *_quoted_escapes(document),
        *_constant_prompt(manifest, document),
        *_absent_scripts(tree, manifest, document),
    ]


def _quoted_escapes(document: YamlDocument) -> list[Problem]:
    warnings: list[Problem] = []
    for path in document.quoted:
        names = [part for part in path if isinstance(part, str)]
        outside = _JINJA.sub("", str(_at(document, path)))
        if names and names[-1] in _PLAIN_TEXT and re.search(r"\\[nt]", outside):
            message = "expected a line break or tab, found a backslash and a letter; use double quotes"
            warnings.append(Problem(MANIFEST_FILE, message, document.line(path), dotted(path)))
    return warnings


def _constant_prompt(manifest: EnvironmentManifest, document: YamlDocument) -> list[Problem]:
    contents = [message.content for message in manifest.harness.messages]
    if not contents or any(is_template(content) for content in contents):
        return []
    place = ("harness", "messages")
    message = "expected a field such as {{ question }} in some message, found none: every case asks the same"
    return [Problem(MANIFEST_FILE, message, document.line(place), dotted(place))]


def _absent_scripts(
    tree: BundleTree, manifest: EnvironmentManifest, document: YamlDocument
) -> Iterator[Problem]:
    """Commands that name a script which their folder does not have."""
    for index, rule in enumerate(manifest.scoring):
        if not isinstance(rule, ProgramRule):
            continue
        for number, word in enumerate(rule.command):
            if word.endswith(_SCRIPTS) and "/" not in word.removeprefix("./"):
                path = f"{rule.files}/{word.removeprefix('./')}"
                if path not in tree:
                    place = ("scoring", index, "command", number)
                    message = f'expected a file of the folder "{rule.files}", found none at "{path}"'
                    message += did_you_mean(path, program_files(tree, rule.files))
                    yield Problem(MANIFEST_FILE, message, document.line(place), dotted(place))


def _at(document: YamlDocument, path: Path) -> object:
    value = document.data
    for part in path:
        value = value[part]
    return value

"""From a zip to everything that a version is made of. Runs in the child process only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchgen.bundle import (
    MANIFEST_FILE,
    BundleInvalid,
    BundleTree,
    EnvironmentManifest,
    Materialised,
    Problem,
    materialise,
    open_zip,
    validate,
)
from benchgen.bundle.competition import COMPETITION_FILE, ReadCompetition, is_competition, read_competition
from benchgen.bundle.competition.publish import COMPETITION_MATERIALISER, publish_competition
from benchgen.bundle.manifest import name_problem, version_problem
from benchgen.bundle.writer import pack_tree
from benchgen.bundle.yamldoc import MAX_YAML_BYTES
from services.hub.publishing.domain import Built, VersionContent, Wanted
from services.hub.publishing.outcome import BUNDLE_FILE, Checked, Opened, Stage
from services.hub.registry.domain import Generation

_OWN_FIELDS = frozenset({"temperature", "top_p", "max_tokens", "stop"})


def build(archive: Path, out: Path, say: Callable[[Stage], object], wanted: Wanted) -> Built:
    """Check a bundle, and write its stores and its canonical zip below ``out``.

    :param say: is told how far it is.
    :param wanted: how a bundle that does not say it itself is to be called.
    :raises BundleInvalid: it has problems; all of them.
    """
    tree = open_zip(archive)
    say(Opened(tree.digest))
    if is_competition(tree):
        return _competition(tree, out, say, wanted)
    if any(wanted):
        raise BundleInvalid(
            [
                Problem(
                    MANIFEST_FILE,
                    "expected no other name or version than the manifest's, found one asked for",
                )
            ]
        )
    manifest = validate(tree)
    _refuse_nul(manifest)
    say(Checked(tree.digest, manifest.name, manifest.version))
    data = materialise(tree, manifest, out)
    pack_tree(tree, out / BUNDLE_FILE)
    return Built(_content(tree, manifest, data), manifest.verify.oracle_min, manifest.verify.empty_max)


def _competition(tree: BundleTree, out: Path, say: Callable[[Stage], object], wanted: Wanted) -> Built:
    """The same for a ``competition.yaml`` bundle."""
    problems = [
        Problem("", f"{field}: {problem}")
        for field, problem in (
            ("name", name_problem(wanted.name) if wanted.name else None),
            ("version", version_problem(wanted.version) if wanted.version else None),
        )
        if problem
    ]
    read = read_competition(tree)
    if problems:
        raise BundleInvalid(problems)
    name = wanted.name or read.competition.slug
    say(Checked(tree.digest, name, wanted.version))
    content = _competition_content(tree, read, out, name, wanted.version)
    pack_tree(tree, out / BUNDLE_FILE)
    return Built(content, 0.0, 1.0)


def _competition_content(
    tree: BundleTree, read: ReadCompetition, out: Path, name: str, version: str
) -> VersionContent:
    competition = read.competition
    data = publish_competition(tree, read, out)
    return VersionContent(
        digest=tree.digest,
        environment=name,
        version=version,
        inputs_digest=data.inputs_digest,
        targets_digest=data.targets_digest,
        solutions_digest=data.solutions_digest,
        scoring_digest=data.scoring_digest,
        scoring_json=data.scoring_json,
        materialiser=COMPETITION_MATERIALISER,
        cases=data.cases,
        primary_rule=competition.board.primary.key,
        split="test",
        title=competition.title,
        description=competition.description,
        category="other",
        tags=("competition",),
        license="",
        generation=Generation(),
        manifest_yaml=tree.read(COMPETITION_FILE, MAX_YAML_BYTES)
        .decode("utf-8-sig", "replace")
        .replace("\0", ""),
        competition_run=data.run_json,
        competition_about=data.about_json,
    )


def _refuse_nul(manifest: EnvironmentManifest) -> None:
    """YAML can spell a character that PostgreSQL's texts cannot hold."""
    texts = {
        "title": manifest.title,
        "description": manifest.description,
        "tags": "".join(manifest.tags),
        "license": manifest.license or "",
        "dataset.split": manifest.dataset.split,
        "harness.generation.stop": "".join(manifest.harness.generation.stop),
    }
    problems = [
        Problem(MANIFEST_FILE, "expected text without NUL characters, found one", field=field)
        for field, text in texts.items()
        if "\0" in text
    ]
    if problems:
        raise BundleInvalid(problems)


def _content(tree: BundleTree, manifest: EnvironmentManifest, data: Materialised) -> VersionContent:
    return VersionContent(
        digest=tree.digest,
        environment=manifest.name,
        version=manifest.version,
        inputs_digest=data.inputs_digest,
        targets_digest=data.targets_digest,
        solutions_digest=data.solutions_digest,
        scoring_digest=data.scoring_digest,
        scoring_json=data.scoring_json,
        materialiser=data.materialiser,
        cases=data.cases,
        primary_rule=next(rule.name for rule in manifest.scoring if rule.primary),
        split=manifest.dataset.split,
        title=manifest.title,
        description=manifest.description,
        category=manifest.category,
        tags=manifest.tags,
        license=manifest.license or "",
        generation=_generation(manifest),
        manifest_yaml=tree.read(MANIFEST_FILE, MAX_YAML_BYTES).decode(),
        harness_json=data.harness_json,
    )


def _generation(manifest: EnvironmentManifest) -> Generation:
    wanted = manifest.harness.generation
    extra = wanted.model_dump(mode="json", exclude_none=True, exclude=set(_OWN_FIELDS))
    return Generation(wanted.temperature, wanted.top_p, wanted.max_tokens, wanted.stop, extra)

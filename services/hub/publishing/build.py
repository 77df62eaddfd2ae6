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
from benchgen.bundle.writer import pack_tree
from benchgen.bundle.yamldoc import MAX_YAML_BYTES
from services.hub.publishing.domain import Built, VersionContent
from services.hub.publishing.outcome import BUNDLE_FILE, Checked, Opened, Stage
from services.hub.registry.domain import Generation

_OWN_FIELDS = frozenset({"temperature", "top_p", "max_tokens", "stop"})


def build(archive: Path, out: Path, say: Callable[[Stage], object]) -> Built:
    """Check a bundle, and write its stores and its canonical zip below ``out``.

    :param say: is told how far it is.
    :raises BundleInvalid: it has problems; all of them.
    """
    tree = open_zip(archive)
    say(Opened(tree.digest))
    manifest = validate(tree)
    _refuse_nul(manifest)
    say(Checked(tree.digest, manifest.name, manifest.version))
    data = materialise(tree, manifest, out)
    pack_tree(tree, out / BUNDLE_FILE)
    return Built(_content(tree, manifest, data), manifest.verify.oracle_min, manifest.verify.empty_max)


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

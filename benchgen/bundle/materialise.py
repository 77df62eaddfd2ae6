"""Turns a bundle into data: inputs, targets and solutions apart, in parts that name their own bytes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchgen.bundle.cases import Case, CasePass
from benchgen.bundle.digest import canonical_json, json_digest, sha256_hex
from benchgen.bundle.harness import pack_harness
from benchgen.bundle.manifest import EnvironmentManifest
from benchgen.bundle.parse import parse_manifest
from benchgen.bundle.problems import BundleInvalid, Problem, ProblemLog
from benchgen.bundle.programs import pack_program
from benchgen.bundle.salvage import salvage
from benchgen.bundle.tree import BundleTree
from benchgen.bundle.yamldoc import YamlDocument
from benchgen.scoring.spec import ProgramRule, RuleSpec, dump_rules

# Changes whenever the same bundle would give other bytes: runs are comparable within one version only.
MATERIALISER_VERSION = "1"
MAX_PART_CASES = 1_024
MAX_PART_BYTES = 16 << 20

StoreKind = Literal["inputs", "targets", "solutions"]


@dataclass(frozen=True, slots=True)
class Materialised:
    """What materialising wrote: the number of cases, and the digest of each store's index.

    ``solutions_digest`` is empty where the environment has no oracle. ``scoring_json`` is the canonical JSON
    of the scoring rules, and ``scoring_digest`` its sha256. ``harness_json`` is the same for the program of a
    harness, which is written to the inputs; empty for harnesses without one.
    """

    cases: int
    materialiser: str
    inputs_digest: str
    targets_digest: str
    solutions_digest: str
    scoring_json: str
    scoring_digest: str
    harness_json: str = ""


@dataclass(slots=True)
class _Store:
    """One of the three stores, written part by part."""

    kind: StoreKind
    folder: Path
    lines: list[bytes] = field(default_factory=list)
    size: int = 0
    parts: list[dict[str, Any]] = field(default_factory=list)
    cases: int = 0

    def add(self, line: bytes) -> None:
        self.lines.append(line)
        self.size += len(line)

    def flush(self) -> None:
        """Writes the lines collected so far as one part."""
        data = b"".join(self.lines)
        sha256 = self._write("parts", "jsonl", data)
        count = len(self.lines)
        self.parts.append({"bytes": len(data), "count": count, "first": self.cases, "sha256": sha256})
        self.cases += count
        self.lines = []
        self.size = 0

    def finish(self) -> str:
        """Writes the index; its sha256 is the digest of the store."""
        index = {"cases": self.cases, "kind": self.kind, "parts": self.parts, "schema": 1}
        return self._write("index", "json", canonical_json(index))

    def _write(self, what: str, suffix: str, data: bytes) -> str:
        sha256 = sha256_hex(data)
        folder = self.folder / self.kind / what
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{sha256}.{suffix}").write_bytes(data)
        return sha256


class _Writer:
    """Writes cases to the stores, which all break their parts at the same cases."""

    def __init__(self, folder: Path, *, with_solutions: bool) -> None:
        kinds: tuple[StoreKind, ...] = ("inputs", "targets", "solutions")
        self.stores = [_Store(kind, folder) for kind in (kinds if with_solutions else kinds[:2])]

    def add(self, case: Case) -> None:
        rows = _rows(case)
        lines = [canonical_json(row) + b"\n" for row in rows[: len(self.stores)]]
        if any(len(line) > MAX_PART_BYTES for line in lines):
            message = f"expected a case of at most {MAX_PART_BYTES:,} bytes, found more"
            raise BundleInvalid([Problem("", message, field=f"case {case.id}")])
        full = len(self.stores[0].lines) == MAX_PART_CASES or any(
            store.size + len(line) > MAX_PART_BYTES for store, line in zip(self.stores, lines, strict=True)
        )
        if full:
            self._flush()
        for store, line in zip(self.stores, lines, strict=True):
            store.add(line)

    def _flush(self) -> None:
        for store in self.stores:
            store.flush()

    def finish(self) -> dict[StoreKind, str]:
        """Writes what is left and the indexes: the digest of each store."""
        if self.stores[0].lines:
            self._flush()
        return {store.kind: store.finish() for store in self.stores}


def _rows(case: Case) -> list[dict[str, Any]]:
    """The case as the three stores hold it: only the first is ever read on the model's side."""
    # What the model's side sees of the case.
    shown: dict[str, Any] = {"messages": case.messages}
    if case.fields is not None:
        shown["fields"] = case.fields
    input_digest = json_digest(case.messages if case.fields is None else shown)
    head = {"position": case.position, "id": case.id}
    return [
        {**head, **shown, "digest": input_digest},
        {
            **head,
            "target": case.target,
            "rules": case.rules,
            "cluster": case.cluster,
            "slices": case.slices,
            "digest": json_digest([case.id, input_digest, case.target, case.rules]),
        },
        {**head, "solution": case.solution},
    ]


def validate(tree: BundleTree) -> EnvironmentManifest:
    """Checks a whole bundle, rows included; raises ``BundleInvalid`` with all of its problems."""
    log = ProblemLog()
    manifest, document = parse_manifest(tree, log)
    if document is not None:
        recipe = manifest or salvage(document)
        if recipe is not None:
            for _ in CasePass(tree, recipe, document, log).cases():
                pass
    log.raise_if_any()
    assert manifest is not None
    return manifest


def materialise(tree: BundleTree, manifest: EnvironmentManifest, out_dir: Path) -> Materialised:
    """Writes the stores of a bundle below ``out_dir``, each file named as its object is.

    ``manifest`` is what ``validate`` gave for this tree. The same tree gives the same bytes. Raises
    ``BundleInvalid`` with all problems of the rows, and ``FileExistsError`` where there is a store already;
    nothing that was written stays then.
    """
    log = ProblemLog()
    document = parse_manifest(tree, log).document or YamlDocument()
    writer = _Writer(out_dir, with_solutions=manifest.oracle is not None)
    for store in writer.stores:
        if (out_dir / store.kind).exists():
            raise FileExistsError(f"{out_dir / store.kind} exists already")
    try:
        for case in CasePass(tree, manifest, document, log).cases():
            writer.add(case)
        log.raise_if_any()
        digests = writer.finish()
        harness_json = pack_harness(tree, manifest, out_dir / "inputs")
        rules = _packed(tree, manifest.scoring, out_dir / "targets")
    except BaseException:
        for store in writer.stores:
            shutil.rmtree(out_dir / store.kind, ignore_errors=True)
        raise
    scoring = canonical_json(dump_rules(rules))
    return Materialised(
        cases=writer.stores[0].cases,
        materialiser=MATERIALISER_VERSION,
        inputs_digest=digests["inputs"],
        targets_digest=digests["targets"],
        solutions_digest=digests.get("solutions", ""),
        scoring_json=scoring.decode(),
        scoring_digest=sha256_hex(scoring),
        harness_json=harness_json,
    )


def _packed(tree: BundleTree, rules: Sequence[RuleSpec], store: Path) -> list[RuleSpec]:
    """The rules with the digests of their programs, which are written to the store of targets."""
    return [
        rule.model_copy(update={"program": pack_program(tree, rule.files, store)})
        if isinstance(rule, ProgramRule)
        else rule
        for rule in rules
    ]

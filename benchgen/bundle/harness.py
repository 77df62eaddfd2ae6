"""The program of a harness: which files of the bundle it gets, and what a run has to know of it."""

from __future__ import annotations

from pathlib import Path

from benchgen.bundle.digest import canonical_json
from benchgen.bundle.manifest import CaseRecipe, ProgramHarness
from benchgen.bundle.programs import WHOLE_BUNDLE, pack_program, program_problem
from benchgen.bundle.tree import MANIFEST_FILE, BundleTree


def hidden_from_program(recipe: CaseRecipe) -> list[str]:
    """What a program must not see, since answers are in it: the data and what judges, with the folders around them."""
    dataset = recipe.dataset
    data = [dataset.file]
    if dataset.few_shot is not None and dataset.few_shot.file is not None:
        data.append(dataset.few_shot.file)
    folders = [path.rpartition("/")[0] or path for path in data]
    judges = [getattr(rule, "files", None) for rule in recipe.scoring]
    return [*folders, *(folder for folder in judges if isinstance(folder, str))]


def _without(recipe: CaseRecipe) -> list[str]:
    """What is left out of the program's files; a folder of its own has nothing of that kind."""
    return [MANIFEST_FILE, *hidden_from_program(recipe)]


def harness_problem(tree: BundleTree, recipe: CaseRecipe) -> str | None:
    """Why a bundle's harness program cannot be one, or None where it can."""
    harness = recipe.harness
    assert isinstance(harness, ProgramHarness)
    if harness.files == WHOLE_BUNDLE:
        return program_problem(tree, WHOLE_BUNDLE, _without(recipe))
    folder = f"{harness.files}/"
    for hidden in hidden_from_program(recipe):
        # Either way the program would read what it has to find out.
        if f"{hidden}/".startswith(folder) or folder.startswith(f"{hidden}/"):
            return f'expected a folder that shares nothing with data and judges, found "{hidden}" in or around it'
    return program_problem(tree, harness.files)


def pack_harness(tree: BundleTree, recipe: CaseRecipe, store: Path) -> str:
    """Write the program of a harness below a store; returns what a run has to know of it as canonical JSON.

    Empty for a harness without a program.
    """
    harness = recipe.harness
    if not isinstance(harness, ProgramHarness):
        return ""
    without = _without(recipe) if harness.files == WHOLE_BUNDLE else ()
    described = {
        "type": harness.type,
        "program": pack_program(tree, harness.files, store, without),
        "command": harness.command,
        "io": harness.io,
        "batch": harness.batch,
        "calls": harness.calls,
        "runtime": harness.runtime,
        "limits": harness.limits.model_dump(),
    }
    return canonical_json(described).decode()

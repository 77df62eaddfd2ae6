"""The package format of environments: read, check, pack, and turn into data.

``load_folder`` or ``open_zip`` gives a ``BundleTree``; ``validate`` gives its manifest or all of its
problems; ``materialise`` writes the cases as runners and scorers read them.
"""

from __future__ import annotations

from benchgen.bundle.lint import lint
from benchgen.bundle.manifest import EnvironmentManifest
from benchgen.bundle.materialise import MATERIALISER_VERSION, Materialised, materialise, validate
from benchgen.bundle.problems import BundleInvalid, Problem
from benchgen.bundle.reader import load_folder, open_zip
from benchgen.bundle.starter import STARTERS, write_starter
from benchgen.bundle.tree import MANIFEST_FILE, BundleFile, BundleTree
from benchgen.bundle.writer import PackedBundle, pack

__all__ = [
    "MANIFEST_FILE",
    "MATERIALISER_VERSION",
    "STARTERS",
    "BundleFile",
    "BundleInvalid",
    "BundleTree",
    "EnvironmentManifest",
    "Materialised",
    "PackedBundle",
    "Problem",
    "lint",
    "load_folder",
    "materialise",
    "open_zip",
    "pack",
    "validate",
    "write_starter",
]

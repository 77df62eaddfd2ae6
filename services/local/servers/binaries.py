"""Where the wheels put the servers' programs."""

from __future__ import annotations

import importlib.metadata
import sys
from functools import cache
from pathlib import Path

from services.local.errors import MissingPackageError


@cache
def installed_program(program: str, package: str) -> Path:
    """Find a program that a wheel brought: beside the interpreter, else by the package's list of files."""
    beside = Path(sys.executable).with_name(program)
    if beside.exists():
        return beside
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == program and (found := Path(str(file.locate())).resolve()).exists():
            return found
    raise MissingPackageError(f"{program} is missing: install the package {package}")

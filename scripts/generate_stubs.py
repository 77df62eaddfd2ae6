"""Generates benchgen/eval/v1 from protos/: messages, gRPC stubs and their types.

`make protos` writes them; with --check nothing is written, and the exit code says whether they are fresh.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGE = Path("benchgen") / "eval"


def generate(out: Path) -> int:
    """Write all stubs below ``out``; returns protoc's exit code."""
    # The type generators are scripts beside the interpreter, which need not be on PATH.
    bin_dir = Path(sys.executable).parent
    plugins = [
        f"--plugin=protoc-gen-{name}={bin_dir / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")
    ]
    files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    outputs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python")]
    outputs += [f"--{kind}_out=quiet:{out}" for kind in ("mypy", "mypy_grpc")]
    includes = [f"-I{PROTOS}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
    code: int = protoc.main(["protoc", *includes, *plugins, *outputs, *files])
    if code == 0:
        (out / PACKAGE / "__init__.py").write_text('"""The contracts, by version."""\n')
        (out / PACKAGE / "v1" / "__init__.py").write_text(
            '"""Version 1 of the contracts: generated, never edited."""\n'
        )
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the committed stubs are fresh")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        code = generate(fresh)
        if code:
            return code
        if check:
            return _compare(fresh / PACKAGE, ROOT / PACKAGE)
        shutil.rmtree(ROOT / PACKAGE, ignore_errors=True)
        shutil.copytree(fresh / PACKAGE, ROOT / PACKAGE)
    return 0


def _compare(fresh: Path, committed: Path) -> int:
    def files(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*.py*") if path.suffix != ".pyc"}

    names = files(fresh) | files(committed)
    _, stale, missing = filecmp.cmpfiles(fresh, committed, names, shallow=False)
    for name in sorted([*stale, *missing]):
        print(f"{PACKAGE / name}: not what the protos say; run `make protos`", file=sys.stderr)
    return 1 if stale or missing else 0


if __name__ == "__main__":
    sys.exit(main())

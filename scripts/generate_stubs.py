"""Generates benchgen/eval/v1 from protos/: messages, gRPC stubs and their types. Run by `make protos`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
OUT = ROOT / "benchgen" / "eval"


def main() -> int:
    # The type generators are scripts beside the interpreter, which need not be on PATH.
    bin_dir = Path(sys.executable).parent
    plugins = [
        f"--plugin=protoc-gen-{name}={bin_dir / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")
    ]
    shutil.rmtree(OUT, ignore_errors=True)
    files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    code: int = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
            *plugins,
            f"--python_out={ROOT}",
            f"--grpc_python_out={ROOT}",
            f"--mypy_out={ROOT}",
            f"--mypy_grpc_out={ROOT}",
            *files,
        ]
    )
    if code:
        return code
    for package, text in (
        (OUT, "The contracts, by version."),
        (OUT / "v1", "Version 1 of the contracts: generated, never edited."),
    ):
        (package / "__init__.py").write_text(f'"""{text}"""\n')
    return code


if __name__ == "__main__":
    sys.exit(main())

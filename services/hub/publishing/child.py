"""``python -m services.hub.publishing.child``: looks at an uploaded bundle where it can do no harm.

Runs with hard limits and without secrets. Validates the archive, renders the prompts, packs the canonical
bundle; all below one folder. Says on standard output how far it is.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

MIB = 1 << 20
#: The largest file it may write: the canonical bundle is the largest one there is.
_FILE_BYTES = 2 << 30
_OPEN_FILES = 64


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="services.hub.publishing.child")
    parser.add_argument("archive", type=Path, help="the uploaded zip")
    parser.add_argument("out", type=Path, help="an empty folder for everything that is made of it")
    parser.add_argument("--memory", type=int, required=True, help="address space, bytes")
    parser.add_argument("--cpu", type=int, required=True, help="processor time, seconds")
    parser.add_argument("--name", default="", help="how a competition is to be called")
    parser.add_argument("--version", default="", help="which version it is to be")
    return parser.parse_args()


def _limit(memory: int, cpu: int) -> None:
    """Give up what is not needed, for good: limits that were lowered cannot be raised again."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
    # The second after the first is for code that ignores the signal.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def main() -> int:
    """Do it. The exit code is 0 whenever there is a result, good or bad."""
    arguments = _arguments()
    _limit(arguments.memory, arguments.cpu)
    # Imported under the limits: each thread of a library's pool takes address space.
    os.environ["OMP_NUM_THREADS"] = "1"
    tempfile.tempdir = str(arguments.out)
    from benchgen.bundle.problems import BundleInvalid, OutOfMemory, Problem
    from services.hub.publishing.build import build
    from services.hub.publishing.domain import Wanted
    from services.hub.publishing.outcome import RESULT_FILE, Result, write_result, write_stage

    too_much = f"found that it needs more than {arguments.memory // MIB:,} MiB of memory"
    try:
        built = build(
            arguments.archive,
            arguments.out,
            lambda stage: os.write(sys.stdout.fileno(), write_stage(stage)),
            Wanted(arguments.name, arguments.version),
        )
        result = Result(built, ())
    except BundleInvalid as invalid:
        # A template does not know how much memory there is.
        problems = [
            replace(problem, message=f"expected the template to render, {too_much}")
            if isinstance(problem, OutOfMemory)
            else problem
            for problem in invalid.problems
        ]
        if invalid.more:
            problems.append(Problem("", f"and {invalid.more:,} more problems"))
        result = Result(None, tuple(problems))
    except MemoryError:
        result = Result(None, (Problem("", f"expected a bundle that can be processed, {too_much}"),))
    unfinished = arguments.out / f".{RESULT_FILE}"
    unfinished.write_bytes(write_result(result))
    unfinished.rename(arguments.out / RESULT_FILE)
    return 0


if __name__ == "__main__":
    sys.exit(main())

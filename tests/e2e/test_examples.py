"""The programs in `examples/`, run as their READMEs say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchgen.client import Client
from services.local.files import PROGRAM_ROOT
from tests.conftest import LocalStack

EXAMPLES = PROGRAM_ROOT / "examples"
ENVIRONMENT = "gsm8k-mini"
MODEL = "builtin/simulated?accuracy=1.0"
PACKAGES = ("@grpc/grpc-js", "@grpc/proto-loader")


@pytest.fixture(scope="module")
def settings(stack: LocalStack) -> dict[str, str]:
    """What the examples read from the environment; their environment is published."""
    with Client(stack.grpc, stack.api_key) as client:
        client.push(PROGRAM_ROOT / "environments" / ENVIRONMENT)
    return {"BENCHGEN_SERVER": stack.grpc, "BENCHGEN_API_KEY": stack.api_key}


def check(output: str) -> None:
    """Hold what an example printed against what its README shows."""
    lines = output.splitlines()
    assert re.fullmatch(r"r\w+ succeeded 20/20", lines[-2])
    assert re.fullmatch(r"\w+: 1\.000 \(95 % interval 0\.\d{3} to 1\.000, n = 20\)", lines[-1])


def test_python(settings: dict[str, str]) -> None:
    program = EXAMPLES / "python" / "run_evaluation.py"
    ended = subprocess.run(
        [sys.executable, str(program), ENVIRONMENT, MODEL],
        env=os.environ | settings | {"PYTHONPATH": str(PROGRAM_ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    check(ended.stdout)


def installed(folder: Path) -> None:
    """Install the packages of the Node example, or skip where that cannot be done."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("Node and npm are not installed here")
    command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    try:
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not get {' and '.join(PACKAGES)} in time")
    if ended.returncode != 0:
        pytest.skip(f"npm cannot get {' and '.join(PACKAGES)}: {ended.stderr.strip()[-300:]}")


@pytest.mark.timeout(200)
def test_node(settings: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "node"
    shutil.copytree(EXAMPLES / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    installed(folder)
    ended = subprocess.run(
        ["npm", "start", "--silent", "--", ENVIRONMENT, MODEL],
        cwd=folder,
        env=os.environ | settings | {"BENCHGEN_PROTOS": str(PROGRAM_ROOT / "protos")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    check(ended.stdout)

"""A small platform, a client of it, and the command line against it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchgen.bundle import write_starter
from benchgen.cli.main import main
from benchgen.client import Client
from tests.unit.cli.platform import API_KEY, Platform, serving


@pytest.fixture(autouse=True)
def no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write as into a file, whatever terminal the tests are watched on."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def platform() -> Platform:
    """The platform's state and knobs."""
    return Platform()


@pytest.fixture
def address(platform: Platform) -> Iterator[str]:
    """Where the platform is served."""
    with serving(platform) as served:
        yield served


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    """A client with the right key."""
    with Client(address, API_KEY, connect_seconds=2, patience=2) as opened:
        yield opened


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What `--json` printed, which must be all of stdout."""
        return json.loads(self.out)


Command = Callable[..., Ended]


@pytest.fixture
def offline(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """The `benchgen` command with no server configured and none running."""
    monkeypatch.setenv("BENCHGEN_DATA_DIR", str(tmp_path / "no-stack"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ended:
        capfd.readouterr()
        code = main(arguments)
        out, err = capfd.readouterr()
        return Ended(code, out, err)

    return run


@pytest.fixture
def benchgen(address: str, offline: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The `benchgen` command with the platform as its server."""
    monkeypatch.setenv("BENCHGEN_SERVER", address)
    monkeypatch.setenv("BENCHGEN_API_KEY", API_KEY)
    return offline


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small environment in a folder."""
    made = tmp_path / "my-task"
    write_starter(made, "my-task")
    return made

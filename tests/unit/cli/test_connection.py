"""Which server a command talks to, what happens when there is none, and what help costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import click
import pytest

import benchgen as package
from benchgen.cli.main import cli
from tests.unit.cli.conftest import Command
from tests.unit.cli.platform import API_KEY

HEAVY = {"grpc", "rich", "pydantic", "jinja2", "google.protobuf", "orjson"}


def write_stack(data_dir: Path, address: str, pid: int) -> None:
    """What the local stack leaves for clients."""
    data_dir.mkdir()
    (data_dir / "api-key").write_text(API_KEY + "\n")
    document = {"pid": pid, "grpc": address, "api_key_file": str(data_dir / "api-key")}
    (data_dir / "stack.json").write_text(json.dumps(document))


def test_the_local_stack_is_found(offline: Command, address: str, tmp_path: Path) -> None:
    write_stack(tmp_path / "data", address, os.getpid())
    for arguments in (("env", "list", "--data-dir", "data"), ("--data-dir", "data", "env", "list")):
        ended = offline(*arguments)
        assert ended.code == 0
        assert "gsm8k-mini" in ended.out


def test_a_flag_wins_over_a_variable(
    offline: Command, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stack(tmp_path / "data", address, os.getpid())
    monkeypatch.setenv("BENCHGEN_SERVER", "127.0.0.1:9")
    assert offline("env", "list", "--data-dir", "data").code == 0
    monkeypatch.setenv("BENCHGEN_API_KEY", API_KEY)
    assert offline("env", "list", "--server", address).code == 0
    assert offline("env", "list", "--server", address, "--data-dir", "data").code == 2


def test_no_server(offline: Command) -> None:
    for arguments in (("env", "list"), ("runs", "list"), ("results", "latest"), ("model", "list")):
        ended = offline(*arguments)
        assert ended.code == 4
        assert "no server" in ended.err
        assert "benchgen up" in ended.err


def test_what_a_dead_stack_left_is_no_server(offline: Command, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write_stack(tmp_path / "data", "127.0.0.1:9", gone.pid)
    assert offline("env", "list", "--data-dir", "data").code == 4


def test_a_stack_whose_gateway_is_away_is_not_said_to_be_none(offline: Command, tmp_path: Path) -> None:
    write_stack(tmp_path / "data", "127.0.0.1:9", os.getpid())
    ended = offline("env", "list", "--data-dir", "data")
    assert ended.code == 4
    assert "runs, but its gateway does not answer" in ended.err
    assert "benchgen status" in ended.err


def test_a_damaged_stack_file(offline: Command, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "stack.json").write_text("{")
    ended = offline("env", "list", "--data-dir", "data")
    assert ended.code == 4
    assert "is damaged" in ended.err


def test_a_server_that_does_not_answer(offline: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHGEN_API_KEY", API_KEY)
    ended = offline("env", "list", "--server", "127.0.0.1:9")
    assert ended.code == 4
    assert ended.err.startswith("error: cannot reach the server")


def test_a_server_needs_a_key(offline: Command, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = offline("env", "list", "--server", address)
    assert ended.code == 2
    assert "BENCHGEN_API_KEY" in ended.err
    monkeypatch.setenv("BENCHGEN_API_KEY", "bg_wrong")
    ended = offline("env", "list", "--server", address)
    assert ended.code == 2
    assert "no such API key" in ended.err
    assert "bg_wrong" not in ended.err


def test_without_the_services_run_says_how_to_get_them(tmp_path: Path) -> None:
    shutil.copytree(Path(package.__file__).parent, tmp_path / "wheel" / "benchgen")
    # Without site, so that an editable install of the clone is not seen.
    code = "import sys; sys.path += sys.argv[1:3]; from benchgen.cli.main import main; sys.exit(main(sys.argv[3:]))"
    argv = [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "wheel"), sysconfig.get_path("purelib")]
    ended = subprocess.run(
        [*argv, "run", "gsm8k-mini", "--model", "builtin/simulated", "--data-dir", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert ended.returncode == 4
    assert ended.stdout == ""
    assert "the services of BenchGen are not installed here" in ended.stderr
    assert "git clone" in ended.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom benchgen.cli.main import main\n"
        "main(['run', '--help'])\nprint(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(ended.stderr.split())


def commands(command: click.Command, path: str = "benchgen") -> list[tuple[str, click.Command]]:
    """Every command with its path."""
    found = [(path, command)]
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            found += commands(child, f"{path} {name}")
    return found


@pytest.mark.parametrize(("path", "command"), commands(cli))
def test_every_command_teaches_by_example(offline: Command, path: str, command: click.Command) -> None:
    ended = offline(*path.split()[1:], "--help")
    assert ended.code == 0
    examples = [line for line in ended.out.splitlines() if line.startswith("    benchgen ")]
    assert any(line.strip().startswith(path) for line in examples)


def test_a_group_alone_shows_its_help(offline: Command) -> None:
    for arguments in ((), ("env",), ("model",), ("runs",)):
        ended = offline(*arguments)
        assert ended.code == 0
        assert "Usage:" in ended.out


def test_version(offline: Command) -> None:
    assert offline("--version").out.startswith("benchgen ")

"""``python -m services.local up|down|status``: what `benchgen up` and its companions run."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil

from benchgen.errors import BenchgenError
from services.local import report
from services.local.children import end_stale
from services.local.errors import LocalStackError
from services.local.files import PROGRAM_ROOT, private_folder, rotate
from services.local.settings import port_names
from services.local.state import DataDir, StackState, default_data_dir
from services.local.supervisor import START_SECONDS, supervise
from services.local.units import Unit, servers, services

OK, UNREACHABLE = 0, 4
# A supervisor stops eight processes in six steps, each with its own grace.
_STOP_SECONDS = 90.0


def up(data: DataDir, runners: int, servers_only: bool) -> int:
    """Run the stack until SIGTERM or Ctrl-C."""
    with data.locked() as alone:
        if not alone:
            return _already_running(data, runners)
        stale = end_stale(data.processes(), grace_seconds=5.0)
        if stale:
            report.trouble(f"ended what a killed supervisor left: {', '.join(old.name for old in stale)}")
        settings = data.settings()
        settings.ports.claim(port_names(runners))
        units: list[Unit] = servers(settings)
        if not servers_only:
            units += services(settings, runners)
        report.say(f"starting BenchGen Eval in {data.path}")
        code = supervise(data, settings, units)
        report.say("stopped" if code == OK else "stopped, because it could not start")
        return code


def _already_running(data: DataDir, runners: int) -> int:
    deadline = time.monotonic() + START_SECONDS
    while (state := data.state()) is None and data.supervisor() and time.monotonic() < deadline:
        time.sleep(0.1)
    if state is None:
        raise LocalStackError(f"another `up` in {data.path} did not become ready; see {data.logs}")
    report.say(f"it runs already (pid {state.pid})")
    there = sum(service.name.startswith("runner-") for service in state.services)
    if there != runners:
        report.trouble(f"it has {there} runners; `benchgen down` first to start it with {runners}")
    report.where(state)
    return OK


def up_detached(data: DataDir, runners: int, servers_only: bool) -> int:
    """Run the stack in the background; return when it is ready, repeating its lines meanwhile."""
    private_folder(data.path)
    private_folder(data.logs)
    log = data.logs / "supervisor.log"
    rotate(log)
    command = [
        sys.executable,
        "-m",
        "services.local",
        "up",
        f"--runners={runners}",
        f"--data-dir={data.path}",
    ]
    with log.open("ab") as output, log.open("rb") as lines:
        lines.seek(0, 2)
        process = subprocess.Popen(
            [*command, "--servers-only"] if servers_only else command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=PROGRAM_ROOT,
            start_new_session=True,
        )
        while True:
            code = process.poll()
            state = data.state()
            ready = state is not None and state.pid == process.pid
            sys.stdout.write(lines.read().decode(errors="replace"))
            sys.stdout.flush()
            if code is not None:
                return code
            if ready:
                # It outlives us on purpose; nobody waits for it here.
                process.returncode = 0
                return OK
            time.sleep(0.05)


def down(data: DataDir) -> int:
    """Stop the stack that runs in this data directory, and what a killed one left."""
    supervisor = data.supervisor()
    if supervisor is None:
        stale = end_stale(data.processes(), grace_seconds=5.0)
        names = ", ".join(record.name for record in stale)
        report.say(f"not running; ended what was left: {names}" if stale else "not running")
        return OK
    began = time.monotonic()
    os.kill(supervisor.pid, signal.SIGTERM)
    while supervisor.find():
        if time.monotonic() - began > _STOP_SECONDS:
            raise LocalStackError(
                f"pid {supervisor.pid} did not stop within {_STOP_SECONDS:.0f} s; see {data.logs}"
            )
        time.sleep(0.05)
    report.say(f"stopped in {time.monotonic() - began:.1f} s")
    return OK


def status(data: DataDir, as_json: bool) -> int:
    """Tell what runs where; 4 when nothing does."""
    supervisor, state = data.supervisor(), data.state()
    if supervisor is None or state is None:
        word = "starting" if supervisor else "stopped"
        if as_json:
            print(json.dumps({"state": word, "data_dir": str(data.path)}))
        else:
            report.say(f"{'starting' if supervisor else 'not running'} ({data.path})")
        return UNREACHABLE
    health = _health(data, state)
    if as_json:
        document = {
            "state": "running",
            **asdict(state),
            "uptime_seconds": round(time.time() - state.started_at, 1),
        }
        for service in document["services"]:
            service["health"] = health[service["name"]]
            service["uptime_seconds"] = round(time.time() - service["started_at"], 1)
        print(json.dumps(document, indent=1))
        return OK
    report.say(f"running (pid {state.pid}) for {report.duration(time.time() - state.started_at)}")
    for service in state.services:
        report.status_line(service, health[service.name])
    report.where(state)
    return OK


def _health(data: DataDir, state: StackState) -> dict[str, str]:
    """Ask every process how it is: ``ready``, ``not ready`` or ``dead``."""
    settings = data.settings()
    runners = sum(service.name.startswith("runner-") for service in state.services)
    units: list[Unit] = [*servers(settings), *services(settings, runners)]
    answers = {unit.name: unit.answers for unit in units}
    return {
        service.name: "dead"
        if not psutil.pid_exists(service.pid)
        else ("ready" if answers[service.name]() else "not ready")
        for service in state.services
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchgen", description="Run BenchGen Eval on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", help="start everything and keep it running")
    start.add_argument("--runners", type=int, default=2, metavar="N", help="runner processes (2)")
    start.add_argument("--detach", action="store_true", help="return when it is ready, leave it running")
    start.add_argument(
        "--servers-only",
        action="store_true",
        help="PostgreSQL, NATS and SeaweedFS only, for services that you start yourself",
    )
    show = commands.add_parser("status", help="what runs where")
    show.add_argument("--json", action="store_true", help="one JSON document")
    commands.add_parser("down", help="stop everything; data is kept")
    for command in commands.choices.values():
        command.add_argument(
            "--data-dir", type=Path, metavar="DIR", help="default: $BENCHGEN_DATA_DIR, else in your home"
        )
    return parser


def main(arguments: list[str]) -> int:
    """Return the exit code: 0 done, 2 bad usage, 4 when it does not run or could not start."""
    parser = _parser()
    options = parser.parse_args(arguments)
    data = DataDir(options.data_dir or default_data_dir())
    try:
        match options.command:
            case "up":
                if not 1 <= options.runners <= 64:
                    parser.error(f"--runners: expected 1 to 64, found {options.runners}")
                if options.detach:
                    return up_detached(data, options.runners, options.servers_only)
                return up(data, options.runners, options.servers_only)
            case "down":
                return down(data)
            case _:
                return status(data, options.json)
    except (BenchgenError, OSError) as error:
        print(f"benchgen {options.command}: {error}", file=sys.stderr)
        return UNREACHABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

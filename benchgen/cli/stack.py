"""`benchgen up`, `down` and `status`: the stack of this machine. The work is done by `services.local`."""

from __future__ import annotations

import os
import sys

import click

from benchgen.cli.connection import Target, local_command, services_root
from benchgen.cli.options import data_dir_option, json_option, pass_target


@click.command()
@click.option(
    "--runners",
    metavar="N",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="How many runners.",
)
@click.option("--detach", is_flag=True, help="Come back when it is ready, and leave it running.")
@data_dir_option
@pass_target
def up(target: Target, *, runners: int, detach: bool) -> None:
    """Start BenchGen on this machine and keep it running.

    Real servers (PostgreSQL, NATS, SeaweedFS) and all services start in one data directory, on free ports of
    this machine only. Ctrl-C stops them; data is kept for the next start. The first start publishes the
    environments that come with BenchGen.

    \b
    Examples:
      benchgen up
      benchgen up --runners 4 --data-dir ./data
      benchgen up --detach
    """
    _become(target, "up", f"--runners={runners}", *(["--detach"] if detach else []))


@click.command()
@data_dir_option
@pass_target
def down(target: Target) -> None:
    """Stop what `benchgen up` started; data is kept.

    \b
    Examples:
      benchgen down
      benchgen down --data-dir ./data
    """
    _become(target, "down")


@click.command()
@json_option
@data_dir_option
@pass_target
def status(target: Target, *, as_json: bool) -> None:
    """Show what runs on this machine, and where. Exit code 4 when nothing does.

    \b
    Examples:
      benchgen status
      benchgen status --json
    """
    _become(target, "status", *(["--json"] if as_json else []))


def _become(target: Target, name: str, *arguments: str) -> None:
    """Replace this process, so that signals reach the supervisor and its exit code is ours."""
    command = [*local_command(name, target.folder()), *arguments]
    os.chdir(services_root())
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606 - an argument list, no shell

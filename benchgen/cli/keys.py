"""`benchgen keys`: who may use the server, and spend how much a day."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from benchgen.cli import text
from benchgen.cli.budget import read_usd
from benchgen.cli.connection import Target
from benchgen.cli.options import HIGHEST_TOKENS, at_most, help_alone, json_option, pass_target, server_options
from benchgen.cli.output import emit, note, print_json, table

if TYPE_CHECKING:
    from benchgen.eval.v1 import key_pb2

_SCOPES = ("read", "run", "publish", "models", "answers", "admin")


@click.group(invoke_without_command=True)
@click.pass_context
def keys(context: click.Context) -> None:
    """API keys: who may use the server, and how much their runs may spend a day.

    All of it needs a key with the scope `admin`.

    \b
    Examples:
      benchgen keys add ci --scope read --scope run --max-cost 5
      benchgen keys list
      benchgen keys budget k3f9a1c07be24 --max-cost 20
      benchgen keys rm k3f9a1c07be24
    """
    help_alone(context)


@keys.command()
@click.argument("name", metavar="NAME")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(_SCOPES),
    default=("read", "run"),
    show_default=True,
    help="What it may do. Repeatable.",
)
@click.option("--max-cost", metavar="USD", callback=read_usd, help="US dollars that its runs may cost a day.")
@click.option(
    "--max-tokens",
    metavar="N",
    type=click.IntRange(min=0),
    callback=at_most(HIGHEST_TOKENS),
    help="Tokens that they may use a day.",
)
@json_option
@server_options
@pass_target
def add(
    target: Target,
    *,
    name: str,
    scopes: tuple[str, ...],
    max_cost: int | None,
    max_tokens: int | None,
    as_json: bool,
) -> None:
    """Make a key, and print its secret: it is shown this once, and stored nowhere.

    \b
    Examples:
      benchgen keys add ci --scope read --scope run --max-cost 5
    """
    from benchgen import schemas
    from benchgen.eval.v1 import key_pb2

    request = key_pb2.CreateKeyRequest(display_name=name, scopes=scopes)
    if max_cost is not None or max_tokens is not None:
        request.daily_budget.CopyFrom(key_pb2.KeyBudget(cost_picousd=max_cost, tokens=max_tokens))
    with target.connect() as client:
        made = client.create_key(request)
    if as_json:
        print_json(schemas.new_key_json(made))
        return
    click.echo(made.secret)
    note(f"the key {made.key.name} ({name}): {', '.join(made.key.scopes)}; {_limits(made.key)}")
    note("this is the only time that it is shown; put it into BENCHGEN_API_KEY")


@keys.command("list")
@json_option
@server_options
@pass_target
def list_(target: Target, *, as_json: bool) -> None:
    """List all keys, oldest first.

    \b
    Examples:
      benchgen keys list --json
    """
    from benchgen import schemas

    with target.connect() as client:
        found = client.list_keys()
    if as_json:
        print_json([schemas.key_json(key) for key in found])
        return
    rows = table("key", "name", "scopes", "a day", "made", "used")
    for key in found:
        state = " (revoked)" if key.HasField("revoke_time") else ""
        rows.add_row(
            key.name,
            text.clean(key.display_name) + state,
            ", ".join(key.scopes),
            _limits(key),
            text.age(key.create_time),
            text.age(key.last_use_time),
        )
    emit(rows)


@keys.command()
@click.argument("key", metavar="KEY")
@server_options
@pass_target
def rm(target: Target, *, key: str) -> None:
    """Revoke a key: within seconds nobody can use it any more. Its runs go on.

    \b
    Examples:
      benchgen keys rm k3f9a1c07be24
    """
    with target.connect() as client:
        client.revoke_key(key)
    click.echo(f"{key} is revoked")


@keys.command()
@click.argument("key", metavar="KEY")
@click.option("--max-cost", metavar="USD", callback=read_usd, help="US dollars that its runs may cost a day.")
@click.option(
    "--max-tokens",
    metavar="N",
    type=click.IntRange(min=0),
    callback=at_most(HIGHEST_TOKENS),
    help="Tokens that they may use a day.",
)
@json_option
@server_options
@pass_target
def budget(target: Target, *, key: str, max_cost: int | None, max_tokens: int | None, as_json: bool) -> None:
    """Replace what the runs of a key may spend a day (UTC). What is not given is not limited.

    It holds for runs that are under way, too: they are paused when it is used up.

    \b
    Examples:
      benchgen keys budget k3f9a1c07be24 --max-cost 20
      benchgen keys budget k3f9a1c07be24              # no limit
    """
    from benchgen import schemas
    from benchgen.eval.v1 import key_pb2

    with target.connect() as client:
        changed = client.set_key_budget(key, key_pb2.KeyBudget(cost_picousd=max_cost, tokens=max_tokens))
    if as_json:
        print_json(schemas.key_json(changed))
    else:
        click.echo(f"{changed.name} ({text.clean(changed.display_name)}): {_limits(changed)}")


def _limits(key: key_pb2.ApiKey) -> str:
    daily = key.daily_budget
    limits = []
    if daily.HasField("cost_picousd"):
        limits.append(f"{text.usd(daily.cost_picousd / 10**12)} a day")
    if daily.HasField("tokens"):
        limits.append(f"{text.count(daily.tokens)} tokens a day")
    return ", ".join(limits) or "no limit"

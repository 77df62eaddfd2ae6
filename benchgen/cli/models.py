"""`benchgen model`: the endpoints that runs are pointed at."""

from __future__ import annotations

import os
import re
from decimal import Decimal, InvalidOperation
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import click

from benchgen.cli import text
from benchgen.cli.connection import Target
from benchgen.cli.exits import Exit, Stop
from benchgen.cli.generation import generation_of
from benchgen.cli.options import (
    HIGHEST_COUNT,
    at_most,
    generation_options,
    help_alone,
    json_option,
    pass_target,
    server_options,
)
from benchgen.cli.output import emit, fields, note, print_json, table

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


def _price(_context: click.Context, _option: click.Parameter, value: str | None) -> str:
    """US dollars per million tokens, as the decimal text that was given; empty when unknown."""
    if value is None:
        return ""
    try:
        price = Decimal(value)
    except InvalidOperation:
        price = Decimal(-1)
    if not price.is_finite() or price < 0:
        raise click.BadParameter(f"expected dollars per million tokens such as 0.15, found {value!r}")
    return format(price, "f")


@click.group(invoke_without_command=True)
@click.pass_context
def model(context: click.Context) -> None:
    """Models: the endpoints that answer.

    Any endpoint that speaks the OpenAI chat API can be registered under a name of yours: hosted ones, and
    vLLM, SGLang, Ollama or llama.cpp on your own machine. Built-in models need no key.

    \b
    Examples:
      benchgen model list
      benchgen model add gpt --base-url https://api.openai.com/v1 \\
          --model gpt-4.1-mini --api-key-env OPENAI_API_KEY
      benchgen model test gpt
    """
    help_alone(context)


@model.command()
@click.argument("name")
@click.option(
    "--base-url", required=True, metavar="URL", help="Where it is, such as http://localhost:8000/v1."
)
@click.option("--model", "model_id", required=True, metavar="ID", help="Its name at the endpoint.")
@click.option(
    "--api-key-env",
    metavar="VARIABLE",
    help="The environment variable that holds its API key. The key is stored encrypted and never shown.",
)
@click.option("--price-in", metavar="USD", callback=_price, help="US dollars per million prompt tokens.")
@click.option("--price-out", metavar="USD", callback=_price, help="US dollars per million reply tokens.")
@click.option("--price-cached", metavar="USD", callback=_price, help="The same for tokens read from a cache.")
@click.option(
    "--max-concurrency",
    metavar="N",
    type=click.IntRange(min=1),
    callback=at_most(HIGHEST_COUNT),
    help="The most calls at the same time. [default: 64]",
)
@click.option("--description", default="", help="One line about it.")
@generation_options
@json_option
@server_options
@pass_target
def add(target: Target, /, *, name: str, api_key_env: str | None, as_json: bool, **given: Any) -> None:
    """Register an endpoint under NAME.

    Without prices, what a run costs stays unknown; nothing is guessed.

    \b
    Examples:
      benchgen model add local --base-url http://localhost:8000/v1 --model qwen3-8b
      benchgen model add gpt --base-url https://api.openai.com/v1 --model gpt-4.1-mini \\
          --api-key-env OPENAI_API_KEY --price-in 0.40 --price-out 1.60
    """
    from benchgen import schemas
    from benchgen.eval.v1 import model_pb2

    secret = _secret(api_key_env)
    _check_url(given["base_url"], has_secret=bool(secret))
    wanted = model_pb2.Model(
        name=name,
        base_url=given["base_url"],
        model_id=given["model_id"],
        api=model_pb2.Model.API_OPENAI_CHAT,
        price=model_pb2.Price(
            input_usd_per_mtok=given["price_in"],
            output_usd_per_mtok=given["price_out"],
            cached_usd_per_mtok=given["price_cached"],
        ),
        max_concurrency=given["max_concurrency"] or 0,
        generation=generation_of(given),
        description=given["description"],
    )
    with target.connect(start=True) as client:
        made = client.create_model(wanted, secret)
    if as_json:
        print_json(schemas.model_json(made))
        return
    click.echo(f"added {made.name}: {made.model_id} at {made.base_url}")
    note(f"test it: benchgen model test {made.name}")


def _secret(variable: str | None) -> str:
    if variable is None:
        return ""
    secret = os.environ.get(variable, "").strip()
    if not secret:
        # Whoever gave the key itself must not find it in a log.
        named = variable if _VARIABLE.fullmatch(variable) else "that --api-key-env names"
        raise Stop(
            Exit.BAD_INPUT,
            f"the variable {named} is not set",
            "--api-key-env takes the name of an environment variable, not the key itself",
        )
    return secret


def _check_url(url: str, *, has_secret: bool) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Stop(Exit.BAD_INPUT, f"--base-url: expected http://... or https://..., found {url!r}")
    if parts.username or parts.password:
        raise Stop(
            Exit.BAD_INPUT,
            "--base-url: expected no user or password in it",
            "give the key with --api-key-env",
        )
    if has_secret and parts.scheme == "http" and not _is_this_machine(parts.hostname):
        note(f"warning: the API key will travel to {parts.hostname} unencrypted; prefer https://")


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@model.command("list")
@json_option
@server_options
@pass_target
def list_(target: Target, *, as_json: bool) -> None:
    """List the models that runs can be pointed at, the built-in ones first.

    \b
    Examples:
      benchgen model list
      benchgen model list --json
    """
    from benchgen import schemas

    with target.connect() as client:
        models = list(client.list_models())
    if as_json:
        print_json([schemas.model_json(one) for one in models])
        return
    rows = table("name", "what", "key", "$/M in", "$/M out", right=["$/M in", "$/M out"])
    for one in models:
        what = one.description if one.builtin else f"{one.model_id} at {one.base_url}"
        key = "–" if one.builtin else "stored" if one.has_secret else "none"
        prices = (one.price.input_usd_per_mtok or "–", one.price.output_usd_per_mtok or "–")
        rows.add_row(one.name, text.clean(what), key, *prices)
    emit(rows)


@model.command()
@click.argument("name")
@json_option
@server_options
@pass_target
def show(target: Target, *, name: str, as_json: bool) -> None:
    """Show one model. Its key is never shown.

    \b
    Examples:
      benchgen model show gpt
      benchgen model show builtin/simulated
    """
    from benchgen import schemas

    with target.connect() as client:
        found = client.get_model(name)
    document = schemas.model_json(found)
    if as_json:
        print_json(document)
        return
    price = document["price_usd_per_mtok"]
    known = [f"{kind} ${amount}" for kind, amount in price.items() if amount is not None]
    settings = {key: value for key, value in document["generation"].items() if value not in (None, [], {})}
    rows = [
        ("name", found.name),
        ("about", text.clean(found.description)),
        ("endpoint", found.base_url),
        ("model", found.model_id),
        ("key", "" if found.builtin else "stored" if found.has_secret else "none"),
        ("price", "" if found.builtin else f"{', '.join(known) or text.UNKNOWN} per million tokens"),
        ("concurrency", "" if found.builtin else f"{document['max_concurrency']} calls at most"),
        ("settings", ", ".join(f"{key} {value}" for key, value in settings.items())),
    ]
    emit(fields(rows))


@model.command()
@click.argument("name")
@json_option
@server_options
@pass_target
def test(target: Target, *, name: str, as_json: bool) -> None:
    """Make one tiny call and say what came back.

    \b
    Examples:
      benchgen model test gpt
    """
    from benchgen import schemas

    with target.connect() as client:
        answer = client.test_model(name)
    document = schemas.model_test_json(answer)
    if as_json:
        print_json(document)
    elif answer.ok:
        tokens = document["tokens"]
        rows = [
            ("reply", text.clean(answer.response) or "(empty)"),
            ("model", text.clean(answer.reported_model)),
            ("latency", text.milliseconds(answer.latency_ms)),
            ("tokens", text.tokens(tokens["input"], tokens["output"]) if tokens else "not reported"),
        ]
        click.echo(f"{name} answers")
        emit(fields(rows))
    if not answer.ok:
        status = f"HTTP {answer.http_status}: " if answer.http_status else ""
        raise Stop(Exit.UNFINISHED, f"{name} does not answer: {status}{text.clean(answer.error)}")


@model.command()
@click.argument("name")
@server_options
@pass_target
def rm(target: Target, *, name: str) -> None:
    """Remove a model and its key. Runs and reports of it stay.

    \b
    Examples:
      benchgen model rm gpt
    """
    with target.connect() as client:
        client.delete_model(name)
    click.echo(f"removed {name}")

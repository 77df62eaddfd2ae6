"""`benchgen env`: write, check, publish and fetch environments."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchgen.cli import competitions, text
from benchgen.cli.connection import Target
from benchgen.cli.exits import Exit, Stop
from benchgen.cli.options import help_alone, json_option, pass_target, server_options
from benchgen.cli.output import emit, fields, note, print_json, table

if TYPE_CHECKING:
    from benchgen.bundle import BundleTree, Problem
    from benchgen.client import Client
    from benchgen.eval.v1 import environment_pb2

_MANIFEST = "environment.yaml"
_COMPETITION = "competition.yaml"
_NEW_SOURCE = click.Path(exists=True, path_type=Path)
_TEMPLATES = ("math", "choice", "instruct", "agent")


@click.group(invoke_without_command=True)
@click.pass_context
def env(context: click.Context) -> None:
    """Environments: questions, and how answers are judged.

    An environment is a folder with an environment.yaml and a dataset. Publishing it makes a version that
    never changes, so that two runs of the same version are comparable.

    \b
    From nothing to a published environment:
      benchgen env init my-task
      benchgen env validate my-task
      benchgen env push my-task
    """
    help_alone(context)


@env.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", help="The environment's name; the folder's name when not given.")
@click.option(
    "--template",
    type=click.Choice(_TEMPLATES),
    default="math",
    show_default=True,
    help="What to start from: a number as answer, multiple choice, instructions that a pattern checks, or an agent.",
)
def init(*, folder: Path, name: str | None, template: str) -> None:
    """Write a small working environment to start from.

    \b
    Examples:
      benchgen env init my-task
      benchgen env init quiz --template choice
    """
    from benchgen import bundle

    chosen = name or folder.absolute().name.lower().replace("_", "-").replace(" ", "-")
    for path in bundle.write_starter(folder, chosen, template):
        click.echo(f"wrote {path}")
    note(f"next: edit {folder / _MANIFEST}, then `benchgen env validate {folder}`")


@env.command()
@click.argument("source", type=_NEW_SOURCE)
@json_option
def validate(*, source: Path, as_json: bool) -> None:
    """Check a folder or zip, without a server: all problems at once, with their places.

    It has an environment.yaml, or a competition.yaml as Codabench and CodaLab know it (versions 2, 1.5, 1.8).

    \b
    Examples:
      benchgen env validate my-task
      benchgen env validate my-task-1.0.0.zip --json
    """
    from benchgen import bundle
    from benchgen.bundle import competition

    with tempfile.TemporaryDirectory(prefix="benchgen-") as scratch:
        try:
            tree = _tree(source)
            if competition.is_competition(tree):
                competitions.tell(tree, competition.read_competition(tree), as_json=as_json)
                return
            manifest = bundle.validate(tree)
            made = bundle.materialise(tree, manifest, Path(scratch))
        except bundle.BundleInvalid as error:
            if as_json:
                _print_problems(error.problems)
            raise
    warnings = bundle.lint(tree)
    if as_json:
        print_json(
            {
                "valid": True,
                "environment_version": f"{manifest.name}@{manifest.version}",
                "digest": tree.digest,
                "cases": made.cases,
                "problems": [],
                "warnings": [str(warning) for warning in warnings],
            }
        )
        return
    for warning in warnings:
        note(f"warning: {warning}")
    cases = text.counted(made.cases, "case")
    click.echo(f"valid: {manifest.name}@{manifest.version}, {cases}, digest {tree.digest[:12]}")


def _print_problems(problems: list[Problem]) -> None:
    print_json(
        {
            "valid": False,
            "problems": [
                {
                    "file": problem.file,
                    "line": problem.line,
                    "field": problem.field,
                    "message": problem.message,
                }
                for problem in problems
            ],
        }
    )


@env.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The zip to write.")
@json_option
def pack(*, folder: Path, output: Path | None, as_json: bool) -> None:
    """Check a folder and write it as one zip: the same content gives the same bytes.

    \b
    Examples:
      benchgen env pack my-task
      benchgen env pack my-task -o /tmp/my-task.zip
    """
    from benchgen import bundle
    from benchgen.bundle import competition

    tree = _tree(folder)
    if competition.is_competition(tree):
        name = competition.read_competition(tree).competition.slug
    else:
        manifest = bundle.validate(tree)
        name = f"{manifest.name.replace('/', '-')}-{manifest.version}"
    archive = output or Path(f"{name}.zip")
    packed = bundle.pack(folder, archive)
    if as_json:
        print_json({"file": str(archive), **packed._asdict()})
    else:
        content = f"{text.counted(packed.files, 'file')}, {text.size(packed.bytes)}"
        click.echo(f"wrote {archive}: {content}, digest {packed.digest[:12]}")


@env.command()
@click.argument("source", type=_NEW_SOURCE)
@click.option("--name", default="", help="For competition.yaml: the name; made of its title when not given.")
@click.option(
    "--version",
    default="",
    help="For competition.yaml: the version; 1.0.0, and a minor version more each time, when not given.",
)
@json_option
@server_options
@pass_target
def push(target: Target, *, source: Path, name: str, version: str, as_json: bool) -> None:
    """Publish a folder or zip as a version that can be run.

    The server checks everything, renders the prompts and scores the reference solutions and the empty answer.
    The same content again is the same version; other content under the same version number is refused.

    \b
    Examples:
      benchgen env push my-task
      benchgen env push my-task-1.0.0.zip --json
      benchgen env push competition.zip --name letters --version 2.0.0
    """
    from benchgen import schemas

    require_manifest(source)
    with target.connect(start=True) as client:
        publication = publish(client, source, name=name, version=version)
    if as_json:
        print_json(schemas.publication_json(publication))
    else:
        click.echo(_published(publication))
        for one in publication.verification.solutions:
            note(f"solution {one.solution} on {one.case_id}: {competitions.said_of(one)}")
        note(f"run it: benchgen run {publication.environment_version} --model NAME")


def publish(
    client: Client, source: Path, *, name: str = "", version: str = ""
) -> environment_pb2.Publication:
    """Push a folder or zip, saying on stderr how far it is."""
    from benchgen.eval.v1 import environment_pb2

    steps = {
        environment_pb2.Publication.STATE_UPLOADED: "uploaded",
        environment_pb2.Publication.STATE_VALIDATING: "checking",
        environment_pb2.Publication.STATE_MATERIALISING: "rendering prompts",
        environment_pb2.Publication.STATE_VERIFYING: "scoring the reference solutions",
    }

    def tell(publication: environment_pb2.Publication) -> None:
        if step := steps.get(publication.state):
            note(f"{step}…")

    return client.push(source, tell, name=name, version=version)


def require_manifest(source: Path) -> None:
    """End the command where a folder is no environment at all, before any server is asked."""
    if source.is_dir() and not any((source / name).is_file() for name in (_MANIFEST, _COMPETITION)):
        raise Stop(
            Exit.BAD_INPUT,
            f"{source} holds no {_MANIFEST} and no {_COMPETITION}",
            f"`benchgen env init {source}` writes one to start from",
        )


def _published(publication: environment_pb2.Publication) -> str:
    name, cases = publication.environment_version, text.counted(publication.cases, "case")
    if publication.already_published:
        return f"{name} is published already with exactly this content (digest {publication.digest[:12]})"
    return (
        f"published {name}: {cases}, digest {publication.digest[:12]}, {_verified(publication.verification)}"
    )


def _verified(verification: environment_pb2.Verification) -> str:
    from benchgen.eval.v1 import environment_pb2

    if not verification.HasField("empty_mean"):
        if verification.state == environment_pb2.Verification.STATE_VERIFIED:
            return f"verified: its solutions have scores ({text.counted(verification.cases, 'task')})"
        return f"not verified: {verification.message}"
    figures = f"the empty answer scores {text.score(verification.empty_mean)}"
    if verification.HasField("oracle_mean"):
        oracle = text.score(verification.oracle_mean)
        figures = f"the reference solutions score {oracle}, {figures}"
    figures += f" ({text.counted(verification.cases, 'case')})"
    if verification.state == environment_pb2.Verification.STATE_VERIFIED:
        return f"verified: {figures}"
    return f"not verified: {verification.message}" if verification.message else f"not verified: {figures}"


@env.command("list")
@json_option
@server_options
@pass_target
def list_(target: Target, *, as_json: bool) -> None:
    """List the environments that can be run.

    \b
    Examples:
      benchgen env list
      benchgen env list --json
    """
    from benchgen import schemas

    with target.connect() as client:
        environments = list(client.list_environments())
    if as_json:
        print_json([schemas.environment_json(environment) for environment in environments])
        return
    if not environments:
        note("no environment yet: `benchgen env push FOLDER` publishes one")
        return
    rows = table("name", "version", "cases", "category", "title", right=["cases"])
    for one in environments:
        category = schemas.category_name(one.category) or "–"
        rows.add_row(one.name, one.latest_version, text.count(one.cases), category, one.title)
    emit(rows)


@env.command()
@click.argument("ref", metavar="NAME[@VERSION]")
@json_option
@server_options
@pass_target
def show(target: Target, *, ref: str, as_json: bool) -> None:
    """Show one version: what it measures, how, and what it was verified with.

    \b
    Examples:
      benchgen env show gsm8k-mini
      benchgen env show gsm8k-mini@1.0.0 --json
    """
    from benchgen import schemas

    with target.connect() as client:
        version = client.get_version(ref)
        versions = [one.version for one in client.list_versions(version.environment)]
    document = schemas.version_json(version)
    if as_json:
        print_json(document | {"versions": versions})
        return
    rules = ", ".join(f"{rule['name']} ({rule['type']})" for rule in document["scoring"] or ())
    rows = [
        ("version", version.name + (" (hidden)" if version.yanked else "")),
        ("title", text.clean(version.title)),
        ("about", text.clean(version.description)),
        ("category", document["category"]),
        ("tags", ", ".join(version.tags)),
        ("license", version.license),
        ("cases", f"{text.count(version.cases)} ({version.split} split)"),
        ("scoring", rules or "hidden: this API key lacks the scope `answers`"),
        ("primary", version.primary_rule),
        ("check", _verified(version.verification)),
        ("digest", version.digest),
        ("published", text.age(version.create_time) if version.HasField("create_time") else ""),
        ("versions", ", ".join(versions)),
    ]
    if document["competition"] is not None:
        rows[-1:-1] = competitions.rows_of(document["competition"], version.verification)
    emit(fields(rows))
    note(f"run it: benchgen run {version.name} --model NAME")


@env.command()
@click.argument("ref", metavar="NAME[@VERSION]")
@click.option("--phase", default="0", help="The phase, by its name or its place from 0.")
@json_option
@server_options
@pass_target
def leaderboard(target: Target, *, ref: str, phase: str, as_json: bool) -> None:
    """Rank the runs of a competition as its bundle says.

    Missing scores are last. Runs with made-up answers are left out.

    \b
    Examples:
      benchgen env leaderboard letters
      benchgen env leaderboard letters --phase Final --json
    """
    from benchgen import schemas

    with target.connect() as client:
        version = client.get_version(ref)
        place = competitions.phase_of(version, phase)
        board = client.leaderboard(version.digest, place)
    if as_json:
        print_json(schemas.leaderboard_json(board))
    else:
        competitions.show_leaderboard(board)


@env.command()
@click.argument("ref", metavar="NAME[@VERSION]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="A folder that is not there yet, or a .zip file."
)
@server_options
@pass_target
def pull(target: Target, *, ref: str, output: Path | None) -> None:
    """Fetch a version as a folder or zip, answers included.

    The API key needs the scope `answers`.

    \b
    Examples:
      benchgen env pull gsm8k-mini
      benchgen env pull gsm8k-mini@1.0.0 -o gsm8k.zip
    """
    from benchgen import bundle
    from benchgen.names import environment_ref

    destination = output or Path(environment_ref(ref).name.rpartition("/")[2])
    if destination.exists():
        raise Stop(Exit.BAD_INPUT, f"{destination} exists already", "choose another place with -o")
    with target.connect() as client, tempfile.TemporaryDirectory(prefix="benchgen-") as scratch:
        version = client.get_version(ref)
        archive = Path(scratch) / "bundle.zip"
        client.download_bundle(version.name, archive)
        tree = bundle.open_zip(archive)
        if tree.digest != version.digest:
            raise Stop(Exit.UNFINISHED, f"expected the digest {version.digest}, found {tree.digest}")
        if destination.suffix == ".zip":
            shutil.copyfile(archive, destination)
        else:
            _write_tree(tree, destination)
    click.echo(f"wrote {version.name} to {destination}")


def _write_tree(tree: BundleTree, folder: Path) -> None:
    """Write the files of a bundle, whose paths were checked when it was opened."""
    for path in tree.paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with tree.open(path) as source, file.open("xb") as target:
            shutil.copyfileobj(source, target)


def _tree(source: Path) -> BundleTree:
    from benchgen import bundle

    require_manifest(source)
    return bundle.load_folder(source) if source.is_dir() else bundle.open_zip(source)

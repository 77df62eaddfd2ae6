"""Carries out the two steps of a competition's task."""

from __future__ import annotations

import asyncio
import json
import os
import tarfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from typing import IO, Any

from benchgen.bundle.competition.nested import program_root
from benchgen.bundle.competition.programs import Metadata, Role, argv, read_metadata
from benchgen.bundle.competition.scores import MAX_SCORES_BYTES, SCORE_FILES
from benchgen.bundle.reader import open_zip
from services.common.competition import together
from services.common.competition.archives import Zipped, tar_of, zip_of
from services.common.sandbox import Archive, Ended, Finished, Job, Limits, Mount, Provider

MODEL_PORT = 8000
"""The loopback port of the box on which the model proxy is reached."""

CASES_FILE = "results.jsonl"
MAX_CASES_BYTES = 8 << 20
MAX_DETAILS_BYTES = 8 << 20

_PROGRAM, _INGESTED, _INGESTION = "/app/program", "/app/ingested_program", "/app/ingestion_program"
_OUTPUT, _SHARED, _LOGS, _RES = "/app/output", "/app/shared", together.FOLDER, "/app/input/res"
_TOGETHER = "/app/together.py"
# All of them can be written to, as in the original: programs write beside themselves.
_FOLDERS = (_OUTPUT, _SHARED, _LOGS, _PROGRAM, _INGESTED, _INGESTION, "/app/data")
_LOG_CHARACTERS = 32_000

Serve = Callable[[socket], AbstractAsyncContextManager[Any]]
"""Serves the model proxy on a listening socket of the box."""


@dataclass(frozen=True, slots=True)
class Program:
    """A packed program, its metadata at the top, and the commands in it."""

    archive: Path
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A task of a phase. ``input_data`` and ``reference`` are unpacked folders; ``seconds`` limits each step."""

    seconds: float
    image: str = ""
    ingestion: Program | None = None
    input_data: Path | None = None
    ingestion_during_scoring: bool = False
    scoring: Program | None = None
    reference: Path | None = None


@dataclass(frozen=True, slots=True)
class ProgramLog:
    """How one program of a step went, and the end of what it wrote."""

    name: str
    ended: str
    exit_code: int | None
    seconds: float
    stdout: str = ""
    stderr: str = ""
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the prediction step gave. ``limit`` says which limit ended it; empty when none did."""

    files: Zipped
    logs: tuple[ProgramLog, ...]
    limit: str = ""


@dataclass(frozen=True, slots=True)
class Scoring:
    """What the scoring step gave. With an ``error`` there are no scores, and it says why."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    cases: bytes | None = None
    details: bytes | None = None
    logs: tuple[ProgramLog, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """What one box of a competition may use; the time is the phase's."""

    memory_bytes: int = 4 << 30
    processes: int = 512
    disk_bytes: int = 1 << 30
    log_bytes: int = 32 << 20


@dataclass(frozen=True, slots=True)
class _Started:
    """One program in a box."""

    name: str
    commands: list[list[str]]
    cwd: str


class Steps:
    """Runs steps, each in a box of its own.

    :param images: names of images that this machine has a runtime for; ``*`` for all. Other bundles get the default.
    """

    def __init__(self, provider: Provider, images: Collection[str], limits: StepLimits | None = None) -> None:
        self._provider = provider
        self._images = images
        self._limits = limits or StepLimits()

    async def predict(
        self,
        work: Work,
        submission: Path | None,
        scratch: Path,
        *,
        answers_only: bool = False,
        env: Mapping[str, str] | None = None,
        serve: Serve | None = None,
    ) -> Prediction:
        """Make predictions: by the ingestion program, the submission, or both at once.

        :param submission: a packed zip that was submitted.
        :param answers_only: it holds predictions, and nothing is run.
        :param scratch: a folder for the zip of predictions.
        :raises SandboxFailed: the box could not do its work.
        """
        said, root = await asyncio.to_thread(_metadata_of, submission, answers_only)
        if root is not None and submission is not None:
            submission = root
        runs = bool(said.commands) and not answers_only
        ingestion = None if answers_only or work.ingestion_during_scoring else work.ingestion
        copied = submission is not None and not runs and (said.file is None or work.ingestion_during_scoring)
        programs, archives = _predicting(ingestion, submission, said, runs=runs, copied=copied)
        target = scratch / "predictions.zip"
        if not programs:
            tars = [await asyncio.to_thread(tar_of, submission)] if copied and submission else []
            return Prediction(await asyncio.to_thread(zip_of, tars, _status([]), target), ())
        mounts = _mounts((work.input_data, "/app/input_data"))
        if ingestion is None:
            mounts += _mounts((work.input_data, "/app/input"))
        finished, logs = await self._box(work, programs, archives, mounts, [_OUTPUT], env=env, serve=serve)
        outputs = [finished.files[_OUTPUT]]
        files = await asyncio.to_thread(zip_of, outputs, _status(logs), target)
        limit = finished.describe() if finished.ended in _TIME_LIMITS else ""
        return Prediction(files, tuple(logs), limit)

    async def score(
        self, work: Work, predictions: Path, *, ingestion_sees_reference: bool = False
    ) -> Scoring:
        """Score predictions. Where the bundle has its ingestion program run now, it runs before the scoring program
        and without the reference data, or at the same time and with it where the operator allows that.

        :param predictions: a packed zip.
        :raises SandboxFailed: the box could not do its work.
        """
        scoring = work.scoring
        assert scoring is not None
        res = await asyncio.to_thread(tar_of, predictions)
        archives = [Archive(res, _RES), Archive(await asyncio.to_thread(tar_of, scoring.archive), _PROGRAM)]
        mounts = _mounts((work.reference, "/app/input/ref"))
        programs = [_started("scoring", scoring, Role.SCORING)]
        before: list[ProgramLog] = []
        if work.ingestion_during_scoring and work.ingestion is not None:
            mounts += _mounts((work.input_data, "/app/input_data"))
            ingestion = Archive(await asyncio.to_thread(tar_of, work.ingestion.archive), _INGESTION)
            if ingestion_sees_reference:
                programs.append(
                    _started("ingestion", work.ingestion, Role.INGESTION_DURING_SCORING, _INGESTION)
                )
                archives += [ingestion, Archive(res, _INGESTED)]
            else:
                made, before = await self._ingest(work, work.ingestion, res)
                archives += [Archive(made.files[folder], folder) for folder in (_OUTPUT, _SHARED)]
        finished, logs = await self._box(work, programs, archives, mounts, [_OUTPUT])
        return await asyncio.to_thread(_scoring, finished, (*before, *logs))

    async def _ingest(
        self, work: Work, ingestion: Program, res: IO[bytes]
    ) -> tuple[Finished, list[ProgramLog]]:
        """The ingestion program of the scoring step in a box of its own, where there is no reference data."""
        archives = [
            Archive(res, _RES),
            Archive(res, _INGESTED),
            Archive(await asyncio.to_thread(tar_of, ingestion.archive), _PROGRAM),
        ]
        programs = [_started("ingestion", ingestion, Role.INGESTION_DURING_SCORING)]
        mounts = _mounts((work.input_data, "/app/input_data"))
        return await self._box(work, programs, archives, mounts, [_OUTPUT, _SHARED])

    async def _box(
        self,
        work: Work,
        programs: Sequence[_Started],
        archives: Sequence[Archive],
        mounts: Sequence[Mount],
        collect: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        serve: Serve | None = None,
    ) -> tuple[Finished, list[ProgramLog]]:
        alone = len(programs) == 1 and len(programs[0].commands) == 1
        files: dict[str, bytes] = {}
        if alone:
            command, cwd = programs[0].commands[0], programs[0].cwd
        else:
            files[_TOGETHER] = Path(together.__file__).read_bytes()
            listed = [{"name": one.name, "commands": one.commands, "cwd": one.cwd} for one in programs]
            command, cwd = ["python3", _TOGETHER, json.dumps(listed)], "/app"
        limits = self._limits
        job = Job(
            command=command,
            cwd=cwd,
            env={"PYTHONUNBUFFERED": "1", **(env or {})},
            runtime=self._runtime(work.image),
            mounts=mounts,
            files=files,
            archives=archives,
            folders=[*_FOLDERS, *(archive.target for archive in archives if archive.target == _RES)],
            collect=(*collect, _LOGS),
            port=MODEL_PORT if serve is not None else None,
            limits=Limits(
                wall_seconds=work.seconds,
                cpu_seconds=work.seconds * (os.cpu_count() or 1),
                memory_bytes=limits.memory_bytes,
                processes=limits.processes,
                file_bytes=limits.disk_bytes,
                disk_bytes=limits.disk_bytes + sum(_size(archive) for archive in archives),
                output_bytes=limits.log_bytes,
            ),
        )
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(self._provider.run(job))
            if serve is not None and running.listener is not None:
                await stack.enter_async_context(serve(running.listener))
            finished = await running.wait()
        logs = [_log_alone(programs[0].name, finished)] if alone else _logs_together(programs, finished)
        if finished.refused:
            left = "\n".join(f"not handed out: {one}" for one in finished.refused)
            logs.append(ProgramLog("box", finished.ended.value, None, finished.wall_seconds, "", left))
        return finished, logs

    def _runtime(self, image: str) -> str:
        return image if image and (image in self._images or "*" in self._images) else "default"


_TIME_LIMITS = (Ended.WALL_LIMIT, Ended.CPU_LIMIT)


def _metadata_of(submission: Path | None, answers_only: bool) -> tuple[Metadata, Path | None]:
    """What a submission says about itself, and, where its program lies in a folder, a zip of that folder alone."""
    if submission is None or answers_only:
        return Metadata(None, ()), None
    tree = open_zip(submission, inner=True)
    root = program_root(tree)
    said = read_metadata(root)
    if root is tree or not said.commands:
        return read_metadata(tree), None
    from benchgen.bundle.competition.publish import write_pack

    folder = submission.with_name(f"{submission.name}-root")
    pack = write_pack(root, folder)
    return said, folder / f"{pack.sha256}.zip"


def _predicting(
    ingestion: Program | None, submission: Path | None, said: Metadata, *, runs: bool, copied: bool
) -> tuple[list[_Started], list[Archive]]:
    """Which programs a prediction starts, and where their files lie."""
    programs: list[_Started] = []
    archives: list[Archive] = []
    if ingestion is not None:
        programs.append(_started("ingestion", ingestion, Role.INGESTION))
        archives.append(Archive(tar_of(ingestion.archive), _PROGRAM))
        if submission is not None:
            archives.append(Archive(tar_of(submission), _INGESTED))
    if submission is not None and runs:
        # Two programs at once cannot both be at one path: the submission is then where the ingestion sees it.
        home = _PROGRAM if ingestion is None else _INGESTED
        programs.append(_started("submission", Program(submission, said.commands), Role.SUBMISSION, home))
        if ingestion is None:
            archives.append(Archive(tar_of(submission), _PROGRAM))
    if submission is not None and copied and programs:
        archives.append(Archive(tar_of(submission), _OUTPUT))
    return programs, archives


def _started(name: str, program: Program, role: Role, home: str = _PROGRAM) -> _Started:
    commands = [argv(command, role) for command in program.commands]
    if home != _PROGRAM:
        commands = [[_moved(word, home) for word in command] for command in commands]
    return _Started(name, commands, home)


def _moved(word: str, home: str) -> str:
    return word.replace(_PROGRAM, home) if f"{word}/".startswith(f"{_PROGRAM}/") else word


def _mounts(*wanted: tuple[Path | None, str]) -> list[Mount]:
    return [Mount(source, target) for source, target in wanted if source is not None]


def _size(archive: Archive) -> int:
    if isinstance(archive.source, bytes):
        return len(archive.source)
    at = archive.source.seek(0, os.SEEK_END)
    archive.source.seek(0)
    return at


def _status(logs: Sequence[ProgramLog]) -> dict[str, bytes]:
    """The file `metadata` that is put beside predictions; some scoring programs read how long they took."""
    by_name = {log.name: log for log in logs}
    submission, ingestion = by_name.get("submission"), by_name.get("ingestion")
    first = submission or ingestion
    fields = {
        "elapsedTime": first and round(first.seconds, 3),
        "exitCode": submission and submission.exit_code,
        "ingestionElapsedTime": ingestion and round(ingestion.seconds, 3),
        "ingestionExitCode": ingestion and ingestion.exit_code,
    }
    lines = (f"{key}: {'null' if value is None else value}\n" for key, value in fields.items())
    return {"metadata": "".join(lines).encode()}


def _log_alone(name: str, finished: Finished) -> ProgramLog:
    stdout, out_cut = _text(finished.stdout)
    stderr, err_cut = _text(finished.stderr)
    return ProgramLog(
        name,
        finished.ended.value,
        finished.exit_code,
        finished.wall_seconds,
        stdout,
        stderr,
        out_cut or err_cut or finished.truncated,
    )


def _logs_together(programs: Sequence[_Started], finished: Finished) -> list[ProgramLog]:
    went = _went(finished)
    logs = []
    for one in programs:
        known = went.get(one.name)
        known = known if isinstance(known, dict) else {}
        code, seconds = known.get("exit_code"), known.get("seconds")
        stdout, out_cut = _text(finished.read(f"{_LOGS}/{one.name}_stdout") or b"")
        stderr, err_cut = _text(finished.read(f"{_LOGS}/{one.name}_stderr") or b"")
        ended = Ended.EXITED.value if known else finished.ended.value
        logs.append(
            ProgramLog(
                one.name,
                ended,
                code if isinstance(code, int) else None,
                float(seconds) if isinstance(seconds, int | float) else finished.wall_seconds,
                stdout,
                stderr,
                out_cut or err_cut,
            )
        )
    return logs


def _went(finished: Finished) -> dict[str, Any]:
    try:
        went = json.loads(finished.read(f"{_LOGS}/went.json") or b"{}")
    except ValueError:
        return {}
    return went if isinstance(went, dict) else {}


def _text(data: bytes) -> tuple[str, bool]:
    """The end of a log as text that a database takes, and whether there was more."""
    text = data.decode("utf-8", "replace").replace("\0", "\ufffd")
    return text[-_LOG_CHARACTERS:], len(text) > _LOG_CHARACTERS


def _scoring(finished: Finished, logs: tuple[ProgramLog, ...]) -> Scoring:
    log = next(log for log in logs if log.name == "scoring")
    names = _names(finished.files[_OUTPUT])
    details = _read(finished, _details(names), MAX_DETAILS_BYTES)
    cases = _read(finished, CASES_FILE if CASES_FILE in names else None, MAX_CASES_BYTES)
    if finished.ended is not Ended.EXITED or log.exit_code != 0:
        return Scoring({}, cases, details, logs, _failure(finished, log))
    files = {}
    for name in SCORE_FILES:
        if name in names:
            # One byte more than may be: whoever reads them says that they are too large.
            content = finished.read(f"{_OUTPUT}/{name}")
            files[name] = b" " * (MAX_SCORES_BYTES + 1) if content is None else content
    return Scoring(files, cases, details, logs)


def _failure(finished: Finished, log: ProgramLog) -> str:
    how = finished.describe() if finished.ended is not Ended.EXITED else f"exited with code {log.exit_code}"
    lines = log.stderr.strip().splitlines()
    last = f": {lines[-1][:500]}" if lines else ""
    hint = ""
    if "Missing parentheses in call to 'print'" in log.stderr:
        hint = " (it is written for Python 2: see BENCHGEN_RUNTIMES for another runtime)"
    return f"the scoring program {how}{last}{hint}"


def _read(finished: Finished, name: str | None, limit: int) -> bytes | None:
    return None if name is None else finished.read(f"{_OUTPUT}/{name}", limit)


def _details(names: Sequence[str]) -> str | None:
    """The page with detailed results: by its name, else the first one at the top."""
    pages = [name for name in names if name.lower().endswith(".html") and "/" not in name]
    return "detailed_results.html" if "detailed_results.html" in pages else pages[0] if pages else None


def _names(file: IO[bytes]) -> list[str]:
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        return sorted(member.name.removeprefix("./") for member in tar if member.isreg())

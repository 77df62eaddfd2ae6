"""The two steps of a competition in real boxes: what programs see, what counts, and what is kept of them."""

from __future__ import annotations

import asyncio
import json
import sys
import zipfile
from pathlib import Path

import pytest

from benchgen.bundle.competition import Dialect, read_scores
from benchgen.bundle.competition.model import Column
from services.common.competition import Prediction, Program, Scoring, Steps, Work
from services.common.sandbox.bubblewrap import Bubblewrap
from services.common.sandbox.runtimes import Runtimes
from tests.unit.bundle.competition.support import Files, zipped


@pytest.fixture
def steps() -> Steps:
    return Steps(Bubblewrap(Runtimes({"default": sys.base_prefix})), ())


class Bench:
    """Packs small programs below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def pack(self, files: Files) -> Path:
        self._count += 1
        path = self.folder / f"{self._count}.zip"
        path.write_bytes(zipped(files))
        return path

    def data(self, files: Files) -> Path:
        self._count += 1
        folder = self.folder / f"data{self._count}"
        for name, content in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    def program(self, code: str, command: str = "python3 main.py") -> Program:
        return Program(self.pack({"main.py": code}), (command,))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def files_of(made: Prediction) -> dict[str, str]:
    with zipfile.ZipFile(made.files.path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def values(scored: Scoring) -> dict[str, float]:
    assert not scored.error
    return dict(read_scores(scored.files, [Column("score", "Score", 0)], Dialect.V2).values)


WRITE = "import json, os, sys\nopen('/app/output/out.json', 'w').write(json.dumps({expression}))\n"


def writing(expression: str) -> str:
    return WRITE.replace("{expression}", expression)


async def test_predictions_are_copied_as_they_are(steps: Steps, bench: Bench, tmp_path: Path) -> None:
    """Without metadata a submission is predictions; a bundle without ingestion runs nothing."""
    made = await steps.predict(Work(seconds=5), bench.pack({"a/answers.txt": "x"}), tmp_path)
    found = files_of(made)
    assert found["a/answers.txt"] == "x"
    assert "elapsedTime: null" in found["metadata"]
    assert made.logs == ()


async def test_a_submitted_program_finds_its_files_and_the_input(
    steps: Steps, bench: Bench, tmp_path: Path
) -> None:
    code = writing(
        "[os.getcwd(), sys.argv[1:], open('/app/input_data/x.txt').read(), os.path.exists('/app/input/ref')]"
    )
    submission = bench.pack(
        {"metadata.yaml": "command: python3 main.py $input $output $program", "main.py": code}
    )
    work = Work(seconds=20, input_data=bench.data({"x.txt": "data"}), reference=bench.data({"secret": "s"}))
    made = await steps.predict(work, submission, tmp_path)
    found = files_of(made)
    assert json.loads(found["out.json"]) == [
        "/app/program",
        ["/app/input", "/app/output", "/app/program"],
        "data",
        False,
    ]
    assert "exitCode: 0" in found["metadata"]
    assert [(log.name, log.exit_code) for log in made.logs] == [("submission", 0)]


async def test_ingestion_and_submission_run_at_once_and_share_the_output(
    steps: Steps, bench: Bench, tmp_path: Path
) -> None:
    """Each waits for the other: neither could end alone."""
    wait = "import os, time\nwhile not os.path.exists('/app/output/{other}'): time.sleep(0.01)\n"
    ingestion = bench.program(
        "open('/app/output/asked', 'w').write('2')\n"
        + wait.replace("{other}", "answered")
        + "print('ingested', os.listdir('/app/ingested_program'))\n"
    )
    code = (
        wait.replace("{other}", "asked")
        + "open('/app/output/answered', 'w').write('4')\nprint(os.getcwd())\n"
    )
    submission = bench.pack({"metadata": "command: python3 /app/program/main.py\n", "main.py": code})
    made = await steps.predict(Work(seconds=20, ingestion=ingestion), submission, tmp_path)
    assert files_of(made)["answered"] == "4"
    logs = {log.name: log for log in made.logs}
    assert logs["ingestion"].exit_code == 0, logs
    assert "main.py" in logs["ingestion"].stdout
    assert logs["submission"].stdout == "/app/ingested_program\n"


async def test_exit_codes_of_the_prediction_are_ignored(steps: Steps, bench: Bench, tmp_path: Path) -> None:
    """A result submission makes an ingestion program fail that looks for a model, and is scored all the same."""
    ingestion = bench.program("import model")
    made = await steps.predict(
        Work(seconds=20, ingestion=ingestion), bench.pack({"answers.txt": "x"}), tmp_path
    )
    assert files_of(made)["answers.txt"] == "x"
    assert "ingestionExitCode: 1" in files_of(made)["metadata"]
    assert "No module named 'model'" in made.logs[0].stderr
    assert made.limit == ""


async def test_a_time_limit_kills(steps: Steps, bench: Bench, tmp_path: Path) -> None:
    work = Work(
        seconds=0.5, ingestion=bench.program("print('here', flush=True)\nimport time\ntime.sleep(60)")
    )
    made = await steps.predict(work, None, tmp_path)
    assert made.limit.startswith("reached its time limit")
    assert made.logs[0].stdout == "here\n"


async def test_a_submission_with_metadata_and_no_command_is_only_seen_by_the_ingestion(
    steps: Steps, bench: Bench, tmp_path: Path
) -> None:
    submission = bench.pack({"metadata": "description: a model", "model.py": "answer = 42"})
    ingestion = bench.program(
        "import sys\nsys.path.append('/app/ingested_program')\nimport model\nprint(model.answer)\n"
    )
    made = await steps.predict(Work(seconds=20, ingestion=ingestion), submission, tmp_path)
    assert made.logs[0].stdout == "42\n"
    assert list(files_of(made)) == ["metadata"]
    assert list(files_of(await steps.predict(Work(seconds=20), submission, tmp_path))) == ["metadata"]


SCORE = """
import json, os
truth, given = open('/app/input/ref/t').read(), open('/app/input/res/a').read()
open('notes.txt', 'w').write('the working directory can be written to')
open('/app/output/scores.json', 'w').write(json.dumps({'score': float(truth == given)}))
open('/app/output/results.jsonl', 'w').write('{"case_id": "1", "value": 1}\\n')
open('/app/output/page.html', 'w').write('<h1>Details</h1>')
print(os.getcwd(), 'elapsedTime' in open('/app/input/res/metadata').read())
"""


async def test_scoring(steps: Steps, bench: Bench) -> None:
    work = Work(seconds=20, scoring=bench.program(SCORE), reference=bench.data({"t": "x"}))
    scored = await steps.score(work, bench.pack({"a": "x", "metadata": "elapsedTime: 1"}))
    assert values(scored) == {"score": 1.0}
    assert scored.details == b"<h1>Details</h1>"
    assert scored.cases == b'{"case_id": "1", "value": 1}\n'
    assert scored.logs[0].stdout == "/app/program True\n"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (
            "import sys\nopen('/app/output/scores.json', 'w').write('{\"score\": 1}')\nsys.exit(3)",
            "exited with code 3",
        ),
        ("raise ValueError('no truth')", "exited with code 1: ValueError: no truth"),
        ("print 'old'", "written for Python 2"),
        ("import time\ntime.sleep(60)", "reached its time limit"),
    ],
)
async def test_only_a_scoring_program_that_ends_well_has_scores(
    steps: Steps, bench: Bench, code: str, error: str
) -> None:
    scored = await steps.score(Work(seconds=2, scoring=bench.program(code)), bench.pack({"a": "x"}))
    assert error in scored.error
    assert scored.files == {}
    assert scored.logs[0].name == "scoring"


@pytest.mark.parametrize("sees", [False, True])
async def test_ingestion_during_scoring_sees_the_truth_only_where_that_is_allowed(
    steps: Steps, bench: Bench, sees: bool
) -> None:
    ingestion = bench.program(
        "import os\nseen = os.path.exists('/app/input/ref/t')\n"
        "open('/app/shared/seen', 'w').write(str(int(seen)))\n"
        "open('/app/output/made', 'w').write(open('/app/ingested_program/a').read())\n"
    )
    scoring = bench.program(
        "import json, os, time\n"
        "while not os.path.exists('/app/output/made'): time.sleep(0.01)\n"
        "json.dump({'score': int(open('/app/shared/seen').read() or 0) + 10},"
        " open('/app/output/scores.json', 'w'))\n"
    )
    work = Work(
        seconds=20,
        scoring=scoring,
        ingestion=ingestion,
        ingestion_during_scoring=True,
        reference=bench.data({"t": "x"}),
    )
    scored = await steps.score(work, bench.pack({"a": "x"}), ingestion_sees_reference=sees)
    assert values(scored) == {"score": 11.0 if sees else 10.0}
    assert sorted(log.name for log in scored.logs) == ["ingestion", "scoring"]


async def test_a_program_reaches_what_is_served_on_its_loopback(
    steps: Steps, bench: Bench, tmp_path: Path
) -> None:
    from collections.abc import AsyncIterator
    from contextlib import asynccontextmanager
    from socket import socket

    @asynccontextmanager
    async def serve(listener: socket) -> AsyncIterator[None]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.0 200 OK\r\n\r\nhello")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, sock=listener):
            yield

    code = "import os, urllib.request\nprint(urllib.request.urlopen(os.environ['MODEL_BASE_URL']).read())"
    work = Work(seconds=20, ingestion=bench.program(code))
    made = await steps.predict(
        work, None, tmp_path, env={"MODEL_BASE_URL": "http://127.0.0.1:8000/v1"}, serve=serve
    )
    assert made.logs[0].stdout == "b'hello'\n", made.logs

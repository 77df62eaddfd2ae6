"""Boxes do what their jobs say: files in, output and files out, limits, a way to the caller, a clean end."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from services.common.process import Process
from services.common.sandbox import (
    Archive,
    Ended,
    Job,
    Limits,
    Mount,
    SandboxFailed,
    SandboxSettings,
    provider_of,
    run,
    watch,
)
from services.common.sandbox.bubblewrap import Bubblewrap
from services.common.sandbox.runtimes import Runtimes
from tests.integration.common.box_support import machine_runs


@pytest.fixture
def provider() -> Bubblewrap:
    return Bubblewrap(Runtimes({"default": sys.base_prefix}))


def _python(code: str, *arguments: str) -> list[str]:
    return ["python3", "-c", code, *arguments]


async def test_it_works_here(provider: Bubblewrap) -> None:
    await provider.check()


async def test_files_go_in_and_come_out(provider: Bubblewrap, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    (tmp_path / "data" / "mounted.txt").write_text("mounted")
    code = """
import os, sys
for path in sys.argv[1:]:
    print(open(path).read())
os.makedirs("deep/folder")
open("deep/folder/größe.txt", "w").write("made")
print(sys.stdin.read(), os.environ["WORD"], file=sys.stderr)
sys.exit(7)
"""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        info = tarfile.TarInfo("./sub/archived.txt")
        info.size = 8
        tar.addfile(info, io.BytesIO(b"archived"))
    found = await run(
        provider,
        Job(
            command=_python(code, "/app/in/mounted.txt", "/app/sent.txt", "/app/more/sub/archived.txt"),
            cwd="/app/output",
            env={"WORD": "word"},
            stdin=b"input",
            mounts=[Mount(tmp_path / "data", "/app/in")],
            files={"/app/sent.txt": b"sent"},
            archives=[Archive(packed.getvalue(), "/app/more")],
        ),
    )
    assert (found.ended, found.exit_code, found.signal) == (Ended.EXITED, 7, None), found
    assert found.stdout.split() == [b"mounted", b"sent", b"archived"]
    assert found.stderr == b"input word\n"
    assert found.read("/app/output/deep/folder/größe.txt") == b"made"
    assert found.read("/app/output/nothing") is None
    assert not found.refused
    assert not found.truncated


async def test_what_one_box_made_goes_into_the_next(provider: Bubblewrap) -> None:
    first = await run(
        provider, Job(command=["sh", "-c", "mkdir /app/output/a; echo hello > /app/output/a/b"])
    )
    second = Job(
        command=["cat", "/app/input/res/a/b"],
        archives=[Archive(first.files["/app/output"], "/app/input/res")],
    )
    assert (await run(provider, second)).stdout == b"hello\n"


async def test_several_folders_and_files_in_them(provider: Bubblewrap) -> None:
    job = Job(
        command=["sh", "-c", "cat /one/seed; echo two > /two/x; echo more >> /one/seed; echo no > /two/seed"],
        folders=["/one", "/two"],
        collect=["/one", "/two"],
        files={"/one/seed": b"seed\n"},
    )
    found = await run(provider, job)
    assert found.stdout == b"seed\n"
    assert found.read("/one/seed") == b"seed\nmore\n"
    assert found.read("/two/x") == b"two\n"


@pytest.mark.parametrize(
    ("command", "code", "word"),
    [
        (["no-such-command"], 127, b"No such file"),
        (["/app/data"], 126, b"Permission denied"),
        (["false"], 1, b""),
    ],
)
async def test_a_command_that_fails_is_the_programs_fault(
    provider: Bubblewrap, command: list[str], code: int, word: bytes
) -> None:
    found = await run(provider, Job(command=command, folders=["/app/data"], collect=[]))
    assert (found.ended, found.exit_code) == (Ended.EXITED, code)
    assert word in found.stderr


async def test_signals_are_told(provider: Bubblewrap) -> None:
    found = await run(provider, Job(command=_python("import os; os.kill(os.getpid(), 11)")))
    assert (found.ended, found.signal, found.exit_code) == (Ended.SIGNALLED, signal.SIGSEGV, None)


async def test_time_is_limited(provider: Bubblewrap) -> None:
    code = """
import signal, time
for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)
print("here", flush=True)
time.sleep(600)
"""
    found = await run(provider, Job(command=_python(code), limits=Limits(wall_seconds=1.5)))
    assert found.ended is Ended.WALL_LIMIT
    assert found.stdout == b"here\n"
    assert found.wall_seconds >= 1.5


async def test_cpu_time_is_limited_over_all_processes(provider: Bubblewrap) -> None:
    code = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    found = await run(provider, Job(command=_python(code), limits=Limits(cpu_seconds=0.5)))
    assert found.ended is Ended.CPU_LIMIT, found
    # Each for itself they would have got eight times a second.
    assert 0.5 <= found.cpu_seconds < 4


async def test_a_process_cannot_ignore_its_limit_of_cpu_time(provider: Bubblewrap) -> None:
    code = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    found = await run(provider, Job(command=_python(code), limits=Limits(cpu_seconds=0.3)))
    assert found.ended is Ended.CPU_LIMIT, found


async def test_the_port_is_the_way_out(provider: Bubblewrap) -> None:
    code = """
import socket
with socket.create_connection(("localhost", 8123)) as s:
    s.sendall(b"question")
    print(s.recv(100).decode())
"""
    async with provider.run(Job(command=_python(code), port=8123)) as running:
        assert running.listener is not None
        asked = asyncio.Queue[bytes]()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.put_nowait(await reader.read(100))
            writer.write(b"answer")
            writer.close()

        async with await asyncio.start_server(answer, sock=running.listener):
            found = await running.wait()
    assert found.stdout == b"answer\n", found
    assert asked.get_nowait() == b"question"


async def test_leaving_kills_the_tree(provider: Bubblewrap, tmp_path: Path) -> None:
    word = f"tree-{os.getpid()}"
    code = (
        f"import os, time\nfor _ in range(3):\n  if os.fork() == 0: os.setsid()\ntime.sleep(1000)  # {word}"
    )
    async with provider.run(Job(command=_python(code))) as running:
        for _ in range(200):
            if len(machine_runs(word)) >= 8:
                break
            await asyncio.sleep(0.05)
        assert len(machine_runs(word)) >= 8
    assert machine_runs(word) == []
    assert running.listener is None


async def test_waiting_can_be_cancelled(provider: Bubblewrap) -> None:
    word = f"9{os.getpid()}"

    async def endless() -> None:
        await run(provider, Job(command=["sleep", word]))

    task = asyncio.create_task(endless())
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert machine_runs(word) == []


async def test_what_cannot_be_prepared_is_the_sandboxes_fault(provider: Bubblewrap, tmp_path: Path) -> None:
    with pytest.raises(SandboxFailed, match="is not there"):
        await run(provider, Job(command=["true"], mounts=[Mount(tmp_path / "nothing", "/app/in")]))
    with pytest.raises(SandboxFailed, match="cannot make the folder /usr/mine"):
        await run(provider, Job(command=["true"], folders=["/usr/mine"]))
    with pytest.raises(SandboxFailed, match=r"no runtime 'other'.*BENCHGEN_RUNTIMES"):
        await run(provider, Job(command=["true"], runtime="other"))


async def test_without_bubblewrap_nothing_runs() -> None:
    runtimes = Runtimes({"default": sys.base_prefix})
    with pytest.raises(SandboxFailed, match="cannot be started"):
        await Bubblewrap(runtimes, program="/nowhere/bwrap").check()
    with pytest.raises(SandboxFailed, match="no box can be made"):
        await Bubblewrap(runtimes, program="/bin/false").check()
    with pytest.raises(SandboxFailed, match="BENCHGEN_SANDBOX is none"):
        await run(provider_of(SandboxSettings(sandbox="none")), Job(command=["true"]))


async def test_the_default_runtime() -> None:
    """What `make setup` made, and nothing of the services' own packages."""
    code = """
import importlib.util, numpy, openai, pandas, scipy.stats, sklearn.linear_model, yaml
openai.OpenAI(base_url="http://127.0.0.1:1/v1", api_key="x")
model = sklearn.linear_model.LinearRegression().fit(numpy.eye(3), [1, 2, 3])
print(importlib.util.find_spec("grpc"), importlib.util.find_spec("pip"))
"""
    provider = provider_of(SandboxSettings())
    await provider.check()
    found = await run(provider, Job(command=_python(code)))
    assert found.stdout == b"None None\n", found


@pytest.mark.parametrize("place", ["/tmp", "/var/tmp", "/dev/shm"])
async def test_a_runtime_where_a_box_can_write(place: str) -> None:
    """The box has a /tmp of its own; a clone of this repository there has its runtimes in the machine's."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        Path(folder).chmod(0o755)
        venv.create(folder, with_pip=False)
        boxes = Bubblewrap(Runtimes({"default": folder}))
        found = await run(
            boxes, Job(command=_python("import sys; print(sys.prefix); open('/tmp/mine', 'w')"))
        )
        assert (found.stdout.decode(), found.stderr) == (f"{folder}\n", b"")
        refused = await run(boxes, Job(command=_python(f"open({folder!r} + '/mine', 'w')")))
        assert b"Read-only file system" in refused.stderr or b"Permission denied" in refused.stderr


@pytest.mark.parametrize(
    ("how", "usable", "note"), [("auto", 1, "programs can be run"), ("none", 0, "programs are refused: ")]
)
async def test_a_service_says_whether_it_can_run_programs(how: str, usable: float, note: str) -> None:
    provider = provider_of(SandboxSettings.model_validate({"sandbox": how}))
    async with asyncio.TaskGroup() as group:
        process = Process("test", group)
        watch(process, provider)
        while "sandbox" not in process.notes:
            await asyncio.sleep(0.02)
        process.stopping.set()
    assert process.notes["sandbox"].startswith(note)
    assert REGISTRY.get_sample_value("benchgen_sandbox_usable", {"provider": provider.name}) == usable

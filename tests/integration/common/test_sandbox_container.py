"""Boxes by a container engine. What needs one is run by `make soak`, against ``TEST_CONTAINER_HOST``."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import aiohttp
import pytest

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
)

IMAGE = "localhost/benchgen-box-test:latest"
JOB = Job(command=["sh", "-c", "true"], runtime="image")


def _settings(**more: str) -> SandboxSettings:
    return SandboxSettings.from_environ(
        {
            "BENCHGEN_RUNTIMES": f'{{"image": "container:{IMAGE}", "none": "container:localhost/no-such-image:1"}}',
            **more,
        }
    )


@pytest.mark.parametrize("how", ["auto", "container"])
async def test_without_an_engine_the_reason_is_said(how: str, tmp_path: Path) -> None:
    settings = _settings(BENCHGEN_SANDBOX=how, BENCHGEN_CONTAINER_HOST=f"unix://{tmp_path}/none.sock")
    provider = provider_of(settings)
    with pytest.raises(
        SandboxFailed, match=r"no container engine answers at .*none\.sock.*BENCHGEN_CONTAINER_HOST"
    ):
        await run(provider, JOB)
    await provider_of(_settings(BENCHGEN_SANDBOX="auto")).check()  # folders need no engine
    wrong = provider_of(_settings(BENCHGEN_SANDBOX="container", BENCHGEN_CONTAINER_HOST="tcp://host:2375"))
    with pytest.raises(SandboxFailed, match="expected unix:///path/of/a/socket, found 'tcp://host:2375'"):
        await wrong.check()


async def test_folders_and_images_are_told_apart() -> None:
    with pytest.raises(SandboxFailed, match="is a container image: bubblewrap cannot run it"):
        await run(provider_of(_settings(BENCHGEN_SANDBOX="bubblewrap")), JOB)
    with pytest.raises(SandboxFailed, match="is a folder: it needs no container"):
        await run(provider_of(_settings(BENCHGEN_SANDBOX="container")), Job(command=["true"]))


@pytest.fixture
async def host() -> str:
    """An engine with an image that has a shell, and neither Python nor anything else."""
    host = os.environ.get("TEST_CONTAINER_HOST", "unix:///var/run/docker.sock")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        programs = ["/bin/sh", "/bin/cat", "/usr/bin/id", "/bin/ls", "/bin/sleep", "/bin/grep", "/bin/ln"]
        needed = set(programs)
        for program in programs:
            words = subprocess.run(
                ["ldd", program], capture_output=True, text=True, check=True
            ).stdout.split()
            needed |= {word for word in words if word.startswith("/")}
        for path in sorted(needed):
            tar.add(os.path.realpath(path), arcname=path[1:])
    connector = aiohttp.UnixConnector(host.removeprefix("unix://"))
    async with aiohttp.ClientSession(connector=connector) as session:
        url = "http://engine/images/create?fromSrc=-&repo=localhost/benchgen-box-test&tag=latest"
        async with session.post(url, data=io.BytesIO(packed.getvalue())) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()
    return host


@pytest.mark.soak
async def test_a_program_in_a_container(host: str, tmp_path: Path) -> None:
    provider = provider_of(_settings(BENCHGEN_CONTAINER_HOST=host))
    (tmp_path / "data").mkdir(mode=0o755)
    (tmp_path / "data" / "x").write_text("mounted\n")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        info = tarfile.TarInfo("x")
        info.size = 9
        tar.addfile(info, io.BytesIO(b"archived\n"))
    script = """
cat /app/data/x /app/sent/x /app/more/x -
echo made > /app/output/x; ln -s /etc /app/output/link
echo no > /app/sent/x || echo no > /planted || echo refused
ls /proc; cat /proc/net/dev; id -u; grep -E 'Cap|NoNew' /proc/self/status
exit 5
"""
    job = Job(
        command=["sh", "-c", script],
        runtime="image",
        mounts=[Mount(tmp_path / "data", "/app/data")],
        files={"/app/sent/x": b"sent\n"},
        archives=[Archive(packed.getvalue(), "/app/more")],
        stdin=b"typed\n",
    )
    found = await run(provider, job)
    assert (found.ended, found.exit_code) == (Ended.EXITED, 5), found
    assert found.stdout.startswith(b"mounted\nsent\narchived\ntyped\nrefused\n1\n"), found.stdout.decode()
    assert found.stdout.count(b"\t0000000000000000\n") == 5
    assert b"NoNewPrivs:\t1" in found.stdout
    assert b"eth0" not in found.stdout
    assert found.read("/app/output/x") == b"made\n"
    assert found.refused == ["/app/output/link: it is no regular file"]


@pytest.mark.soak
async def test_limits_and_the_end(host: str) -> None:
    provider = provider_of(_settings(BENCHGEN_CONTAINER_HOST=host))
    slow = Job(
        command=["sh", "-c", "trap '' TERM; sleep 100 & sleep 100"],
        runtime="image",
        limits=Limits(wall_seconds=1),
    )
    loud = Job(command=["sh", "-c", "while true; do echo xxxxxxxxxxxxxxxxxxxxxx; done"], runtime="image")
    bomb = Job(
        command=["sh", "-c", "a=x; while true; do a=$a$a; done"],
        runtime="image",
        limits=Limits(memory_bytes=50 << 20),
    )
    assert (await run(provider, slow)).ended is Ended.WALL_LIMIT
    assert (await run(provider, loud)).ended is Ended.OUTPUT_LIMIT
    found = await run(provider, bomb)
    assert found.ended is Ended.MEMORY_LIMIT or found.exit_code != 0, found
    assert not list(Path(tempfile.gettempdir()).glob("benchgen-box-*"))


@pytest.mark.soak
async def test_the_port_works_in_a_container(host: str) -> None:
    provider = provider_of(_settings(BENCHGEN_CONTAINER_HOST=host))
    async with provider.run(Job(command=["sleep", "60"], runtime="image", port=8000)) as running:
        assert running.listener is not None
        assert running.listener.getsockname() == ("127.0.0.1", 8000)


@pytest.mark.soak
async def test_an_image_that_is_not_there(host: str) -> None:
    never = provider_of(_settings(BENCHGEN_CONTAINER_HOST=host, BENCHGEN_CONTAINER_PULL="never"))
    job = Job(command=["true"], runtime="none")
    with pytest.raises(
        SandboxFailed, match=r"no-such-image:1 is not on this machine, and BENCHGEN_CONTAINER_PULL"
    ):
        await run(never, job)
    with pytest.raises(
        SandboxFailed, match=r"no-such-image:1 is not on this machine and cannot be pulled \(.+\)"
    ):
        await run(provider_of(_settings(BENCHGEN_CONTAINER_HOST=host)), job)


@pytest.mark.soak
async def test_nothing_is_left_of_a_service_that_was_killed(host: str) -> None:
    service = f"""
import asyncio, sys
from services.common.sandbox import Job, SandboxSettings, provider_of
async def main():
    settings = SandboxSettings(runtimes='{{"image": "container:{IMAGE}"}}', container_host="{host}")
    async with provider_of(settings).run(Job(command=["sleep", "1000"], runtime="image")):
        print("running", flush=True)
        await asyncio.sleep(1000)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", service, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"running\n"
    process.kill()
    await process.wait()
    await asyncio.sleep(6)
    provider = provider_of(_settings(BENCHGEN_CONTAINER_HOST=host))
    await provider.sweep()
    assert not list(Path(tempfile.gettempdir()).glob("benchgen-box-*"))
    connector = aiohttp.UnixConnector(host.removeprefix("unix://"))
    async with aiohttp.ClientSession(connector=connector) as session:
        for _ in range(100):
            async with session.get("http://engine/containers/json?all=true") as answer:
                left = [one for one in await answer.json() if "ai.benchgen.box" in one["Labels"]]
            if not left:
                break
            await asyncio.sleep(0.1)
    assert left == []

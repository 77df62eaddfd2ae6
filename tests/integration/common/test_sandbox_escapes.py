"""What nobody in a box may do, tried from inside one. Each guard has a test here that fails without it."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.common.sandbox import Ended, Finished, Job, Limits, run
from services.common.sandbox.bubblewrap import Bubblewrap
from services.common.sandbox.runtimes import Runtimes
from tests.integration.common.box_support import machine_runs

MIB = 1 << 20


def _provider() -> Bubblewrap:
    return Bubblewrap(Runtimes({"default": sys.base_prefix}))


@pytest.fixture
def provider() -> Bubblewrap:
    return _provider()


async def _python(provider: Bubblewrap, code: str, **limits: float) -> Finished:
    return await run(provider, Job(command=["python3", "-c", code], limits=Limits(**limits)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def probed() -> Iterator[dict[str, Any]]:
    """What one box found, with everything on the machine that it could find if nobody minded."""
    word = secrets.token_hex(8)
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
        pytest.MonkeyPatch.context() as patch,
    ):
        os.chmod(folder, 0o755)
        secret = Path(folder, "secret")
        secret.write_text("secret")
        secret.chmod(0o644)
        unix.bind(f"{folder}/socket")
        os.chmod(f"{folder}/socket", 0o777)
        unix.listen()
        abstract.bind(f"\0{word}")
        abstract.listen()
        patch.setenv("BENCHGEN_SERVICE_TOKEN", "secret")
        told = {
            "port": tcp.getsockname()[1],
            "unix": f"{folder}/socket",
            "abstract": word,
            "secrets": [
                str(secret),
                __file__,
                "/etc/shadow",
                f"/proc/{os.getpid()}/environ",
                sys.prefix + "/pyvenv.cfg",
            ],
        }
        probe = Path(__file__).with_name("box_probe.py").read_bytes()
        job = Job(command=["python3", "/app/probe.py", json.dumps(told)], files={"/app/probe.py": probe})
        found = asyncio.run(run(_provider(), job))
        assert found.exit_code == 0, found.stderr.decode()
        yield json.loads(found.stdout)


REFUSED = {
    "EPERM": """ptrace process_vm_readv kcmp pidfd_getfd unshare_user unshare_mount clone_user clone_net setns
        mount umount pivot_root chroot fsopen open_tree keyctl add_key request_key bpf perf_event_open open_by_handle_at
        name_to_handle_at init_module kexec_load personality reboot limits_of_the_guard
        priority_of_the_guard priority_of_everybody scheduling_of_the_guard processors_of_the_guard setgroups real_time
        set_time make_a_device tiocsti tiocsetd tioclinux socket_raw""",
    "ENOSYS": """clone3 io_uring_setup io_setup inotify_init1 userfaultfd memfd_create shmget msgget newer_calls
        x32_calls""",
    "EAFNOSUPPORT": "socket_netlink socket_packet socket_vsock socket_alg socket_bluetooth",
    "EPROTONOSUPPORT": "socket_sctp",
    "EACCES": "negative_nice guards_memory guards_environment guards_files guards_root",
    "ENETUNREACH": "connect_outside",
    "ECONNREFUSED": "connect_host_loopback connect_host_abstract",
    "ENOSPC": "many_terminals",
    "ENOENT": "connect_host_unix read_secret_0 read_secret_1 read_secret_2 read_secret_3 read_secret_4",
}


@pytest.mark.parametrize(
    ("name", "error"), [(name, error) for error, names in REFUSED.items() for name in names.split()]
)
def test_what_is_refused(probed: dict[str, Any], name: str, error: str) -> None:
    assert probed[name] == error


@pytest.mark.parametrize("name", ["own_priority", "own_processors", "socket_tcp", "socket_pair"])
def test_what_programs_need_is_allowed(probed: dict[str, Any], name: str) -> None:
    assert probed[name] is None


async def test_no_signal_ends_the_guard(provider: Bubblewrap) -> None:
    code = """
import os
for number in range(1, 65):
    try: os.kill(1, number)
    except OSError: pass
print("here")
"""
    found = await _python(provider, code)
    assert (found.ended, found.exit_code, found.stdout) == (Ended.EXITED, 0, b"here\n"), found


def test_the_guard_is_not_killed_from_inside(probed: dict[str, Any]) -> None:
    # As root the guard is another user; as an ordinary user, process 1 cannot be killed from inside.
    assert probed["kill_the_guard"] in ("EPERM", None)


def test_nobody_becomes_root(probed: dict[str, Any]) -> None:
    assert probed["setuid"] in ("EPERM", "EINVAL")  # there may be no root to become


def test_limits_cannot_be_raised(probed: dict[str, Any]) -> None:
    assert probed["raise_limits"] == "not allowed to raise maximum limit"
    assert probed["core"] == [1, 1]


def test_what_can_be_written(probed: dict[str, Any]) -> None:
    written = {name: result for name, result in probed.items() if name.startswith("write ")}
    assert len(written) == 13
    assert set(written.values()) <= {"EROFS", "EACCES", "ENOENT"}, written
    assert written["write /proc/self/oom_score_adj"] == written["write /proc/self/mem"] == "EROFS"
    assert probed["writable"] == ["/app/output", "/dev/shm", "/tmp"]


def test_nothing_of_the_service_is_there(probed: dict[str, Any]) -> None:
    assert probed["environment"] == ["HOME", "LANG", "PATH"]
    assert set(probed["root"]) <= {
        "app", "bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "root", "run", "sbin", "tmp", "usr",
        "var",
    }  # fmt: skip
    assert probed["processes"] == [1, probed["me"]]
    assert probed["interfaces"] == ["lo"]
    assert probed["hostname"] == "box"
    assert probed["files"] == [0, 1, 2, 3]  # the last one is the folder that was listed


def test_it_is_a_user_without_rights(probed: dict[str, Any]) -> None:
    users, groups, more = probed["ids"]
    assert len(set(users)) == len(set(groups)) == 1
    assert users[0] != 0
    assert set(more) <= {groups[0]}
    assert probed["status"]["NoNewPrivs"] == "1"
    assert probed["status"]["Seccomp"] == "2"
    rights = {value for name, value in probed["status"].items() if name.startswith("Cap")}
    assert rights == {"0" * 16}
    assert probed["nosuid"] == []
    assert probed["session"]


async def test_a_user_of_its_own_even_for_root(provider: Bubblewrap) -> None:
    if os.geteuid() != 0:
        return  # nothing to give away
    code = "import os, time; print(os.getuid(), flush=True); time.sleep(1)"
    two = await asyncio.gather(_python(provider, code), _python(provider, code))
    users = {int(found.stdout) for found in two}
    assert len(users) == 2
    assert min(users) >= 10_000


async def test_fork_bomb(provider: Bubblewrap) -> None:
    code = """
import os, sys, time
made = 0
try:
    while made < 500:
        if os.fork() == 0: time.sleep(60)
        made += 1
except BlockingIOError:
    pass
print(made)
"""
    found = await _python(provider, code, processes=20, wall_seconds=20)
    assert (found.ended, found.exit_code) == (Ended.EXITED, 0), found
    assert 10 <= int(found.stdout) <= 20
    bomb = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"
    assert (await _python(provider, bomb, processes=20, wall_seconds=1)).ended in (
        Ended.WALL_LIMIT,
        Ended.CPU_LIMIT,
    )


MEMORY_BOMBS = {
    "one process": "a = []\nwhile True: a.append(bytearray(1 << 20))",
    "many processes": """
import os, time
for _ in range(16):
    if os.fork() == 0:
        a = bytearray(os.urandom(1 << 20)) * 20
        time.sleep(60)
time.sleep(60)
""",
    "shared": """
import mmap, time
shared = mmap.mmap(-1, 300 << 20)
for at in range(0, len(shared), 4096): shared[at] = 1
time.sleep(60)
""",
    "sockets": """
import os, socket, time
for _ in range(2): os.fork()
pairs = []
while len(pairs) < 400:
    pairs.append(socket.socketpair())
    pairs[-1][0].setblocking(False)
    try:
        while True: pairs[-1][0].send(bytes(65536))
    except BlockingIOError: pass
time.sleep(60)
""",
    "connections": """
import socket, time
server = socket.create_server(("127.0.0.1", 0), backlog=500)
pairs = []
while True:
    pairs.append(socket.create_connection(server.getsockname()))
    pairs[-1].setblocking(False)
    pairs.append(server.accept()[0])
    try:
        while True: pairs[-2].send(bytes(65536))
    except BlockingIOError: pass
""",
    "locks": """
import fcntl, os
for _ in range(3): os.fork()
file = open(f"/tmp/{os.getpid()}", "wb")
at = 0
while True:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, at)
    at += 2
""",
    "page tables": """
import ctypes, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
size = 1 << 40
at = libc.mmap(None, ctypes.c_size_t(size), 1, 0x4022, -1, ctypes.c_long(0))
while True:
    for place in range(at, at + size, 2 << 20): ctypes.c_byte.from_address(place).value
""",
}


@pytest.mark.parametrize("code", MEMORY_BOMBS.values(), ids=MEMORY_BOMBS)
async def test_memory_bombs(provider: Bubblewrap, code: str) -> None:
    found = await _python(provider, code, memory_bytes=100 * MIB, wall_seconds=30)
    assert found.ended is Ended.MEMORY_LIMIT or b"MemoryError" in found.stderr, found


async def test_a_single_huge_allocation_fails_inside(provider: Bubblewrap) -> None:
    found = await _python(provider, "bytearray(4 << 30)", memory_bytes=100 * MIB)
    assert (found.exit_code, b"MemoryError" in found.stderr) == (1, True), found


async def test_shared_pages_are_counted_once(provider: Bubblewrap) -> None:
    code = """
import os, time
a = b"x" * (60 << 20)
for _ in range(8):
    if os.fork() == 0:
        time.sleep(0.5); os._exit(0)
for _ in range(8): os.wait()
print("done")
"""
    found = await _python(provider, code, memory_bytes=150 * MIB)
    assert found.stdout == b"done\n", found
    assert found.peak_memory_bytes is not None
    assert 60 * MIB < found.peak_memory_bytes < 150 * MIB


async def test_endless_output(provider: Bubblewrap) -> None:
    found = await _python(provider, "import os\nwhile True: os.write(1, b'x' * 65536)", output_bytes=100_000)
    assert found.ended is Ended.OUTPUT_LIMIT
    assert found.truncated
    assert found.stdout == b"x" * 100_000


async def test_full_disk(provider: Bubblewrap) -> None:
    code = """
import os
total = 0
for at, folder in enumerate(("/tmp", "/app/output", "/dev/shm", "/tmp/home")):
    try:
        with open(f"{folder}/big", "wb", buffering=0) as file:
            while True: total += file.write(bytes(1 << 20))
    except OSError as error:
        print(error.errno)
print(total)
try:
    os.unlink("/tmp/big")
    for at in range(10**6): open(f"/tmp/{at}", "w").close()
except OSError as error:
    print(error.errno, at)
"""
    found = await _python(provider, code, disk_bytes=16 * MIB, wall_seconds=60)
    errors = found.stdout.split()
    assert errors[:4] == [b"28"] * 4, found
    assert int(errors[4]) <= 16 * MIB
    assert errors[5] == b"28"
    assert int(errors[6]) < 33_000


async def test_files_too_large(provider: Bubblewrap) -> None:
    code = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for deed in (lambda f: f.write(bytes(2 << 20)), lambda f: f.truncate(1 << 40)):
    try:
        with open("/tmp/a", "wb", buffering=0) as file:
            print(deed(file))
            deed(file)
    except OSError as error: print(error.errno)
"""
    found = await _python(provider, code, file_bytes=MIB)
    assert found.stdout.split() == [str(MIB).encode(), b"27", b"27"], found


async def test_what_comes_out_is_regular_files_only(provider: Bubblewrap) -> None:
    code = r"""
import os, socket
os.chdir("/app/output")
os.symlink("/etc/passwd", "link"); os.symlink("/", "root"); os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
open("good", "w").write("good"); os.link("good", "hard")
open(b"\xff\xfe", "w").write("x")
os.mkdir("shut"); open("shut/in", "w").write("in"); os.chmod("shut/in", 0); os.chmod("shut", 0)
open("line\nbreak", "w").write("x")
open("sparse", "w").truncate(200 << 20)
open("sparse2", "w").truncate(200 << 20)
for _ in range(600):
    os.mkdir("d"); os.chdir("d")
open("deep", "w").write("x")
"""
    found = await _python(provider, code, disk_bytes=300 * MIB)
    assert found.exit_code == 0, found
    assert found.read("/app/output/good") == found.read("/app/output/hard") == b"good"
    assert found.read("/app/output/shut/in") == b"in"
    assert found.read("/app/output/line\nbreak") == b"x"
    refused = {
        name.removeprefix("/app/output/"): why
        for name, _, why in (line.partition(": ") for line in found.refused)
    }
    for name in ("link", "root", "fifo", "socket"):
        assert refused.pop(name) == "it is no regular file"
    assert refused.pop(r"\xff\xfe") == "its name is not UTF-8"
    assert sorted(refused.values()) == [
        "it is more than may be handed out",
        "its path is longer than 1024 bytes",
    ]


async def test_very_many_files(provider: Bubblewrap) -> None:
    code = "for at in range(10_100): open(f'/app/output/{at}', 'w').close()"
    found = await _python(provider, code)
    assert found.exit_code == 0
    assert len(found.refused) == 50
    assert {line.partition(": ")[2] for line in found.refused} == {"there are too many files"}


async def test_daemons_do_not_outlive(provider: Bubblewrap) -> None:
    word = f"daemon-{os.getpid()}"
    code = f"""
import os, signal, subprocess, sys, time
for number in set(range(1, 32)) - {{9, 17, 19}}: signal.signal(number, signal.SIG_IGN)
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            print("late", flush=True)
            while True: time.sleep(1000)  # {word}
        os._exit(0)
    os.wait()
sys.stdout.close()
os._exit(0)
"""
    found = await _python(provider, code, wall_seconds=20)
    assert (found.ended, found.exit_code) == (Ended.EXITED, 0), found
    assert found.wall_seconds < 15
    assert not machine_runs(word)


async def test_killing_everything_kills_only_itself(provider: Bubblewrap) -> None:
    victim = await asyncio.create_subprocess_exec("sleep", "60")
    code = "import os, signal\nsignal.signal(15, signal.SIG_IGN)\nos.kill(-1, 9)"
    found = await run(provider, Job(command=["sh", "-c", f"python3 -c '{code}'; kill -9 -1; sleep 30"]))
    assert (found.ended, found.signal) == (Ended.SIGNALLED, 9) or found.ended is Ended.EXITED, found
    assert victim.returncode is None
    victim.kill()
    await victim.wait()


async def test_one_box_sees_nothing_of_another(provider: Bubblewrap) -> None:
    """Neither beside it nor after it: what a candidate plants, no judge trips over."""
    plant = """
import os, pathlib, time
for folder in ("/tmp", "/tmp/home", "/app/output", "/dev/shm", "/var/tmp"):
    for name in ("conftest.py", "sitecustomize.py", "python3", "usercustomize.py"):
        path = pathlib.Path(folder, name)
        path.write_text("raise SystemExit(99)"); path.chmod(0o777)
print("planted", flush=True)
time.sleep(1)
"""
    look = """
import os
folders = "/tmp", "/app/output", "/dev/shm", "/tmp/home"
found = [f"{folder}/{name}" for folder in folders for name in os.listdir(folder)]
print(found, sum(name.isdigit() for name in os.listdir("/proc")))
"""

    async def beside() -> Finished:
        await asyncio.sleep(0.5)
        return await _python(provider, look)

    planted, seen = await asyncio.gather(_python(provider, plant), beside())
    assert planted.stdout == b"planted\n"
    assert seen.stdout == (await _python(provider, look)).stdout == b"['/tmp/home'] 2\n"


async def test_what_was_sent_cannot_be_changed(provider: Bubblewrap) -> None:
    code = """
import os
for deed in (
    lambda: open("/app/program/judge.py", "w"),
    lambda: os.unlink("/app/program/judge.py"),
    lambda: os.rename("/app/program", "/app/other"),
    lambda: os.chmod("/app/program/judge.py", 0o777),
    lambda: os.symlink("/tmp", "/app/program/link"),
):
    try: print(deed())
    except OSError as error: print(error.errno)
"""
    found = await run(
        provider, Job(command=["python3", "-c", code], files={"/app/program/judge.py": b"pass"})
    )
    assert set(found.stdout.split()) <= {b"30", b"13", b"1"}, found
    assert len(found.stdout.split()) == 5


@pytest.mark.parametrize("how", ["kill", "exit"])
async def test_boxes_die_with_the_service(how: str) -> None:
    """Killed outright, as by the kernel, with boxes that ignore everything: nothing is left, not even a folder."""
    word = f"box-{os.getpid()}-{how}"
    inner = (
        "import os, signal, time\\n"
        "for n in set(range(1, 32)) - {9, 17, 19}: signal.signal(n, signal.SIG_IGN)\\n"
        "for _ in range(3): os.fork()\\n"
        f"open('/app/output/x', 'wb').write(bytes(1 << 20))\\nwhile True: time.sleep(1000)  # {word}"
    )
    service = f"""
import asyncio, os, sys
from services.common.sandbox import Job
from services.common.sandbox.bubblewrap import Bubblewrap
from services.common.sandbox.runtimes import Runtimes
async def main():
    provider = Bubblewrap(Runtimes({{"default": sys.base_prefix}}))
    job = Job(command=["python3", "-c", "{inner}"])
    async with provider.run(job), provider.run(job):
        print("running", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        os._exit(0)
asyncio.run(main())
"""
    before = _places()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", service, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert await process.stdout.readline() == b"running\n"
    for _ in range(200):
        if len(machine_runs(word)) >= 17:
            break
        await asyncio.sleep(0.05)
    assert len(machine_runs(word)) >= 17  # two boxes of eight, and the service
    if how == "kill":
        process.kill()
    else:
        process.stdin.close()
    await process.wait()
    for _ in range(100):
        if not machine_runs(word):
            break
        await asyncio.sleep(0.05)
    assert machine_runs(word) == []
    assert _places() == before


def _places() -> set[str]:
    """Mounts of this machine, and what lies where boxes could leave something."""
    places = {line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()}
    for folder in (tempfile.gettempdir(), "/dev/shm", "/run"):
        places |= {
            f"{folder}/{name}"
            for name in os.listdir(folder)
            if "box" in name or "bwrap" in name or "bubble" in name
        }
    return places


async def test_a_service_that_does_not_listen_is_no_way_out(provider: Bubblewrap) -> None:
    """Without a port there is nobody to talk to, whatever the program listens on."""
    code = """
import socket, threading
server = socket.create_server(("127.0.0.1", 0))
with socket.create_connection(server.getsockname()): print("own loopback works")
"""
    before = threading.active_count()
    assert (await _python(provider, code)).stdout == b"own loopback works\n"
    assert threading.active_count() == before

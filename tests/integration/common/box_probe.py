"""Runs inside a box: tries what nobody in a box may do, and prints what came of it as JSON.

Every attempt has a name; its result is ``None`` where it worked and the name of the error where it did not. Attempts
that work by design when their guard is gone leave a trace in the result, never on the machine.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import socket
import sys
from collections.abc import Callable
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
told = json.loads(sys.argv[1])
# Before anything is opened here: the last one is the folder that is listed.
results: dict[str, object] = {"files": sorted(int(name) for name in os.listdir("/proc/self/fd"))}


def attempt(name: str, deed: Callable[[], object]) -> None:
    try:
        deed()
        results[name] = None
    except OSError as error:
        results[name] = errno.errorcode.get(error.errno or 0, str(error))
    except ValueError as error:
        results[name] = str(error)


def call(number: int, *arguments: object) -> Callable[[], object]:
    def deed() -> None:
        if libc.syscall(ctypes.c_long(number), *arguments) < 0:
            raise OSError(ctypes.get_errno(), "")

    return deed


def connect(family: int, address: Any) -> Callable[[], object]:
    def deed() -> None:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.settimeout(3)
            one.connect(address)

    return deed


def read(path: str) -> Callable[[], object]:
    return lambda: open(path, "rb").read(10)


def lines(path: str) -> list[str]:
    with open(path) as file:
        return file.read().splitlines()


def write(path: str) -> Callable[[], object]:
    return lambda: open(path, "wb").write(b"0")


def in_child(deed: Callable[[], object]) -> Callable[[], object]:
    """For what would change this process."""

    def outer() -> None:
        if (pid := os.fork()) == 0:
            try:
                deed()
                os._exit(0)
            except OSError as error:
                os._exit(error.errno or 255)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            raise OSError(abs(code), "")

    return outer


# x86-64 numbers; the tests run where these are right.
attempt("ptrace", in_child(call(101, 0, 0, 0, 0)))
attempt("process_vm_readv", call(310, os.getpid(), 0, 0, 0, 0, 0))
attempt("kcmp", call(312, os.getpid(), os.getpid(), 0, 0, 0))
attempt("pidfd_getfd", call(438, os.pidfd_open(os.getpid()), 0, 0))
attempt("unshare_user", in_child(call(272, 0x10000000)))
attempt("unshare_mount", in_child(call(272, 0x20000)))
attempt("clone_user", in_child(call(56, 0x10000000 | 17, 0, 0, 0, 0)))
attempt("clone_net", in_child(call(56, 0x40000000 | 0x10000000 | 17, 0, 0, 0, 0)))
attempt("clone3", call(435, 0, 0))
attempt("setns", call(308, os.open("/proc/self/ns/net", os.O_RDONLY), 0))
attempt("mount", call(165, b"x", b"/tmp", b"tmpfs", 0, 0))
attempt("umount", call(166, b"/proc", 2))
attempt("pivot_root", call(155, b"/tmp", b"/tmp"))
attempt("chroot", call(161, b"/tmp"))
attempt("fsopen", call(430, b"tmpfs", 0))
attempt("open_tree", call(428, -100, b"/usr", 1))
attempt("keyctl", call(250, 0, -3, 1))
attempt("add_key", call(248, b"user", b"name", b"value", 5, -3))
attempt("request_key", call(249, b"user", b"name", 0, -3))
attempt("bpf", call(321, 0, ctypes.create_string_buffer(128), 128))
attempt("perf_event_open", call(298, ctypes.create_string_buffer(128), 0, -1, -1, 0))
attempt("io_uring_setup", call(425, 4, ctypes.create_string_buffer(128)))
attempt("inotify_init1", call(294, 0))
attempt("io_setup", call(206, 4, ctypes.create_string_buffer(8)))
attempt("userfaultfd", call(323, 1))
attempt("open_by_handle_at", call(304, -100, ctypes.create_string_buffer(128), 0))
attempt("name_to_handle_at", call(303, -100, b"/tmp", 0, 0, 0))
attempt("memfd_create", call(319, b"x", 0))
attempt("shmget", call(29, 0, 4096, 0o1600))
attempt("msgget", call(68, 0, 0o1600))
attempt("init_module", call(175, 0, 0, b""))
attempt("kexec_load", call(246, 0, 0, 0, 0))
attempt("personality", call(135, 0x0040000))
attempt("reboot", call(169, 0, 0, 0, 0))
attempt("newer_calls", call(500))
attempt("x32_calls", call(0x40000000 | 39))
attempt("limits_of_the_guard", call(302, 1, 0, 0, ctypes.create_string_buffer(16)))
attempt("priority_of_the_guard", lambda: os.setpriority(os.PRIO_PROCESS, 1, 19))
attempt("priority_of_everybody", lambda: os.setpriority(os.PRIO_USER, 0, 19))
attempt("scheduling_of_the_guard", lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)))
attempt("processors_of_the_guard", lambda: os.sched_setaffinity(1, {0}))
attempt("own_priority", lambda: os.setpriority(os.PRIO_PROCESS, 0, 10))
attempt("own_processors", lambda: os.sched_setaffinity(0, {0}))
attempt("kill_the_guard", lambda: os.kill(1, 9))
attempt("guards_memory", read("/proc/1/mem"))
attempt("guards_environment", read("/proc/1/environ"))
attempt("guards_files", lambda: os.readlink("/proc/1/fd/0"))
attempt("guards_root", lambda: os.listdir("/proc/1/root"))

attempt("setuid", lambda: os.setuid(0))
attempt("setgroups", lambda: os.setgroups([0]))
attempt("raise_limits", lambda: resource.setrlimit(resource.RLIMIT_NPROC, (10**6, 10**6)))
attempt("negative_nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -10))
attempt("real_time", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
attempt("set_time", call(227, 0, ctypes.create_string_buffer(16)))
attempt("make_a_device", lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0)))

master, slave = os.openpty()
terminals = [master, slave]


def many_terminals() -> None:
    for _ in range(40):
        terminals.extend(os.openpty())


attempt("many_terminals", many_terminals)
results["terminals"] = len(terminals) // 2
for terminal in terminals[2:]:
    os.close(terminal)
attempt("tiocsti", lambda: fcntl.ioctl(slave, 0x5412, b"x"))
attempt("tiocsetd", lambda: fcntl.ioctl(slave, 0x5423, b"\0\0\0\0"))
attempt("tioclinux", lambda: fcntl.ioctl(slave, 0x541C, b"\2"))

attempt("socket_netlink", lambda: socket.socket(16, 3))
attempt("socket_packet", lambda: socket.socket(17, 3))
attempt("socket_vsock", lambda: socket.socket(40, 1))
attempt("socket_alg", lambda: socket.socket(38, 5))
attempt("socket_bluetooth", lambda: socket.socket(31, 1))
attempt("socket_sctp", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132))
attempt("socket_tcp", lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 6))
attempt("socket_pair", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
attempt("socket_raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("connect_outside", connect(socket.AF_INET, ("1.1.1.1", 53)))
attempt("connect_host_loopback", connect(socket.AF_INET, ("127.0.0.1", told["port"])))
attempt("connect_host_unix", connect(socket.AF_UNIX, told["unix"]))
attempt("connect_host_abstract", connect(socket.AF_UNIX, "\0" + told["abstract"]))

for at, path in enumerate(told["secrets"]):
    attempt(f"read_secret_{at}", read(path))
for path in ("/", "/usr", "/etc", "/app", "/dev", "/proc", "/run"):
    attempt(f"write {path}", write(f"{path}/planted"))
for path in (
    "/proc/sys/kernel/hostname",
    "/proc/self/oom_score_adj",
    "/proc/sysrq-trigger",
    "/proc/self/mem",
    "/etc/passwd",
):
    attempt(f"write {path}", write(path))
attempt("write /proc/sys/kernel/core_pattern", write("/proc/sys/kernel/core_pattern"))

results["environment"] = sorted(os.environ)
results["root"] = sorted(os.listdir("/"))
results["processes"] = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
results["me"] = os.getpid()
results["ids"] = [os.getresuid(), os.getresgid(), os.getgroups()]
results["session"] = os.getsid(0) == os.getpid()
status = [line.split(":\t") for line in lines("/proc/self/status")]
results["status"] = {
    name: value for name, value in status if name.startswith(("Cap", "NoNewPrivs")) or name == "Seccomp"
}
mounts = [(line.split()[1], line.split()[3].split(",")) for line in lines("/proc/mounts")]
results["nosuid"] = [place for place, options in mounts if "nosuid" not in options]
results["writable"] = sorted(
    place for place, options in mounts if "rw" in options and (place == "/dev/shm" or place[:5] != "/dev/")
)
results["core"] = resource.getrlimit(resource.RLIMIT_CORE)
results["hostname"] = socket.gethostname()
results["interfaces"] = [line.split(":")[0].strip() for line in lines("/proc/net/dev")[2:]]
print(json.dumps(results))

"""The first process of a box: prepares it, starts the program, guards its limits, hands out what it made.

Runs inside the namespaces that bubblewrap made, as process 1: when it ends, the kernel kills whatever else is in the
box. It is sent to the box as compiled code over its control socket and must start fast: it imports nothing but small
parts of the standard library, nothing of ours, and no module that takes milliseconds (hence ``_ctypes`` and its few
types rather than ``ctypes`` and its many).

In a container the engine has done the mounting, and the rest is the same.

The conversation over the control socket (``wire.py`` is the other side). Numbers are 8 bytes, little-endian:

1. in: this code; the job, by ``marshal``; files as ``path length, mode, size, path, content``, ended by a length of 0;
2. out: ``S`` when the program is about to start (with the listening socket, if a port was asked for), or ``E``, a
   length and a message when the box cannot be prepared;
3. out, when every process of the program is dead: ``R``, eight numbers, stdout, stderr, and the collected folders as
   ``F``, folder, path length, size, path, content or ``X``, folder, path length, path length of the reason, path,
   reason; ended by ``Z``.

That the control socket ends before means that nobody wants the box any more.
"""

from __future__ import annotations

import _ctypes
import errno
import os
import resource
import select
import stat
import sys
import time

# Known to type checkers by its name; the module `typing` takes longer to load than everything else here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO, NoReturn

    from services.common.sandbox.order import Order

# Why the program ended, as `wire.py` reads it.
EXITED, SIGNALLED, WALL, CPU, MEMORY, OUTPUT = range(6)

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 8, 32, 4096
_MNT_DETACH = 2
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 22, 24, 38
_CLONE_NEWUSER = 0x10000000
_SIGINT, _SIGKILL, _SIGPIPE, _SIGXCPU, _SIGXFSZ = 2, 9, 13, 24, 25
_SIG_IGN = 1
#: CAP_DAC_READ_SEARCH, CAP_KILL, CAP_SYS_PTRACE: what guarding takes.
_KEPT = 1 << 2 | 1 << 5 | 1 << 19
_TICK = 0.02
_TERMINALS = 16
_NICE = 5
_LONGEST_PATH = 1024
_STAGING = "/run/box"


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Word(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "L"


class _Short(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "H"


class _Bytes(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "z"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


class _Filter(_ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = [("length", _Short), ("steps", _Bytes)]  # noqa: RUF012


_LIBC = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]


def _libc(name: str) -> _Function:
    return _Function(_ctypes.dlsym(_LIBC, name))


def _call(name: str, *arguments: object) -> None:
    """Call a function that returns 0, or -1 and an error. Plain numbers are passed as ``int``."""
    if _libc(name)(*arguments) != 0:
        number = _ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    try:
        _call(
            "mount",
            source.encode(),
            os.fsencode(target),
            kind.encode() if kind else None,
            _Word(flags),
            options.encode(),
        )
    except OSError as error:
        raise OSError(error.errno, f"cannot mount {target}: {error.strerror}") from None


def _prctl(option: int, argument: int, pointer: object = None) -> None:
    _call("prctl", option, _Word(argument), pointer or _Word(0), _Word(0), _Word(0))


def _forbid_capabilities() -> None:
    """Never get a capability again, whatever is executed."""
    for capability in range(64):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return  # the kernel knows no more of them
            raise


def _keep_capabilities(kept: int) -> None:
    """Give up every capability but those in the mask."""
    words = [0x20080522, 0], [kept, kept, 0, 0, 0, 0]
    _call("capset", *[b"".join(word.to_bytes(4, sys.byteorder) for word in part) for part in words])


def _read(control: BinaryIO, length: int) -> bytes:
    data = control.read(length)
    if len(data) != length:
        os._exit(1)
    return data


def _number(control: BinaryIO) -> int:
    return int.from_bytes(_read(control, 8), "little")


def _numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


def _send(control: BinaryIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(control.fileno(), view) :]


# -- preparing ------------------------------------------------------------------------------------------------------


def _make_disk(order: Order) -> None:
    """One small file system of limited size for everything that can be written, shown at several places."""
    # What bubblewrap shows below a place that gets a part of the disk is shown there again.
    shown = [(path, os.open(path, os.O_PATH | os.O_DIRECTORY)) for path in order["covered"]]
    os.makedirs(_STAGING)
    options = f"size={order['disk']},nr_inodes={order['inodes']},mode=755"
    _mount("box", _STAGING, "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    for at, target in enumerate(["/tmp", "/dev/shm", *order["folders"]]):  # noqa: S108 - the box's own
        part = f"{_STAGING}/{at}"
        os.mkdir(part)
        if at < 2:
            os.chmod(part, 0o1777)  # noqa: S103
        elif not order["own_users"]:
            os.chown(part, order["uid"], order["uid"])
        try:
            os.makedirs(target, exist_ok=True)
        except OSError as error:
            raise OSError(error.errno, f"cannot make the folder {target}: {error.strerror}") from None
        _mount(part, target, None, _MS_BIND)
    for path, file in shown:
        os.makedirs(path, exist_ok=True)
        _mount(f"/proc/self/fd/{file}", path, None, _MS_BIND)
        os.close(file)
    _call("umount2", _STAGING.encode(), _MNT_DETACH)
    os.rmdir(_STAGING)
    if not os.path.lexists("/var/tmp"):  # noqa: S108
        os.symlink("/tmp", "/var/tmp")  # noqa: S108


def _fill(control: BinaryIO, order: Order) -> None:
    """Write the files that came with the job. In a writable folder they belong to the program."""
    for name, content in order["etc"].items():
        with open(f"/etc/{name}", "wb") as file:
            file.write(content)
    writable = [os.fsencode(folder).rstrip(b"/") + b"/" for folder in [*order["folders"], "/tmp"]]  # noqa: S108
    while length := _number(control):
        mode, size = _number(control), _number(control)
        path = _read(control, length)
        own = path.startswith(tuple(writable))
        _make_parents(path, order["uid"] if own and not order["own_users"] else 0)
        left = size
        with open(path, "wb") as file:
            while left:
                left -= file.write(_read(control, min(left, 1 << 20)))
            os.fchmod(file.fileno(), mode & 0o755)
            if own and not order["own_users"]:
                os.fchown(file.fileno(), order["uid"], order["uid"])
    os.makedirs(order["cwd"], exist_ok=True)


def _make_parents(path: bytes, owner: int) -> None:
    missing = []
    while not os.path.isdir(path := os.path.dirname(path)):
        missing.append(path)
    for folder in reversed(missing):
        os.mkdir(folder)
        if owner:
            os.chown(folder, owner, owner)


def _freeze() -> None:
    """Make read-only what is not part of the box's disk."""
    flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID
    _mount("none", "/", None, flags | _MS_NODEV)
    _mount("none", "/dev", None, flags | _MS_NOEXEC)
    # Terminals are counted over the whole machine.
    _mount(
        "none",
        "/dev/pts",
        None,
        _MS_REMOUNT | _MS_NOSUID | _MS_NOEXEC,
        f"mode=620,ptmxmode=666,max={_TERMINALS}",
    )
    _mount("none", "/proc", None, flags | _MS_NODEV | _MS_NOEXEC)


def _start(control: BinaryIO, order: Order) -> None:
    """Say that the program starts, and give away the listening socket."""
    if not order["port"]:
        _send(control, b"S")
        return
    import _socket

    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", order["port"]))
    listener.listen(128)
    channel = _socket.socket(fileno=control.fileno())
    channel.sendmsg(
        [b"S"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, listener.fileno().to_bytes(4, "little"))]
    )
    channel.detach()
    listener.close()


# -- the program ----------------------------------------------------------------------------------------------------


def _become_program(order: Order, ready: int, go: int, streams: tuple[int, int, int]) -> NoReturn:
    """In the child: give up everything, wait for the word, become the program."""
    try:
        os.setsid()
        # What guards, and the services around, come first.
        os.nice(_NICE)
        _limit(order)
        if order["own_users"]:
            _call("unshare", _CLONE_NEWUSER)
            for name, line in (("setgroups", "deny"), ("uid_map", "1000 0 1"), ("gid_map", "1000 0 1")):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(line)
            _forbid_capabilities()
        else:
            _forbid_capabilities()
            os.setgroups([])
            os.setresgid(order["uid"], order["uid"], order["uid"])
            os.setresuid(order["uid"], order["uid"], order["uid"])
        _keep_capabilities(0)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        steps = order["filter"]
        rules = _Filter(len(steps) // 8, steps)
        _prctl(_PR_SET_SECCOMP, 2, _ctypes.byref(rules))
    except OSError as error:
        os.write(ready, f"cannot start the program: {error}".encode())
        os._exit(125)
    # Python ignores two of these, we the third, and what is ignored stays so.
    for number in (_SIGPIPE, _SIGXFSZ, _SIGINT):
        _libc("signal")(number, None)
    os.write(ready, b"+")
    os.read(go, 1)
    for at, stream in enumerate(streams):
        os.dup2(stream, at)
    os.closerange(3, 1 << 12)
    try:
        os.chdir(order["cwd"])
        _execute(order["argv"], order["env"])
    except (OSError, ValueError) as error:
        os.write(2, f"{order['argv'][0]}: {getattr(error, 'strerror', None) or error}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _execute(argv: list[str], env: dict[str, str]) -> NoReturn:
    """As ``os.execvpe``, which loads a module first."""
    folders = (
        [""] if "/" in argv[0] else [f"{folder}/" for folder in env.get("PATH", "/usr/bin:/bin").split(":")]
    )
    found: OSError | None = None
    for folder in folders:
        try:
            os.execve(folder + argv[0], argv, env)  # noqa: S606
        except (FileNotFoundError, NotADirectoryError) as error:
            found = found or error
        except OSError as error:
            found = error if found is None or isinstance(found, FileNotFoundError) else found
    raise found or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _limit(order: Order) -> None:
    cpu = int(order["cpu"]) + 1
    for what, soft, hard in (
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_FSIZE, order["file"], order["file"]),
        # Twice, since much that is reserved is never touched. It stops what grows faster than we look.
        (resource.RLIMIT_DATA, 2 * order["memory"], 2 * order["memory"]),
        (resource.RLIMIT_NPROC, order["processes"], order["processes"]),
        (resource.RLIMIT_NOFILE, 1024, 1024),
        # 1, and not 0: with 0 a machine that pipes core dumps into a program still would.
        (resource.RLIMIT_CORE, 1, 1),
        (resource.RLIMIT_MEMLOCK, 65536, 65536),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_SIGPENDING, 1024, 1024),
        (resource.RLIMIT_RTPRIO, 0, 0),
        (resource.RLIMIT_NICE, 0, 0),
    ):
        try:
            resource.setrlimit(what, (soft, hard))
        except ValueError:
            # Ours is lower already, and stays.
            own = resource.getrlimit(what)[1]
            resource.setrlimit(what, (own, own))


# -- guarding -------------------------------------------------------------------------------------------------------


class _Guard:
    """Watches the program until it ends or reaches a limit."""

    def __init__(self, control: BinaryIO, order: Order, child: int, streams: tuple[int, int, int]) -> None:
        self.order = order
        self.child = child
        self.status: int | None = None
        self.reason: int | None = None
        self.outputs = {streams[1]: bytearray(), streams[2]: bytearray()}
        self.cut = False
        self.peak = 0
        self._open = set(self.outputs)
        self._deadline = 0.0
        self._looks = self._in_kernel = 0
        self._stdin = streams[0]
        self._left = memoryview(order["stdin"])
        self._control = control.fileno()
        self._poll = select.poll()
        for stream in streams:
            os.set_blocking(stream, False)
        for stream in self.outputs:
            self._poll.register(stream, select.POLLIN)
        self._poll.register(self._control, select.POLLIN)
        self._poll.register(os.pidfd_open(child), select.POLLIN)
        if self._left:
            self._poll.register(self._stdin, select.POLLOUT)
        else:
            os.close(self._stdin)

    def run(self) -> None:
        started = time.monotonic()
        self._deadline = started + self.order["wall"]
        looked, tick = started, _TICK
        while self.status is None and self.reason is None:
            for stream, _ in self._poll.poll(int(tick * 1000)):
                if stream == self._control:
                    os._exit(1)
                elif stream == self._stdin and self._left:
                    self._feed()
                elif stream in self.outputs:
                    self._drain(stream)
            self._reap()
            now = time.monotonic()
            if now >= self._deadline:
                self.reason = WALL if self.reason is None else self.reason
            if now - looked >= tick and self.reason is None:
                self._look()
                # Many processes take long to look at: never more than a tenth of the time.
                looked = time.monotonic()
                tick = max(_TICK, 10 * (looked - now))
        self.wall = time.monotonic() - started
        self._kill()

    def _feed(self) -> None:
        try:
            self._left = self._left[os.write(self._stdin, self._left[:65536]) :]
        except BlockingIOError:
            return
        except OSError:
            self._left = self._left[:0]
        if not self._left:
            self._poll.unregister(self._stdin)
            os.close(self._stdin)

    def _drain(self, stream: int) -> bool:
        """Take what was written; false when there is nothing more for now."""
        try:
            data = os.read(stream, 65536)
        except BlockingIOError:
            return False
        if not data:
            if stream in self._open:
                self._open.remove(stream)
                self._poll.unregister(stream)
            return False
        kept = self.outputs[stream]
        room = self.order["output"] - len(kept)
        kept += data[:room]
        if len(data) > room:
            self.cut = True
            self.reason = OUTPUT if self.reason is None else self.reason
            return False
        return True

    def _reap(self) -> None:
        """Take leave of the dead: orphans become children of process 1."""
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.child:
                self.status = status
                self.peak = max(self.peak, used.ru_maxrss * 1024)

    def _look(self) -> None:
        """Add up memory and CPU time of everything in the box."""
        if self._looks % 5 == 0:
            self._in_kernel = _socket_memory()
        self._looks += 1
        if self._looks % 50 == 0 and _too_many_locks():
            self.reason = MEMORY
            return
        memory, cpu, pids = self._in_kernel, self._reaped_cpu(), []
        for name in os.listdir("/proc"):
            if not name.isdigit() or name == "1":
                continue
            try:
                with open(f"/proc/{name}/status", "rb") as file:
                    memory += _sizes(file.read(), _COUNTED)
                with open(f"/proc/{name}/stat", "rb") as file:
                    cpu += sum(map(int, file.read().rpartition(b")")[2].split()[11:15])) / _HERTZ
            except (FileNotFoundError, ProcessLookupError):
                continue
            pids.append(name)
        if memory > self.order["memory"]:
            # Pages that several share were counted several times; the exact figure takes the kernel longer.
            memory = self._in_kernel
            for pid in pids:
                if time.monotonic() >= self._deadline:
                    return  # many small maps take the kernel long; the time limit does not wait for them
                memory += _proportional(pid)
        self.peak = max(self.peak, memory)
        if memory > self.order["memory"]:
            self.reason = MEMORY
        elif cpu > self.order["cpu"]:
            self.reason = CPU

    def _kill(self) -> None:
        """Kill everything until nothing is left, then take the rest of the output."""
        while True:
            try:  # noqa: SIM105 - not worth an import
                os.kill(-1, _SIGKILL)
            except ProcessLookupError:
                pass
            try:
                pid, status, used = os.wait4(-1, 0)
            except ChildProcessError:
                break
            if pid == self.child and self.status is None:
                self.status = status
                self.peak = max(self.peak, used.ru_maxrss * 1024)
        for stream in self.outputs:
            while self._drain(stream):
                pass

    @staticmethod
    def _reaped_cpu() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def result(self) -> bytes:
        """The eight numbers."""
        status, cpu = self.status or 0, self._reaped_cpu()
        ended, code = EXITED, os.WEXITSTATUS(status)
        if os.WIFSIGNALED(status):
            ended, code = SIGNALLED, os.WTERMSIG(status)
            if code == _SIGXCPU or (code == _SIGKILL and cpu >= self.order["cpu"]):
                ended = CPU
        if self.reason is not None:
            ended = self.reason
        out, err = self.outputs.values()
        return _numbers(
            ended,
            code,
            int(self.wall * 1e6),
            int(cpu * 1e6),
            self.peak,
            int(self.cut),
            len(out),
            len(err),
        )


_HERTZ = os.sysconf("SC_CLK_TCK")


_COUNTED = (b"VmRSS", b"VmSwap", b"VmPTE", b"HugetlbPages")
#: What the buffer of a unix socket holds, by the kernel's default; so many sockets are free.
_UNIX_BYTES, _UNIX_FREE = 212_992, 64


def _socket_memory() -> int:
    """What the box's sockets hold in the kernel: for unix sockets what they could, which is all one can see."""
    with open("/proc/net/unix", "rb") as file:
        total = max(0, file.read().count(b"\n") - 1 - _UNIX_FREE) * _UNIX_BYTES
    for name in ("tcp", "tcp6", "udp", "udp6"):
        try:
            with open(f"/proc/net/{name}", "rb") as file:
                for line in file.read().splitlines()[1:]:
                    total += sum(int(queue, 16) for queue in line.split()[4].split(b":"))
        except FileNotFoundError:
            continue  # a kernel without IPv6
    return total


#: Nothing else bounds how many parts of files a program locks, and each takes the kernel a kilobyte.
_MOST_LOCKS = 1000


def _too_many_locks() -> bool:
    """Only so far as it must: the kernel starts anew for each page that is read of a long list."""
    found = 0
    file = os.open("/proc/locks", os.O_RDONLY)
    try:
        while found <= _MOST_LOCKS and (page := os.read(file, 65536)):
            found += page.count(b"\n")
    finally:
        os.close(file)
    return found > _MOST_LOCKS


def _sizes(text: bytes, names: tuple[bytes, ...]) -> int:
    total = 0
    for line in text.splitlines():
        if line.startswith(names):
            total += int(line.split()[1]) * 1024
    return total


def _proportional(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            status = file.read()
    except OSError:
        return 0  # it has just ended
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return _sizes(file.read(), (b"Pss:", b"SwapPss")) + _sizes(status, (b"VmPTE", b"HugetlbPages"))
    except OSError:
        return _sizes(status, _COUNTED)


# -- handing out ----------------------------------------------------------------------------------------------------


class _Collector:
    """Sends regular files, and says what it leaves behind."""

    def __init__(self, control: BinaryIO, order: Order) -> None:
        self._control = control
        self._bytes = order["disk"]
        self._entries = order["entries"]
        self._named = 0

    def send(self, at: int, folder: bytes) -> None:
        waiting = [folder]
        while waiting:
            here = waiting.pop()
            try:
                with os.scandir(here) as entries:
                    for entry in entries:
                        self._send_one(at, folder, entry, waiting)
            except OSError as error:
                self._refuse(at, here[len(folder) + 1 :], os.strerror(error.errno or 0))

    def _send_one(self, at: int, folder: bytes, entry: os.DirEntry[bytes], waiting: list[bytes]) -> None:
        name = entry.path[len(folder) + 1 :]
        kind = entry.stat(follow_symlinks=False).st_mode
        if len(name) > _LONGEST_PATH:
            self._refuse(at, name[:200], f"its path is longer than {_LONGEST_PATH} bytes")
        elif stat.S_ISDIR(kind):
            waiting.append(entry.path)
        elif not stat.S_ISREG(kind):
            self._refuse(at, name, "it is no regular file")
        else:
            self._send_file(at, name, entry.path)

    def _send_file(self, at: int, name: bytes, path: bytes) -> None:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            size = os.fstat(file).st_size
            if size > self._bytes:
                self._refuse(at, name, "it is more than may be handed out")
                return
            if not self._entries:
                self._refuse(at, name, "there are too many files")
                return
            self._bytes -= size
            self._entries -= 1
            _send(self._control, b"F" + _numbers(at, len(name), size) + name)
            sent = 0
            while sent < size:
                done = os.sendfile(self._control.fileno(), file, sent, min(size - sent, 1 << 20))
                if done == 0:
                    os._exit(1)
                sent += done
        finally:
            os.close(file)

    def _refuse(self, at: int, name: bytes, why: str) -> None:
        self._named += 1
        if self._named <= 50:
            reason = why.encode()
            _send(self._control, b"X" + _numbers(at, len(name), len(reason)) + name + reason)


def _prepare(control: BinaryIO, order: Order) -> None:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    if order["contained"]:
        for folder in order["folders"]:
            os.chown(folder, order["uid"], order["uid"])
    else:
        for folder in ("/etc", "/var", "/run"):
            os.makedirs(folder, exist_ok=True)
        _make_disk(order)
    os.mkdir("/tmp/home")  # noqa: S108
    if not order["own_users"]:
        os.chown("/tmp/home", order["uid"], order["uid"])  # noqa: S108
    _fill(control, order)


def main(control: BinaryIO) -> None:
    """Prepare, run, guard, hand out."""
    import marshal

    if os.getpid() != 1:
        os._exit(1)  # killing "everything" would not end at the box
    # The kernel keeps signals from inside the box off process 1, but for those that it handles; Python does this one.
    _libc("signal")(_SIGINT, _Word(_SIG_IGN))
    os.umask(0o022)
    order: Order = marshal.loads(_read(control, _number(control)))  # noqa: S302 - from our own service
    try:
        _prepare(control, order)
        pipes = [os.pipe() for _ in range(5)]
        (stdin, feed), (out, stdout), (err, stderr), (ready, say_ready), (go, say_go) = pipes
        child = os.fork()
        if child == 0:
            _become_program(order, say_ready, go, (stdin, stdout, stderr))
        for end in (stdin, stdout, stderr, say_ready, go):
            os.close(end)
        if (word := os.read(ready, 4096)) != b"+":
            raise OSError(errno.EPERM, word.decode(errors="replace") or "the program's process died")
        if not order["contained"]:
            _freeze()
        _prctl(_PR_SET_DUMPABLE, 0)
        _keep_capabilities(_KEPT)
        _start(control, order)
    except OSError as error:
        where = f": {os.fsdecode(error.filename)}" if error.filename else ""
        message = f"{error.strerror or error}{where}".encode()
        _send(control, b"E" + _numbers(len(message)) + message)
        sys.exit(1)
    guard = _Guard(control, order, child, (feed, out, err))
    os.write(say_go, b"+")
    guard.run()
    _send(control, b"R" + guard.result())
    for output in guard.outputs.values():
        _send(control, bytes(output))
    collector = _Collector(control, order)
    for at, folder in enumerate(order["collect"]):
        collector.send(at, os.fsencode(folder).rstrip(b"/"))
    _send(control, b"Z")
    os._exit(0)  # spares taking Python apart


if __name__ == "__main__":
    main(os.fdopen(int(sys.argv[1]), "rb", closefd=False))

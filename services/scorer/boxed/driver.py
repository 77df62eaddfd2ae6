"""Runs tests on code, in a box, and says what came of it. The first process of the box, on Python 3.10 or later.

::

    tests (this process)  ──asks──▶  code (its child)
      │  reads the job from stdin       │  was forked before that: it holds nothing of the tests
      └─▶ one JSON object on stdout     └─ its stdin, stdout and stderr are /dev/null

The verdict is made here, and nothing of the code runs here. This process cannot be traced and its memory not read by
the other, which has the same user; killed or stopped, it gives no verdict, and that is a failure.
"""

from __future__ import annotations

import _ast
import _signal  # type: ignore[import-not-found]
import builtins
import ctypes
import json
import os
import sys
import time

from services.scorer.boxed.crossing import Broken, Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

_PR_SET_DUMPABLE = 4
_ONLY_AST = 0x400
_MOST = 400
_TICK = 0.1
#: Marks what an assertion of the tests says of what it saw.
_GOT = "\u200b"


class TimeUp(BaseException):
    """The time of this test program is over."""


#: Why time was up first. Tests can catch everything; what was seen once counts.
_ended: list[TimeUp] = []


def _over(why: str) -> NoReturn:
    _ended.append(TimeUp(why))
    raise _ended[0]


def main() -> None:
    """Do it."""
    sys.meta_path.append(_Installed())
    to_code, from_tests = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        _be_code(to_code[0], from_tests[1], [to_code[1], from_tests[0]])
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    os.close(to_code[0])
    os.close(from_tests[1])
    _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)
    with open(0, "rb") as stream:
        job = json.loads(stream.read())
    verdict = _judged(job, Channel(from_tests[0], to_code[1]), child)
    data = json.dumps(verdict).encode()
    while data:
        data = data[os.write(1, data) :]
    os._exit(0)


class _Installed:
    """Finds what is installed, beside what Python brings: looking for that at every start would take longer than all
    the rest. The last one to be asked."""

    def __init__(self) -> None:
        self._looked = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if self._looked:
            return None
        self._looked = True
        import site

        site.main()
        finder: Any = next(one for one in sys.meta_path if getattr(one, "__name__", "") == "PathFinder")
        return finder.find_spec(name, path, target)


def _judged(job: dict[str, Any], channel: Channel, child: int) -> dict[str, Any]:
    _watch_time(child, job["cpu_seconds"], job["wall_seconds"])
    tests = _Tests(job["tests"])
    try:
        channel.send({key: job[key] for key in ("setup", "code", "join", "entry_point")})
        loaded = channel.receive()
        if loaded != "loaded":
            return {"passed": False, "why": _short(str(loaded))}
        if job["isolation"] == "none":
            return _in_the_same_process(tests, job["token"], channel)
        return tests.run(channel)
    except TimeUp as error:
        where = tests.at() if tests.began else "while the code was loaded"
        return {"passed": False, "why": _short(f"no result {error} {where}")}
    except Broken as error:
        return {
            "passed": False,
            "why": _short(f"{error} {tests.at() if tests.began else 'while it was loaded'}"),
        }


def _watch_time(child: int, cpu_seconds: float, wall_seconds: float) -> None:
    """Raise `TimeUp` in whatever runs when one of the two is over. On a busy machine only the first is fair."""
    until = time.monotonic() + wall_seconds
    ticks = os.sysconf("SC_CLK_TCK")

    def look(*_: Any) -> None:
        try:
            with open(f"/proc/{child}/stat", "rb") as file:
                used = sum(map(int, file.read().rpartition(b")")[2].split()[11:15])) / ticks
        except (OSError, ValueError):
            used = 0.0
        if used + time.process_time() > cpu_seconds:
            _over(f"after {cpu_seconds:g} s of computing")
        if time.monotonic() > until:
            _over(f"after {wall_seconds:g} s on the clock")

    _signal.signal(_signal.SIGALRM, look)
    _signal.setitimer(_signal.ITIMER_REAL, _TICK, _TICK)


def _short(text: str) -> str:
    return text if len(text) <= _MOST else text[: _MOST - 3] + "..."


class _Tests:
    """The tests: which statement runs, and what came of it."""

    def __init__(self, source: str) -> None:
        self.began = False
        self._lines = source.splitlines()
        self._source = source

    def compiled(self) -> Any:
        """:raises SyntaxError: they are no Python."""
        tree = compile(self._source, "<tests>", "exec", flags=_ONLY_AST, dont_inherit=True)
        return compile(_explained(tree), "<tests>", "exec", dont_inherit=True)

    def run(self, channel: Channel) -> dict[str, Any]:
        """Run them here."""
        from services.scorer.boxed.stand_ins import Code

        code = Code(channel, "__main__")
        names = _Names(code)
        try:
            program = self.compiled()
        except (SyntaxError, ValueError, RecursionError) as error:
            return {"error": _short(f"the tests are no Python: {error}")}
        names.update({"__name__": "__main__", "__builtins__": builtins, "_say": _say})
        # What `unittest.main()` looks through.
        sys.modules["__main__"] = _Main(names)
        self.began = True
        try:
            exec(program, names)  # noqa: S102
        except SystemExit as end:
            # `unittest.main()` and the like; code that exits does not come here.
            if end.code not in (None, 0, False):
                return {"passed": False, "why": f"the tests ended with {end.code!r}"}
        except (TimeUp, Broken):
            raise
        except BaseException as error:
            return {"passed": False, "why": self.told(error)}
        if _ended:
            raise _ended[0]
        if channel.broken:
            raise Broken(channel.broken)
        return {"passed": True, "why": ""}

    def told(self, error: BaseException) -> str:
        """The statement of the tests that failed, and how."""
        lines = _lines(error, "<tests>")
        what = f"{type(error).__name__}: {error}".rstrip(": ").removeprefix(f"AssertionError: {_GOT}")
        return _short(f"{self._line(lines[-1])}: {what}" if lines else what)

    def at(self) -> str:
        """Where it is at this moment, or was when a time limit or a dead process ended it."""
        lines = _lines(sys.exc_info()[1], "<tests>")
        return f"at `{self._line(lines[-1])}`" if lines else ""

    def _line(self, number: int) -> str:
        return self._lines[number - 1].strip()[:200] if 0 < number <= len(self._lines) else f"line {number}"


class _Names(dict):  # type: ignore[type-arg]
    """The names of the tests: their own, then Python's, then those of the code."""

    def __init__(self, code: Any) -> None:
        super().__init__()
        self._code = code

    def __missing__(self, name: str) -> Any:
        if name in _BUILTINS or not self._code.ask("has", name):
            raise KeyError(name)
        found = self[name] = self._code.ask("name", name)
        return found


class _Main(type(sys)):  # type: ignore[misc]
    """The tests as a module."""

    def __init__(self, names: dict[str, Any]) -> None:
        super().__init__("__main__")
        self._names = names

    def __dir__(self) -> list[str]:
        return list(self._names)

    def __getattr__(self, name: str) -> Any:
        if name in self._names:
            return self._names[name]
        raise AttributeError(name)


_BUILTINS = frozenset(dir(builtins))


def _say(seen: Any) -> str:
    return f"{_GOT}got {_shown(seen)}"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"something that cannot be shown ({type(error).__name__})"
    return text if len(text) <= 120 else text[:117] + "..."


_SEEN = "_seen"


def _explained(tree: Any) -> Any:
    """Let ``assert left == right`` say what left was."""
    for node in _nodes(tree):
        if not isinstance(node, _ast.Assert):
            continue
        at = {name: getattr(node, name) for name in node._attributes}
        test = node.test
        if isinstance(test, _ast.Compare):
            test.left = _ast.NamedExpr(_ast.Name(_SEEN, _ast.Store(), **at), test.left, **at)
        elif isinstance(test, _ast.Call):
            node.test = _ast.NamedExpr(_ast.Name(_SEEN, _ast.Store(), **at), test, **at)
        else:
            continue
        seen = _ast.Name(_SEEN, _ast.Load(), **at)
        node.msg = _ast.Call(_ast.Name("_say", _ast.Load(), **at), [seen], [], **at)
    return tree


def _nodes(node: Any) -> Iterator[Any]:
    """A node and all below it; the module that does this takes long to load."""
    yield node
    for name in node._fields:
        value = getattr(node, name, None)
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, _ast.AST):
                yield from _nodes(child)


def _lines(error: BaseException | None, file: str) -> list[int]:
    """The lines of a source that an error went through, the innermost last."""
    found, trace = [], error.__traceback__ if error else None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            found.append(trace.tb_lineno)
        trace = trace.tb_next
    return found


# -- the process of the code ------------------------------------------------------------------------------------------


def _be_code(reading: int, writing: int, others: list[int]) -> NoReturn:
    """Load the code, then do what is asked for."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    for other in (*others, nothing):
        os.close(other)
    channel = Channel(reading, writing)
    try:
        job = channel.receive()
        from services.scorer.boxed.code_side import Server, load

        try:
            names = load(job, "solution")
        except BaseException as error:
            channel.send(_told_loading(error))
            os._exit(0)
        channel.send("loaded")
        message = channel.receive()
        if message[0] == "tests":
            _run_tests(channel, names, *message[1:])
        server = Server(channel, names)
        channel.send(server._answer(message))
        server.serve()
    except Broken:
        pass
    os._exit(0)


def _told_loading(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"the code is no Python: {error.msg} (line {error.lineno})"
    lines = _lines(error, "<code>")
    where = f" (line {lines[-1]} of the code)" if lines else ""
    return f"the code does not load: {type(error).__name__}: {error}".rstrip(": ") + where


def _in_the_same_process(tests: _Tests, token: str, channel: Channel) -> dict[str, Any]:
    """Have them run over there, once the code has been loaded. Whoever says the token says the verdict."""
    try:
        tests.compiled()
    except (SyntaxError, ValueError, RecursionError) as error:
        return {"error": _short(f"the tests are no Python: {error}")}
    channel.send(["tests", tests._source, token])
    answer = channel.receive()
    if not isinstance(answer, list) or len(answer) != 2 or answer[0] != token:
        raise Broken("the code sent what makes no sense")
    return {"passed": answer[1] == "", "why": _short(str(answer[1]))}


def _run_tests(channel: Channel, names: dict[str, Any], source: str, token: str) -> NoReturn:
    tests = _Tests(source)
    say, end = channel.send, os._exit
    program = tests.compiled()
    names["_say"] = _say
    try:
        exec(program, names)  # noqa: S102
    except BaseException as error:
        say([token, tests.told(error) or type(error).__name__])
        end(0)
    say([token, ""])
    end(0)
    raise AssertionError

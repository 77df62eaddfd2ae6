"""The process of the code: executes it, then does with it what the tests ask for. Runs in the box."""

from __future__ import annotations

import builtins
import operator
import re
import sys

from services.scorer.boxed.crossing import Broken, pack, plain_base, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from services.scorer.boxed.crossing import Channel

_MOST_COMPARED = 1 << 20


def load(parts: dict[str, Any], name: str) -> dict[str, Any]:
    """Execute the code as a module of its own; returns its names."""
    module = type(sys)(name)
    sys.modules[name] = module
    for source in _sources(parts):
        exec(compile(source, "<code>", "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    return module.__dict__


def _sources(parts: dict[str, Any]) -> list[str]:
    setup, code, join, entry = (parts.get(key) or "" for key in ("setup", "code", "join", "entry_point"))
    defines = rf"^(?:async\s+def|def|class)\s+{re.escape(entry)}\b|^{re.escape(entry)}\s*(?::[^=\n]*)?="
    if join == "whole" or not setup:
        return [code]
    if join == "completion" or not (entry and re.search(defines, code, re.MULTILINE)):
        return [setup + code]
    try:
        compile(setup, "<setup>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        # The start of a function, to be completed: this code begins anew.
        return [code]
    return [setup, code]


class Server:
    """Does what the tests ask for."""

    def __init__(self, channel: Channel, names: dict[str, Any]) -> None:
        self._channel = channel
        self._names = names
        self._kept: dict[int, Any] = {}

    def serve(self, until: str = "") -> Any:
        """Answer until the other side is gone."""
        while True:
            message = self._channel.receive()
            if until and message[0] in ("value", "raised"):
                return message
            self._channel.send(self._answer(message))

    def _answer(self, message: Any) -> Any:
        what, *rest = message
        try:
            if what == "name":
                return ["value", self.pack(self._names[rest[0]]), []]
            if what == "has":
                return ["value", rest[0] in self._names, []]
            number, packed, named = rest
            arguments = [self.unpack(item) for item in packed]
            named = {key: self.unpack(value) for key, value in named.items()}
            result = self.pack(_DO[what](self._kept[number], *arguments, **named))
            return ["value", result, self._changes(packed, arguments)]
        except Broken:
            raise
        except BaseException as error:
            return self._raised(error)

    def _changes(self, packed: list[Any], arguments: list[Any]) -> list[Any]:
        """Which of the arguments that were copied are not what they were."""
        changed = []
        for place, (before, now) in enumerate(zip(packed, arguments, strict=True)):
            if type(now) in (list, dict, set, bytearray):
                after = self.pack(now)
                if after != before:
                    changed.append([place, after])
        return changed

    def _raised(self, error: BaseException) -> Any:
        kind = type(error)
        base = next(
            (c.__name__ for c in kind.__mro__ if getattr(builtins, c.__name__, None) is c), "Exception"
        )
        own = None
        if base != kind.__name__ and isinstance(error, Exception):
            try:
                own = [self.pack(kind), self.pack(error), self.pack(dict(vars(error)))]
            except Exception:
                own = None
        try:
            arguments = self.pack(list(error.args))
        except Exception:
            arguments = []
        return ["raised", kind.__name__, base, arguments, own]

    def pack(self, value: Any) -> Any:
        return pack(value, self._handle)

    def unpack(self, data: Any) -> Any:
        return unpack(data, self._known)

    def _handle(self, value: Any) -> Any:
        if isinstance(value, Given):
            return {"r": object.__getattribute__(value, "_number")}
        self._kept[id(value)] = value
        made = {"h": id(value), "n": getattr(value, "__name__", None) or type(value).__name__}
        if isinstance(value, type) and issubclass(value, BaseException):
            made["e"] = next(c.__name__ for c in value.__mro__ if getattr(builtins, c.__name__, None) is c)
            return made
        for base in (bool, int, float, str, bytes, dict, list, tuple, set, frozenset, type):
            if isinstance(value, base):
                made["b"] = base.__name__
                break
        return made

    def _known(self, data: dict[str, Any]) -> Any:
        if "g" in data:
            return getattr(builtins, data["g"])
        if "h" in data:
            return self._kept[data["h"]]
        return Given(self, data["r"])

    def use_given(self, what: str, number: int, *arguments: Any) -> Any:
        """Use something that belongs to the tests."""
        self._channel.send(["back", what, number, [self.pack(argument) for argument in arguments]])
        answer = self.serve(until="answer")
        if answer[0] == "value":
            return self.unpack(answer[1])
        kind = getattr(builtins, answer[2], Exception)
        raise (kind if issubclass(kind, Exception) else Exception)(*self.unpack(answer[3]))


class Given:
    """Something of the tests: a function that they passed, an object of a class of theirs."""

    def __init__(self, server: Server, number: int) -> None:
        object.__setattr__(self, "_server", server)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _use(self, "get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _use(self, "set", name, value)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return _use(self, "call", list(arguments), named)

    def __iter__(self) -> Any:
        return _use(self, "iter")

    def __next__(self) -> Any:
        return _use(self, "next")

    def __getitem__(self, key: Any) -> Any:
        return _use(self, "getitem", key)

    def __len__(self) -> int:
        return int(_use(self, "len"))

    def __contains__(self, item: Any) -> bool:
        return bool(_use(self, "contains", item))

    def __eq__(self, other: object) -> bool:
        return self is other or bool(_use(self, "eq", other))

    def __lt__(self, other: Any) -> bool:
        return bool(_use(self, "lt", other))

    def __hash__(self) -> int:
        return int(_use(self, "hash"))

    def __bool__(self) -> bool:
        return bool(_use(self, "bool"))

    def __str__(self) -> str:
        return str(_use(self, "str"))


def _use(given: Given, what: str, *arguments: Any) -> Any:
    server, number = object.__getattribute__(given, "_server"), object.__getattribute__(given, "_number")
    return server.use_given(what, number, *arguments)


def _isinstance(kind: Any, value: Any) -> bool:
    return isinstance(value, kind)


def _plain(value: Any) -> Any:
    found = plain_base(value)
    return value if found is NotImplemented else found


_DO: dict[str, Callable[..., Any]] = {
    "call": lambda target, *arguments, **named: target(*arguments, **named),
    "getattr": getattr,
    "setattr": setattr,
    "isinstance": _isinstance,
    "plain": _plain,
    "bool": bool,
    "len": len,
    "hash": hash,
    "str": str,
    "repr": repr,
    "iter": iter,
    "next": next,
    "reversed": reversed,
    "enter": lambda target: target.__enter__(),
    "exit": lambda target: bool(target.__exit__(None, None, None)),
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "contains": operator.contains,
    "neg": operator.neg,
    "pos": operator.pos,
    "abs": abs,
    "invert": operator.invert,
    "int": int,
    "float": float,
    "index": operator.index,
    "round": round,
    "format": format,
    "pow": pow,
    "radd": lambda target, other: other + target,
    "rsub": lambda target, other: other - target,
    "rmul": lambda target, other: other * target,
    "rtruediv": lambda target, other: other / target,
}
for _name in (
    "eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "matmul", "lshift", "rshift",
    "xor",
):  # fmt: skip
    _DO[_name] = getattr(operator, _name)
_DO["and"], _DO["or"] = operator.and_, operator.or_

"""What tests see of things that stay in the process of the code. Runs in the box, in the process of the tests.

A stand-in passes on what is done with it and gives back what came of it. It is never equal to a plain value unless its
own plain content is, whatever its ``__eq__`` says; and no class of the code exists on this side.
"""

from __future__ import annotations

import builtins

from services.scorer.boxed.crossing import Broken, pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from services.scorer.boxed.crossing import Channel

#: What may be looked up on an object of the tests that was handed to the code: nothing that leads further than it.
_LEADING = ("gi_", "cr_", "ag_", "tb_", "f_", "func_", "co_")


class CodeError(Exception):
    """The code ended in a way that has no exception of its own on this side."""


class Code:
    """The process of the code, as seen from that of the tests."""

    def __init__(self, channel: Channel, own_module: str) -> None:
        self._channel = channel
        self._own_module = own_module
        self._given: dict[int, Any] = {}
        self._stand_ins: dict[int, Any] = {}

    def ask(self, what: str, *arguments: Any) -> Any:
        """Have something done over there; answers what came of it, or raises what it raised."""
        self._channel.send([what, *arguments])
        while True:
            answer = self._channel.receive()
            if not isinstance(answer, list) or not answer:
                raise Broken("the code sent what makes no sense")
            if answer[0] == "back":
                self._channel.send(self._called_back(answer))
            elif answer[0] == "value" and len(answer) == 3:
                for place, changed in answer[2]:
                    self._change(place, changed)
                return self.unpack(answer[1])
            elif answer[0] == "raised" and len(answer) == 5:
                raise self._exception(answer[1:])
            else:
                raise Broken("the code sent what makes no sense")

    def operate(self, what: str, target: int, *arguments: Any, **named: Any) -> Any:
        """Do something with what is behind a handle. Lists and the like that it changes are changed here, too."""
        before, self._arguments = getattr(self, "_arguments", ()), arguments
        try:
            packed = [self.pack(argument) for argument in arguments]
            return self.ask(what, target, packed, {name: self.pack(value) for name, value in named.items()})
        finally:
            self._arguments = before

    def _change(self, place: Any, changed: Any) -> None:
        try:
            target, new = self._arguments[place], self.unpack(changed)
        except (IndexError, TypeError):
            raise Broken("the code sent what makes no sense") from None
        if type(target) is not type(new):
            return
        if isinstance(target, list | bytearray):
            target[:] = new
        elif isinstance(target, dict | set):
            target.clear()
            target.update(new)

    def pack(self, value: Any) -> Any:
        return pack(value, self._given_handle)

    def unpack(self, data: Any) -> Any:
        return unpack(data, self._stand_in)

    def _given_handle(self, value: Any) -> Any:
        if isinstance(value, StandIn):
            return {"h": object.__getattribute__(value, "_handle")}
        if isinstance(value, BaseException) and "_handle" in vars(value):
            return {"h": vars(value)["_handle"]}
        name = getattr(value, "__name__", None)
        if isinstance(name, str) and getattr(builtins, name, None) is value:
            return {"g": name}
        if isinstance(value, type) and hasattr(value, "_class_handle"):
            return {"h": value._class_handle}
        self._given[id(value)] = value
        return {"r": id(value)}

    def _stand_in(self, data: dict[str, Any]) -> Any:
        if "r" in data:
            return self._given[data["r"]]
        if "g" in data:
            raise Broken("the code sent what makes no sense")
        handle = data["h"]
        if not isinstance(handle, int):
            raise Broken("the code sent what makes no sense")
        if handle not in self._stand_ins:
            if data.get("e"):
                self._stand_ins[handle] = self._exception_class(str(data.get("n")), handle, data["e"])
            else:
                self._stand_ins[handle] = StandIn(self, handle, str(data.get("n", "object")), data.get("b"))
        return self._stand_ins[handle]

    def _exception_class(self, name: str, handle: int, base: Any) -> type:
        """A class of this side for an exception class of the code, so that tests can catch it."""
        found = self._builtin_exception(base)
        return type(name, (found,), {"_class_handle": handle, "__module__": "solution"})

    @staticmethod
    def _builtin_exception(name: Any) -> type[Exception]:
        found = getattr(builtins, name, None) if isinstance(name, str) else None
        ordinary = isinstance(found, type) and issubclass(found, Exception)
        return found if ordinary else CodeError  # type: ignore[return-value]

    def _exception(self, told: list[Any]) -> Exception:
        """What was raised over there, of a class that tests can catch here. Nothing ends the tests but an error."""
        name, base, arguments, own = told
        kind: Any = self._builtin_exception(base)
        if own is not None:
            found = self.unpack(own[0])
            if isinstance(found, type) and issubclass(found, Exception):
                kind = found
        try:
            values = self.unpack(arguments)
            made: Exception = kind(*values)
        except (TypeError, ValueError, AttributeError):
            made = kind.__new__(kind)
            made.args = (str(arguments),)
        if kind is CodeError:
            made = CodeError(f"{name}: {', '.join(map(str, made.args))}".rstrip(": "))
        if own is not None and hasattr(kind, "_class_handle"):
            made._handle = own[1].get("h")  # type: ignore[attr-defined]
            made.__dict__.update({k: v for k, v in self.unpack(own[2]).items() if not k.startswith("_")})
        return made

    def _called_back(self, message: list[Any]) -> Any:
        """Something that the tests gave to the code is used by it."""
        try:
            _, what, number, packed = message
            target = self._given[number]
            arguments = self.unpack(packed)
        except (ValueError, KeyError, TypeError):
            raise Broken("the code sent what makes no sense") from None
        try:
            return ["value", self.pack(self._use(what, target, arguments)), []]
        except Exception as error:
            base = next(c.__name__ for c in type(error).__mro__ if getattr(builtins, c.__name__, None) is c)
            return ["raised", type(error).__name__, base, self.pack([str(error)]), None]

    def _use(self, what: str, target: Any, arguments: list[Any]) -> Any:
        if what == "call" and callable(target):
            return target(*arguments[0], **arguments[1])
        if what == "next":
            return next(target)
        if what == "iter":
            return iter(target)
        if what in ("get", "set") and type(target).__module__ == self._own_module:
            name = arguments[0]
            if isinstance(name, str) and not name.startswith(("_", *_LEADING)):
                return getattr(target, name) if what == "get" else setattr(target, name, arguments[1])
        if what in ("getitem", "len", "contains", "eq", "lt", "hash", "str", "bool"):
            return _SIMPLE[what](target, *arguments)
        raise AttributeError(f"the code may not do this with a {type(target).__name__} of the tests")


_SIMPLE: dict[str, Any] = {
    "getitem": lambda target, key: target[key],
    "len": len,
    "contains": lambda target, item: item in target,
    "eq": lambda target, other: bool(target == other),
    "lt": lambda target, other: bool(target < other),
    "hash": hash,
    "str": str,
    "bool": bool,
}


def _forward(what: str) -> Any:
    def method(self: StandIn, *arguments: Any, **named: Any) -> Any:
        code, handle = object.__getattribute__(self, "_code"), object.__getattribute__(self, "_handle")
        return code.operate(what, handle, *arguments, **named)

    return method


def _compare(what: str) -> Any:
    """Two things of the code may be compared by the code; with a plain value only their plain content is."""

    def method(self: StandIn, other: Any) -> Any:
        if isinstance(other, StandIn):
            return _forward(what)(self, other) is True
        content = _forward("plain")(self)
        if isinstance(content, StandIn):
            if what in ("eq", "ne"):
                return what == "ne"
            name = object.__getattribute__(self, "_name")
            raise TypeError(
                f"a {name} of the code cannot be compared with a {type(other).__name__} of the tests"
            )
        return _COMPARE[what](content, other)

    return method


_COMPARE: dict[str, Any] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


class StandIn:
    """Something that stays in the process of the code."""

    def __init__(self, code: Code, handle: int, name: str, base: Any) -> None:
        object.__setattr__(self, "_code", code)
        object.__setattr__(self, "_handle", handle)
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_base", getattr(builtins, base) if base in _BASES else None)

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return object.__getattribute__(self, "_base") or StandIn
        if name in ("__dict__", "_code", "_handle"):
            raise AttributeError(name)
        return _forward("getattr")(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _forward("setattr")(self, name, value)

    def __bool__(self) -> bool:
        return _forward("bool")(self) is True

    def __len__(self) -> int:
        return int(_forward("len")(self))

    def __hash__(self) -> int:
        return int(_forward("hash")(self))

    def __str__(self) -> str:
        return str(_forward("str")(self))

    def __repr__(self) -> str:
        return str(_forward("repr")(self))

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, StandIn) and _forward("isinstance")(self, instance) is True

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        return _forward("exit")(self) is True


_BASES = ("list", "tuple", "dict", "set", "frozenset", "str", "int", "float", "bytes", "type")
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(StandIn, f"__{_name}__", _compare(_name))
for _name in (
    "call", "iter", "next", "getitem", "setitem", "delitem", "contains", "enter", "reversed", "add", "sub", "mul",
    "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift", "radd", "rsub", "rmul",
    "rtruediv", "neg", "pos", "abs", "invert", "int", "float", "index", "round", "format",
):  # fmt: skip
    setattr(StandIn, f"__{_name}__", _forward(_name))

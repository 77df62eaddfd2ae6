"""What programs run on: a folder of this machine that holds an interpreter and its libraries, or a container image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.common.sandbox.types import SandboxFailed

#: Where `make setup` puts the default runtime, beside the services.
_DEFAULT = Path(__file__).resolve().parents[3] / ".venv-programs"
#: Stands for every name that has no entry of its own.
_ANY = "*"
_CONTAINER = "container:"


@dataclass(frozen=True, slots=True)
class Prefix:
    """A folder with ``bin``, ``lib`` and so on; a virtual environment, for example. Seen in the box where it lies."""

    path: Path


@dataclass(frozen=True, slots=True)
class Image:
    """A container image."""

    name: str


Runtime = Prefix | Image


def read_runtimes(text: str) -> dict[str, str]:
    """Read ``BENCHGEN_RUNTIMES``.

    :param text: a JSON object. Names are names of runtimes or of images that bundles ask for, or ``*`` for all others;
        values are an absolute path, ``container:IMAGE`` (``container:*``: the image of that name), or another name.
    :raises ValueError: says what was expected and found; all problems at once.
    """
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"expected a JSON object of names and runtimes: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("expected a JSON object of names and runtimes")  # noqa: TRY004 - a setting's value
    names = {"default", *found}
    problems = []
    for name, value in found.items():
        if not isinstance(value, str) or not value:
            problems.append(f"{name}: expected a path, container:IMAGE or the name of another runtime")
        elif value == name:
            problems.append(f"{name}: stands for itself")
        elif not value.startswith(("/", _CONTAINER)) and value not in names:
            problems.append(
                f"{name}: expected an absolute path, container:IMAGE or one of {', '.join(sorted(names - {_ANY}))}, "
                f"found {value!r}"
            )
    if problems:
        raise ValueError("; ".join(problems))
    return found


class Runtimes:
    """The runtimes by name."""

    def __init__(self, names: Mapping[str, str], *, default: Path = _DEFAULT) -> None:
        self._names = {"default": str(default), **names}

    def find(self, name: str) -> Runtime:
        """What a name stands for.

        :raises SandboxFailed: nothing, or nothing that is there.
        """
        value, seen = name, {name}
        while not value.startswith(("/", _CONTAINER)):
            if (found := self._names.get(value, self._names.get(_ANY))) is None:
                known = ", ".join(sorted(set(self._names) - {_ANY}))
                raise SandboxFailed(
                    f"there is no runtime {name!r} (known: {known}): whoever runs the services can map it to one with "
                    "BENCHGEN_RUNTIMES"
                )
            if found in seen:
                raise SandboxFailed(f"the runtime {name!r} stands for itself: see BENCHGEN_RUNTIMES")
            seen.add(found)
            value = found
        if value.startswith(_CONTAINER):
            image = value.removeprefix(_CONTAINER)
            return Image(name if image == _ANY else image)
        if not Path(value).is_dir():
            hint = ": `make setup` makes it" if value == str(_DEFAULT) else ""
            raise SandboxFailed(f"the runtime {name!r} is not there: no folder {value}{hint}")
        return Prefix(Path(value).resolve())

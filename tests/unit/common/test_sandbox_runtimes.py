"""Names of runtimes, and what operators map them to."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchgen.errors import InvalidInput
from services.common.sandbox import SandboxFailed, SandboxSettings
from services.common.sandbox.runtimes import Image, Prefix, Runtimes, read_runtimes


def test_names_lead_to_folders_and_images(tmp_path: Path) -> None:
    names = {"py39": "default", "r": str(tmp_path), "other": "container:org/image:1", "far": "py39"}
    runtimes = Runtimes(names, default=tmp_path)
    assert runtimes.find("default") == runtimes.find("far") == Prefix(tmp_path)
    assert runtimes.find("r") == Prefix(tmp_path)
    assert runtimes.find("other") == Image("org/image:1")
    with pytest.raises(SandboxFailed, match=r"no runtime 'perl' \(known: default, far, other, py39, r\)"):
        runtimes.find("perl")
    assert Runtimes({"*": "container:*"}).find("org/image:2") == Image("org/image:2")
    assert Runtimes({"*": "default"}, default=tmp_path).find("perl") == Prefix(tmp_path)


def test_what_leads_nowhere_is_said(tmp_path: Path) -> None:
    with pytest.raises(SandboxFailed, match=r"'default' is not there: no folder .*gone"):
        Runtimes({}, default=tmp_path / "gone").find("default")
    with pytest.raises(SandboxFailed, match="stands for itself"):
        Runtimes({"a": "b", "b": "a"}).find("a")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "expected a JSON object"),
        ("[]", "expected a JSON object"),
        ('{"a": 1, "b": "c"}', "a: expected a path.*b: expected an absolute path"),
        ('{"a": "a"}', "stands for itself"),
    ],
)
def test_settings_that_cannot_be_used(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        read_runtimes(text)
    with pytest.raises(InvalidInput, match="BENCHGEN_RUNTIMES"):
        SandboxSettings.from_environ({"BENCHGEN_RUNTIMES": text})

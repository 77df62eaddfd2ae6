"""Public datasets as they are distributed, where a checkout of them lies beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from .support import MANIFEST, small, stores, write

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


def dataset(path: str) -> bytes:
    if not (DATA / path).is_file():
        pytest.skip(f"no {path} beside the repository")
    return (DATA / path).read_bytes()


def test_gsm8k(tmp_path: Path) -> None:
    drop = ("  id: task_id\n", "  cluster: passage\n", "  slices: [difficulty]\n")
    manifest = MANIFEST.replace("data/train.jsonl", "data/test.jsonl")
    for line in drop:
        manifest = manifest.replace(line, "")
    folder = write(
        tmp_path / "env", {"environment.yaml": manifest, "data/test.jsonl": dataset("gsm8k/test.jsonl")}
    )
    found = stores(folder, tmp_path / "out")
    assert len(found["targets"]) == 1_319
    assert found["targets"][0]["target"] == "18"
    assert found["inputs"][0]["messages"][-1]["content"].startswith("Janet\u2019s ducks")


def test_svamp(tmp_path: Path) -> None:
    folder = small(
        tmp_path / "env",
        dataset("svamp/SVAMP.json"),
        "SVAMP.json",
        dataset={"file": "SVAMP.json", "id": "ID", "target": "Answer", "slices": ["Type"]},
        harness={"type": "chat", "prompt": "{{ Body }}. {{ Question }}"},
        scoring=[{"name": "correct", "type": "numeric"}],
    )
    targets = stores(folder, tmp_path / "out")["targets"]
    assert len(targets) == 1_000
    assert (targets[0]["id"], targets[0]["target"], targets[0]["slices"]) == (
        "chal-1",
        51.0,
        {"Type": "Subtraction"},
    )


def test_truthfulqa(tmp_path: Path) -> None:
    options = "{{ [row['Best Answer']] + row['Incorrect Answers'].split('; ') }}"
    folder = small(
        tmp_path / "env",
        dataset("truthfulqa/TruthfulQA.csv"),
        "TruthfulQA.csv",
        dataset={"file": "TruthfulQA.csv", "target": "Best Answer", "slices": ["Category"]},
        harness={"type": "chat", "prompt": "Question"},
        scoring=[{"name": "correct", "type": "choice", "choices": options}],
    )
    found = stores(folder, tmp_path / "out")
    assert len(found["targets"]) == 817
    first = found["targets"][0]
    assert first["rules"]["correct"]["choices"][0] == first["target"]
    assert len(first["rules"]["correct"]["choices"]) == 8

"""Small bundles on disk for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from benchgen.bundle import BundleInvalid, Problem, load_folder, materialise, validate

MANIFEST = r"""schema: 1
name: gsm8k-mini
version: 1.0.0
title: Grade-school math, 100 problems
description: One line for the card.
category: reasoning
tags: [math]
license: MIT
dataset:
  file: data/test.jsonl
  id: task_id
  target: "{{ answer.split('####')[-1].strip() }}"
  cluster: passage
  slices: [difficulty]
  split: test
  few_shot: {file: data/train.jsonl, count: 2, seed: 1234}
harness:
  type: chat
  system: You are a careful mathematician.
  prompt: |
    {{ question }}
    End with a line "#### <number>".
  generation: {temperature: 0, max_tokens: 512, stop: ["\n\nQ:"]}
oracle: "{{ answer }}"
scoring:
  - name: correct
    type: numeric
    extract: {regex: '####\s*(-?[\d.,]+)', take: last}
    primary: true
"""


def rows(count: int, prefix: str = "t") -> list[dict[str, Any]]:
    """Rows that the manifest above can use."""
    return [
        {
            "task_id": f"{prefix}{n}",
            "question": f"What is {prefix} {n} + {n}?",
            "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}",
            "passage": f"p{n // 2}",
            "difficulty": "easy" if n % 2 else "hard",
        }
        for n in range(count)
    ]


def jsonl(values: list[Any]) -> bytes:
    """The values, one a line."""
    return b"".join(json.dumps(value, ensure_ascii=False).encode() + b"\n" for value in values)


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    """Writes files below a folder."""
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def example(folder: Path, **changes: bytes | str) -> Path:
    """The example environment; ``manifest``, ``test`` and ``train`` replace its files."""
    return write(
        folder,
        {
            "environment.yaml": changes.get("manifest", MANIFEST),
            "data/test.jsonl": changes.get("test", jsonl(rows(5))),
            "data/train.jsonl": changes.get("train", jsonl(rows(4, "s"))),
        },
    )


def small(folder: Path, data: bytes, file: str = "data.jsonl", **changes: Any) -> Path:
    """The smallest environment over one data file; ``changes`` replace top-level keys, None removes them."""
    manifest: dict[str, Any] = {
        "schema": 1,
        "name": "small",
        "version": "1.0.0",
        "dataset": {"file": file, "target": "a"},
        "harness": {"type": "chat", "prompt": "{{ q }}"},
        "scoring": [{"name": "correct", "type": "exact_match"}],
    }
    manifest.update(changes)
    kept = {key: value for key, value in manifest.items() if value is not None}
    return write(folder, {"environment.yaml": yaml.safe_dump(kept, sort_keys=False), file: data})


def problems(folder: Path) -> list[Problem]:
    """The problems of a folder, which must have some."""
    with pytest.raises(BundleInvalid) as caught:
        validate(load_folder(folder))
    return caught.value.problems


def stores(folder: Path, out: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows that materialising a folder gives, by store."""
    tree = load_folder(folder)
    materialise(tree, validate(tree), out)
    found: dict[str, list[dict[str, Any]]] = {}
    for kind in sorted(path.name for path in out.iterdir()):
        (index,) = (out / kind / "index").iterdir()
        found[kind] = [
            orjson.loads(line)
            for part in orjson.loads(index.read_bytes())["parts"]
            for line in (out / kind / "parts" / f"{part['sha256']}.jsonl").read_bytes().splitlines()
        ]
    return found

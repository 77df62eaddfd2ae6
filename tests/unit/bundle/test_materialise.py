"""The stores on disk: named by their bytes, bounded, aligned, and the same every time."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import astuple
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchgen.bundle import (
    MATERIALISER_VERSION,
    BundleInvalid,
    load_folder,
    materialise,
    open_zip,
    pack,
    validate,
)
from benchgen.scoring.spec import parse_rules

from .support import example, jsonl, rows, small, write

# The package gives the function under the module's name.
api = importlib.import_module("benchgen.bundle.materialise")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_parts_and_indexes_are_named_by_their_bytes(tmp_path: Path) -> None:
    tree = load_folder(example(tmp_path / "env", test=jsonl(rows(2_100))))
    manifest = validate(tree)
    done = materialise(tree, manifest, tmp_path / "out")
    assert done.cases == 2_100
    assert done.materialiser == MATERIALISER_VERSION
    digests = {
        "inputs": done.inputs_digest,
        "targets": done.targets_digest,
        "solutions": done.solutions_digest,
    }
    bounds = []
    for kind, digest in digests.items():
        data = (tmp_path / "out" / kind / "index" / f"{digest}.json").read_bytes()
        index = orjson.loads(data)
        assert hashlib.sha256(data).hexdigest() == digest
        assert data == orjson.dumps(index, option=orjson.OPT_SORT_KEYS)
        assert (index["schema"], index["kind"], index["cases"]) == (1, kind, 2_100)
        bounds.append([(part["first"], part["count"]) for part in index["parts"]])
        position = 0
        for part in index["parts"]:
            lines = (tmp_path / "out" / kind / "parts" / f"{part['sha256']}.jsonl").read_bytes()
            assert hashlib.sha256(lines).hexdigest() == part["sha256"]
            assert len(lines) == part["bytes"]
            for line in lines.splitlines():
                assert orjson.loads(line)["position"] == position
                position += 1
    assert bounds == [[(0, 1_024), (1_024, 1_024), (2_048, 52)]] * 3
    assert len(contents(tmp_path / "out")) == 12


def test_digests_of_cases_are_what_the_format_says(tmp_path: Path) -> None:
    tree = load_folder(example(tmp_path / "env"))
    materialise(tree, validate(tree), tmp_path / "out")

    def only_part(kind: str) -> list[dict[str, object]]:
        (part,) = (tmp_path / "out" / kind / "parts").iterdir()
        return [orjson.loads(line) for line in part.read_bytes().splitlines()]

    def digest(value: object) -> str:
        return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()

    for given_input, target in zip(only_part("inputs"), only_part("targets"), strict=True):
        assert given_input["digest"] == digest(given_input["messages"])
        parts = [target["id"], given_input["digest"], target["target"], target["rules"]]
        assert target["digest"] == digest(parts)


def test_parts_are_bounded_in_bytes_and_stay_aligned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MAX_PART_BYTES", 2_000)
    tree = load_folder(
        small(tmp_path / "env", jsonl([{"q": "?", "a": "x" * (n * 90)} for n in range(1, 20)]))
    )
    materialise(tree, validate(tree), tmp_path / "out")
    bounds = []
    for kind in ("inputs", "targets"):
        (index,) = (tmp_path / "out" / kind / "index").iterdir()
        parts = orjson.loads(index.read_bytes())["parts"]
        assert all(part["bytes"] <= 2_000 for part in parts)
        assert len(parts) > 5
        bounds.append([(part["first"], part["count"]) for part in parts])
    assert bounds[0] == bounds[1]


def test_a_case_that_fits_no_part_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MAX_PART_BYTES", 200)
    tree = load_folder(small(tmp_path / "env", jsonl([{"q": "?", "a": "x" * 300}])))
    with pytest.raises(BundleInvalid, match="case 0: expected a case of at most 200 bytes"):
        materialise(tree, validate(tree), tmp_path / "out")


def test_scoring_is_stored_whole(tmp_path: Path) -> None:
    tree = load_folder(example(tmp_path / "env"))
    manifest = validate(tree)
    done = materialise(tree, manifest, tmp_path / "out")
    assert parse_rules(orjson.loads(done.scoring_json)) == list(manifest.scoring)
    assert hashlib.sha256(done.scoring_json.encode()).hexdigest() == done.scoring_digest


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = example(tmp_path / "env", test=jsonl(rows(60)))
    packed = pack(folder, tmp_path / "env.zip")
    results = []
    for number, tree in enumerate([load_folder(folder), open_zip(tmp_path / "env.zip")]):
        assert tree.digest == packed.digest
        done = materialise(tree, validate(tree), tmp_path / f"out{number}")
        results.append((astuple(done), contents(tmp_path / f"out{number}")))
    assert results[0] == results[1]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab c\né", min_size=1), st.text()), min_size=1, max_size=8), st.integers(0, 9)
)
def test_materialising_is_deterministic(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], seed: int
) -> None:
    data = jsonl([{"q": f"Q{question}", "a": answer} for question, answer in pairs])
    dataset: dict[str, object] = {"file": "data.jsonl", "target": "a"}
    if len(pairs) > 1:
        dataset["few_shot"] = {"count": 1, "seed": seed}
    folder = tmp_path_factory.mktemp("property")
    tree = load_folder(small(folder / "env", data, dataset=dataset, oracle="{{ a }}"))
    manifest = validate(tree)
    first = materialise(tree, manifest, folder / "1")
    second = materialise(tree, manifest, folder / "2")
    assert first == second
    assert contents(folder / "1") == contents(folder / "2")


def test_nothing_stays_after_a_problem(tmp_path: Path) -> None:
    folder = small(tmp_path / "env", jsonl([{"q": "?", "a": "1"}] * 1_500))
    manifest = validate(load_folder(folder))
    write(folder, {"data.jsonl": jsonl([{"q": "?", "a": "1"}] * 1_500 + [{"q": "?"}])})
    with pytest.raises(BundleInvalid, match=r"data\.jsonl:1501"):
        materialise(load_folder(folder), manifest, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_a_store_that_exists_is_not_touched(tmp_path: Path) -> None:
    tree = load_folder(small(tmp_path / "env", jsonl([{"q": "?", "a": "1"}])))
    manifest = validate(tree)
    materialise(tree, manifest, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(FileExistsError):
        materialise(tree, manifest, tmp_path / "out")
    assert contents(tmp_path / "out") == before

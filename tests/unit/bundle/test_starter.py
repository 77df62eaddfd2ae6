"""Starting points and warnings."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchgen.bundle import STARTERS, lint, load_folder, validate, write_starter
from benchgen.errors import AlreadyExists, InvalidInput
from benchgen.scoring.rules import CompiledRule, compile_rules

from .support import MANIFEST, example, jsonl, small, stores


@pytest.mark.parametrize("template", STARTERS)
def test_every_starter_is_valid_and_its_oracle_gets_full_marks(tmp_path: Path, template: str) -> None:
    folder = tmp_path / "env"
    write_starter(folder, "my-first", template)
    tree = load_folder(folder)
    manifest = validate(tree)
    assert manifest.name == "my-first"
    assert lint(tree) == []
    found = stores(folder, tmp_path / "out")
    for rule in compile_rules(manifest.scoring):
        for target, solution in zip(found["targets"], found["solutions"], strict=True):
            own = target["rules"].get(rule.name, {})
            expected = own.get("target", target["target"])
            assert isinstance(rule, CompiledRule)
            assert rule.score(solution["solution"], expected, own.get("choices")).value == 1.0
            if rule.primary:
                assert rule.score("", expected, own.get("choices")).value == 0.0


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_starter(tmp_path, "one")
    with pytest.raises(AlreadyExists):
        write_starter(tmp_path, "two")
    assert "name: one" in (tmp_path / "environment.yaml").read_text()
    with pytest.raises(InvalidInput, match="math, choice, instruct, agent"):
        write_starter(tmp_path / "x", "two", "nope")


def test_escapes_in_single_quotes_are_pointed_out(tmp_path: Path) -> None:
    manifest = MANIFEST.replace('["\\n\\nQ:"]', "['\\n\\nQ:']").replace("careful", "'careful'")
    assert "'\\n\\nQ:'" in manifest
    (warning,) = lint(load_folder(example(tmp_path, manifest=manifest)))
    assert warning.field == "harness.generation.stop[0]"
    assert warning.line == 23
    assert "use double quotes" in warning.message


def test_a_pattern_in_single_quotes_is_meant_so(tmp_path: Path) -> None:
    manifest = MANIFEST.replace("####\\s*", "\\n####\\s*").replace(
        '"{{ answer }}"', "'{{ [answer] | join(\"\\n\") }}'"
    )
    assert lint(load_folder(example(tmp_path, manifest=manifest))) == []


def test_a_conversation_without_a_field_is_pointed_out(tmp_path: Path) -> None:
    harness = {"type": "chat", "messages": [{"role": "user", "content": "Hello"}]}
    (warning,) = lint(load_folder(small(tmp_path, jsonl([{"a": "1"}]), harness=harness)))
    assert "every case asks the same" in warning.message

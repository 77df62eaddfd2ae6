"""Commands of programs, and their placeholders."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchgen.bundle.competition.programs import Role, argv, read_metadata

from .support import folder_tree


@pytest.mark.parametrize(
    ("command", "role", "expected"),
    [
        ("python3 score.py", Role.SCORING, ["python3", "score.py"]),
        (
            "python $program/score.py $input $output",
            Role.SCORING,
            ["python", "/app/program/score.py", "/app/input", "/app/output"],
        ),
        (
            "python $ingestion_program/run.py $input $output $submission_program $shared",
            Role.INGESTION,
            [
                "python",
                "/app/program/run.py",
                "/app/input_data",
                "/app/output",
                "/app/ingested_program",
                "/app/shared",
            ],
        ),
        (
            "score $hidden $predictions $tmp",
            Role.SCORING,
            ["score", "/app/input/ref", "/app/input/res", "/app/output"],
        ),
        ("run $predictions", Role.SUBMISSION, ["run", "/app/output"]),
        (
            "run $predictions $hidden",
            Role.INGESTION_DURING_SCORING,
            ["run", "/app/input/res", "/app/input/ref"],
        ),
        # Plain text, in the documented order.
        ("run $input_data", Role.SUBMISSION, ["run", "/app/input_data"]),
        ("run $input_data", Role.INGESTION, ["run", "/app/input_data_data"]),
        ("python  'my score.py'   -x", Role.SCORING, ["python", "my score.py", "-x"]),
        ("python it's.py", Role.SCORING, ["python", "it's.py"]),
        (r"python $program\sub\score.py", Role.SCORING, ["python", "/app/program/subscore.py"]),
        (r"python $program\score.py", Role.SCORING, ["python", "/app/program/score.py"]),
        ("sh -c $HOME && echo", Role.SCORING, ["sh", "-c", "$HOME", "&&", "echo"]),
    ],
)
def test_placeholders(command: str, role: Role, expected: list[str]) -> None:
    assert argv(command, role) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("command: python3 score.py", ("python3 score.py",)),
        ("command: python3 score.py\ndescription: x: y: z\n", ("python3 score.py",)),
        (
            "\tcommand:   python score.py $input  \n\tdescription: tabs are no YAML\n",
            ("python score.py $input",),
        ),
        ("command: >\n  python3\n  score.py\n", ("python3 score.py",)),
        ("command: [python3, score.py]", ("python3 score.py",)),
        ("command: [python a.py, python b.py]", ("python a.py", "python b.py")),
        ("command: !!python/unicode 'python a.py'", ("python a.py",)),
        ("description: nothing", ()),
        ("", ()),
        ("\xff\xfe", ()),
    ],
)
def test_metadata(tmp_path: Path, content: str, expected: tuple[str, ...]) -> None:
    tree = folder_tree(tmp_path, {"metadata": content.encode("latin-1")})
    found = read_metadata(tree)
    assert (found.file, found.commands) == ("metadata", expected)


def test_metadata_yaml_goes_before_the_old_name(tmp_path: Path) -> None:
    tree = folder_tree(tmp_path, {"metadata": "command: old", "metadata.yaml": "command: new"})
    assert read_metadata(tree).commands == ("new",)
    assert read_metadata(folder_tree(tmp_path / "x", {"a": ""})).file is None

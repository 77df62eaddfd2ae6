"""Every dialect becomes the same model."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from benchgen.bundle import BundleInvalid
from benchgen.bundle.competition import Dialect, Nested, is_competition, read_competition
from benchgen.bundle.competition.fields import Fields, Source
from benchgen.bundle.competition.model import FactQuestion, Page, Reference
from benchgen.bundle.competition.programs import read_metadata
from benchgen.bundle.problems import ProblemLog
from benchgen.bundle.tree import BundleTree
from benchgen.bundle.yamldoc import YamlDocument, read_yaml

from .support import (
    DOCUMENTED,
    METADATA,
    OLD,
    PARALLEL,
    PROGRAM,
    REFERENCE,
    SCORE,
    codabench,
    documented,
    folder_tree,
    old,
    read,
    reading,
    refused,
    within,
    zip_tree,
    zipped,
)


def test_the_documented_bundle(tmp_path: Path) -> None:
    found = read(tmp_path, documented())
    assert found.dialect is Dialect.V2
    assert (found.title, found.slug, found.description) == ("Letters", "letters", "Name the letters.")
    assert found.terms == Page("Terms", "pages/terms.md", "markdown")
    assert found.pages == (Page("Overview", "pages/overview.md", "markdown"),)
    assert found.image == "logo.png"
    (phase,) = found.phases
    assert phase.tasks == (0,)
    assert (phase.start, phase.end) == (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC))
    assert (phase.seconds, phase.max_submissions_per_day, phase.max_submissions) == (600, 5, 100)
    (task,) = found.tasks
    assert task.scoring_program == Reference("zip", "scoring.zip")
    assert task.reference_data == Reference("zip", "reference.zip")
    (solution,) = found.solutions
    assert (solution.tasks, solution.path) == ((0,), Reference("zip", "solution.zip"))
    assert [(column.key, column.sorting) for column in found.board.columns] == [
        ("accuracy", "desc"),
        ("count", "desc"),
    ]
    assert found.board.primary.key == "accuracy"


def test_a_codabench_bundle_with_folders(tmp_path: Path) -> None:
    found = read(tmp_path, codabench())
    assert found.slug == "chars-words"
    assert [phase.name for phase in found.phases] == ["Development", "Final"]
    development, final = found.phases
    assert (development.index, final.index) == (0, 1)
    # A date-time without quotes keeps its time, and one with a zone keeps its zone.
    assert development.start == datetime(2019, 12, 12, 13, 30, tzinfo=UTC)
    assert development.end == datetime(2020, 3, 1, 8, 15, tzinfo=timezone(timedelta(hours=2)))
    assert development.end.utcoffset() == timedelta(hours=2)
    # Month first.
    assert final.start == datetime(2025, 10, 7, tzinfo=UTC)
    assert (final.max_submissions_per_day, final.max_submissions, final.seconds) == (None, None, 30)
    assert final.tasks == (0, 1)
    assert final.auto_migrate
    words = found.task(1)
    assert words.input_data == Reference("folder", "words/input")
    assert words.reference_data == Reference("folder", "words/reference")
    assert words.ingestion_only_during_scoring
    assert found.solutions == ()
    mean, a, b = found.board.columns
    assert (mean.computation, mean.computed_from, mean.precision) == ("avg", (1, 2), 4)
    assert (a.computation, a.computed_from) == (None, ())
    assert (b.sorting, b.hidden) == ("asc", False)
    assert found.fact_sheet == (FactQuestion("method", "Method", "select", ("tree", "net"), False, True),)
    assert found.docker_image == "codalab/codalab-legacy:py37"


def test_version_1_5(tmp_path: Path) -> None:
    read_ = reading(tmp_path, old())
    found = read_.competition
    assert found.dialect is Dialect.V15
    assert [phase.name for phase in found.phases] == ["Trial", "Test"]
    trial, test = found.phases
    # A phase ends a day before the next one begins.
    assert trial.end == datetime(2018, 2, 28, tzinfo=UTC)
    assert test.end is None
    assert test.max_submissions == 3
    assert (trial.tasks, test.tasks) == ((0,), (1,))
    assert found.task(0).reference_data == Reference("zip", "reference.zip")
    assert found.terms == Page("Terms", "terms.html", "html")
    assert [page.title for page in found.pages] == ["Overview", "Data"]
    results, extra = found.leaderboards
    assert [column.key for column in results.columns] == ["accuracy", "count", "overall"]
    assert [column.index for column in results.columns] == [0, 1, 2]
    assert results.primary.precision == 4
    assert [(column.key, column.sorting) for column in extra.columns] == [("seconds", "asc")]
    assert [column.key for column in found.columns] == ["accuracy", "count", "overall", "seconds"]
    assert any("computed from ranks" in str(warning) for warning in read_.warnings)


def test_a_column_computed_from_ranks_does_not_rank(tmp_path: Path) -> None:
    computed = OLD.replace(
        "      label: Accuracy\n", "      label: Accuracy\n      computed: {operation: Avg, fields: count}\n"
    )
    results, _ = read(tmp_path, old(computed)).leaderboards
    assert [column.key for column in results.columns] == ["accuracy", "count", "overall"]
    assert results.primary.key == "count"


def test_version_1_8_drops_the_parent_phase(tmp_path: Path) -> None:
    found = read(tmp_path, old(PARALLEL))
    assert found.dialect is Dialect.V18
    assert [phase.name for phase in found.phases] == ["Set 1", "Set 2"]
    assert found.phases[0].seconds == 1200
    assert [task.ingestion_only_during_scoring for task in found.tasks] == [True, False]


@pytest.mark.parametrize(
    "version", ["version: 2", "version: '2'", "version: 1", "version: 2.0", "version: x"]
)
def test_what_is_in_a_bundle_decides_its_version(tmp_path: Path, version: str) -> None:
    files = documented(competition_DOT_yaml=f"{version}\n{DOCUMENTED}")
    assert read(tmp_path, files).dialect is Dialect.V2


def test_a_folder_and_a_zip_with_a_top_folder_are_the_same(tmp_path: Path) -> None:
    files = documented()
    folder = folder_tree(tmp_path / "folder", files)
    inside = {**within("Letters", files), "__MACOSX/Letters/._logo.png": b"x", "Letters/.DS_Store": b"x"}
    (tmp_path / "z").mkdir()
    assert zip_tree(tmp_path / "z", inside).digest == folder.digest
    assert is_competition(folder)
    assert read_competition(folder).competition == read(tmp_path / "z", inside)


def test_references_are_found_as_zip_as_folder_and_as_plain_file(tmp_path: Path) -> None:
    """Repositories hold the folder of a zip that their manifest names, and the other way round."""
    files = documented(
        scoring_DOT_zip=None,
        scoring__metadata_DOT_yaml=METADATA,
        scoring__score_DOT_py=SCORE,
        competition_DOT_yaml=DOCUMENTED.replace("reference.zip", "truth.txt"),
        truth_DOT_txt="a b c d",
    )
    read_ = reading(tmp_path, files)
    (task,) = read_.competition.tasks
    assert task.scoring_program == Reference("folder", "scoring")
    assert task.reference_data == Reference("file", "truth.txt")
    assert ['its folder "scoring" is used' in str(warning) for warning in read_.warnings] == [True]
    tree = zip_tree(tmp_path, files)
    with Nested(tree, ProblemLog()) as nested:
        data = nested.data(Reference("file", "truth.txt"))
        assert data is not None
        assert data.paths == ["truth.txt"]
        assert data.read("truth.txt", 99) == b"a b c d"


@pytest.mark.parametrize(
    "program",
    [
        within("scoring", PROGRAM),
        {**within("a/scoring", PROGRAM), "README.md": "read me", "a/b/x.txt": ""},
        {"program.zip": zipped(PROGRAM)},
        {"program.zip": zipped(within("scoring", PROGRAM))},
        {f"./{path}": content for path, content in PROGRAM.items()},
        {**PROGRAM, "__MACOSX/._score.py": b"\0", "data/metadata": "x"},
    ],
)
def test_a_program_is_found_where_it_is_one_folder_too_deep(
    tmp_path: Path, program: dict[str, bytes | str]
) -> None:
    tree = zip_tree(tmp_path, documented(scoring_DOT_zip=zipped(program)))
    read_competition(tree)
    with Nested(tree, ProblemLog()) as nested:
        found = nested.program(Reference("zip", "scoring.zip"))
        assert found is not None
        assert read_metadata(found).commands == ("python3 score.py $input $output",)
        assert found.read("score.py", 1 << 20) == SCORE.encode()


def test_data_stays_exactly_as_it_lies(tmp_path: Path) -> None:
    """Scoring programs rely on the folders in their reference data."""
    data = {**within("Reference", REFERENCE), "Reference/A.txt": "1", "Reference/a.txt": "2"}
    tree = zip_tree(tmp_path, documented(reference_DOT_zip=zipped(data)))
    with Nested(tree, ProblemLog()) as nested:
        found = nested.data(Reference("zip", "reference.zip"))
        assert found is not None
        assert found.paths == sorted(data)


def test_one_column_list_without_the_list_around_it(tmp_path: Path) -> None:
    text = DOCUMENTED[: DOCUMENTED.index("leaderboard:")] + "leaderboard: {columns: [{key: accuracy}]}\n"
    found = read(tmp_path, documented(competition_DOT_yaml=text))
    assert found.board.primary.title == "accuracy"


def test_a_solution_without_tasks_is_for_all_of_them(tmp_path: Path) -> None:
    read_ = reading(tmp_path, documented(competition_DOT_yaml=DOCUMENTED.replace(", tasks: [0]}", "}")))
    assert read_.competition.solutions[0].tasks == (0,)
    assert "run for all" in str(read_.warnings[0])


def test_merged_mappings_and_repeated_keys(tmp_path: Path) -> None:
    text = DOCUMENTED.replace(
        "tasks:\n  - index: 0\n", "base: &base {index: 3}\ntasks:\n  - <<: *base\n    index: 0\n"
    )
    assert read(tmp_path, documented(competition_DOT_yaml=text + "title: Second\n")).title == "Second"


_YEARS = (datetime(1990, 1, 1), datetime(2100, 1, 1))  # noqa: DTZ001


@given(
    st.datetimes(*_YEARS),
    st.sampled_from(["quoted", "plain", "date", "month-first"]),
)
def test_dates_come_back_whole(moment: datetime, written: str) -> None:
    moment = moment.replace(microsecond=0)
    if written in ("date", "month-first"):
        moment = moment.replace(hour=0, minute=0, second=0)
    text = {
        "quoted": f"'{moment:%Y-%m-%d %H:%M:%S}'",
        "plain": f"{moment:%Y-%m-%d %H:%M:%S}",
        "date": f"{moment:%Y-%m-%d}",
        "month-first": f"'{moment:%m/%d/%Y}'",
    }[written]
    log = ProblemLog()
    document = read_yaml(f"start: {text}".encode(), "competition.yaml", log, lenient=True)
    assert document is not None
    source = Source(BundleTree((), lambda _: None), document, log, ProblemLog())  # type: ignore[arg-type, return-value]
    assert Fields(source, document.data, ()).date("start") == moment.replace(tzinfo=UTC)
    assert not log.problems


@pytest.mark.parametrize("text", ["soon", "2026", "March", "2026-13-40", "[1]", "99999999999999999999"])
def test_dates_that_are_none(tmp_path: Path, text: str) -> None:
    files = documented(competition_DOT_yaml=DOCUMENTED.replace("start: 2026-01-01", f"start: {text}"))
    (said,) = refused(tmp_path, files)
    assert said.startswith("competition.yaml:11: phases[0].start: expected a date")


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@settings(deadline=None)
@given(
    st.sampled_from(["title", "tasks", "phases", "leaderboard", "pages", "solutions", "html", "image"]),
    st.recursive(_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20),
)
def test_whatever_stands_in_the_file_is_read_or_refused(key: str, data: object) -> None:
    """No value in any field makes the reader fail in another way than with problems."""
    good = yaml.safe_load(DOCUMENTED)
    good[key] = data
    if key == "html":
        del good["tasks"]
    tree = _memory({"competition.yaml": yaml.safe_dump(good).encode(), "logo.png": b"x"})
    with pytest.raises(BundleInvalid):
        read_competition(tree)


def _memory(files: dict[str, bytes]) -> BundleTree:
    import io
    from contextlib import nullcontext
    from hashlib import sha256

    from benchgen.bundle import BundleFile

    listed = tuple(
        BundleFile(path, len(data), sha256(data).hexdigest()) for path, data in sorted(files.items())
    )
    return BundleTree(listed, lambda path: nullcontext(io.BytesIO(files[path])))


def test_yaml_documents_are_lenient_only_where_asked() -> None:
    text = b"a: &x {1: 2}\nb: *x\na: *x\n"
    strict, lenient = ProblemLog(), ProblemLog()
    assert read_yaml(text, "f", strict) is None
    document = read_yaml(text, "f", lenient, lenient=True)
    assert isinstance(document, YamlDocument)
    assert document.data == {"a": {"1": 2}, "b": {"1": 2}}
    assert not lenient.problems


@pytest.mark.parametrize(
    "bomb",
    [
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{c}: &{c} [{', '.join([f'*{b}'] * 10)}]\n" for b, c in zip("abcdefg", "bcdefgh", strict=True)
        ),
        "a: &a [*a]\n",
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 200)),
    ],
)
def test_aliases_cannot_grow_without_bound(bomb: str) -> None:
    log = ProblemLog()
    read_yaml(bomb.encode(), "competition.yaml", log, lenient=True)
    (problem,) = log.problems
    assert "with all aliases written out" in problem.message or "expected valid YAML" in problem.message

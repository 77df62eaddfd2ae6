"""Reads leaderboards: the list of the second version, and the two maps of the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, get_args

from benchgen.bundle.competition.fields import Fields
from benchgen.bundle.competition.model import Column, Computation, Leaderboard, Sorting
from benchgen.bundle.problems import found

_COMPUTATIONS = get_args(Computation)
_SORTINGS = get_args(Sorting)
_RULES = (
    "Add",
    "Add_And_Delete",
    "Add_And_Delete_Multiple",
    "Force_Last",
    "Force_Latest_Multiple",
    "Force_Best",
)


def read_boards(top: Fields) -> tuple[Leaderboard, ...]:
    """The leaderboards under `leaderboards` or `leaderboard`; a problem where there is none with a column."""
    key = "leaderboards" if "leaderboards" in top else "leaderboard"
    if key not in top:
        top.problem("expected a list `leaderboard` with the columns that are scored, found none")
        return ()
    value = top.values[key]
    if isinstance(value, dict) and "columns" in value:
        # One leaderboard written without the list around it.
        entries = [Fields(top.source, value, top.at(key))]
    else:
        entries = list(top.entries(key))
    boards = [board for position, entry in enumerate(entries) if (board := _board(entry, position))]
    if not entries and isinstance(value, list | dict):
        top.problem("expected at least one leaderboard, found none", key)
    return tuple(boards)


def _board(board: Fields, position: int) -> Leaderboard | None:
    entries = list(board.entries("columns"))
    if not entries:
        board.problem("expected `columns` with at least one column, found none")
        return None
    columns = [column for at, entry in enumerate(entries) if (column := _column(entry, at)) is not None]
    if not _distinct(entries, columns):
        return None
    columns.sort(key=lambda column: column.index)
    _check_computed(board, columns)
    key = board.text("key", f"leaderboard-{position}", limit=100)
    rule = board.text("submission_rule")
    if rule and rule not in _RULES:
        board.note(
            f"`submission_rule` is none of {', '.join(_RULES)}: found {found(rule)}", "submission_rule"
        )
    return Leaderboard(
        key=key,
        title=board.text("title", key, limit=200),
        columns=tuple(columns),
        primary_index=_primary(board, columns),
        submission_rule=rule,
        hidden=board.flag("hidden"),
    )


def _column(column: Fields, position: int) -> Column | None:
    key = column.text("key", limit=100) or column.text("title", limit=100)
    if not key:
        column.problem("expected a `key` under which the scores hold this column, found none")
        return None
    index = column.whole("index", position)
    computation = column.choice("computation", _COMPUTATIONS, "")
    computed_from = column.wholes("computation_indexes")
    if computation and not computed_from:
        column.problem("expected `computation_indexes` with the columns to compute from, found none")
    return Column(
        key=key,
        title=column.text("title", key, limit=200),
        index=position if index is None else index,
        sorting=cast(Sorting, column.choice("sorting", _SORTINGS, "desc")),
        computation=cast("Computation | None", computation or None),
        computed_from=computed_from if computation else (),
        precision=column.digits("precision"),
        hidden=column.flag("hidden"),
    )


def _distinct(entries: Sequence[Fields], columns: Sequence[Column]) -> bool:
    """Whether keys and indexes are unique; a problem for each that is not."""
    good = len(columns) == len(entries)
    keys: set[str] = set()
    indexes: set[int] = set()
    for entry, column in zip(entries, columns, strict=False) if good else ():
        if column.key in keys:
            entry.problem(f'expected each column key once, found "{column.key}" again', "key")
            good = False
        if column.index in indexes:
            entry.problem(f"expected each column index once, found {column.index} again", "index")
            good = False
        keys.add(column.key)
        indexes.add(column.index)
    return good


def _check_computed(board: Fields, columns: Sequence[Column]) -> None:
    known = {column.index: column for column in columns}
    for column in columns:
        where = f'the column "{column.key}"'
        missing = [index for index in column.computed_from if index not in known]
        if missing:
            message = f"expected {where} to be computed from columns {sorted(known)}, found {missing}"
            board.problem(message, "columns")
        elif _reaches(column, column.index, known, set()):
            board.problem(
                f"expected {where} to be computed from others, found that it needs itself", "columns"
            )


def _reaches(column: Column, wanted: int, known: dict[int, Column], seen: set[int]) -> bool:
    for index in column.computed_from:
        if index == wanted:
            return True
        if index not in seen and index in known:
            seen.add(index)
            if _reaches(known[index], wanted, known, seen):
                return True
    return False


def _primary(board: Fields, columns: Sequence[Column]) -> int:
    wanted = board.whole("primary_index", columns[0].index)
    if any(column.index == wanted for column in columns):
        return cast(int, wanted)
    indexes = [column.index for column in columns]
    board.note(f"`primary_index` is none of the columns {indexes}: the first one ranks", "primary_index")
    return columns[0].index


def read_old_boards(top: Fields) -> tuple[Leaderboard, ...]:
    """The leaderboards of versions 1.5 and 1.8: a map of boards, and a map of columns that name theirs."""
    outer = top.mapping("leaderboard")
    if outer is None:
        if "leaderboard" not in top:
            top.problem("expected a mapping `leaderboard` with `leaderboards` and `columns`, found none")
        return ()
    boards, columns = outer.mapping("leaderboards"), outer.mapping("columns")
    for name, part in (("leaderboards", boards), ("columns", columns)):
        if part is None and name not in outer:
            outer.problem(f"expected a mapping `{name}`, found none")
    if boards is None or columns is None:
        return ()
    by_board: dict[str, list[tuple[int, Fields, str]]] = {name: [] for name in boards.values}
    for key in columns.values:
        column = columns.mapping(key)
        if column is not None:
            board = _board_of(column, boards)
            if board is not None:
                rank = column.whole("rank", 1)
                by_board[board].append((1 if rank is None else rank, column, key))
    made = [_old_board(boards, name, entries) for name, entries in by_board.items() if entries]
    if not any(by_board.values()):
        columns.problem("expected at least one column with a leaderboard, found none")
    return tuple(made)


def _board_of(column: Fields, boards: Fields) -> str | None:
    """The board of a column: written out (an alias of it, mostly), by its name, or the only one there is."""
    wanted = column.values.get("leaderboard")
    labels = {name: _label(value, name) for name, value in boards.values.items()}
    if wanted is None and boards.values:
        return next(iter(labels))
    label = _label(wanted, "") if isinstance(wanted, dict) else str(wanted)
    for name in labels:
        if label.lower() in (name.lower(), labels[name].lower()):
            return name
    column.problem(
        f"expected one of the leaderboards {', '.join(labels)}, found {found(label)}", "leaderboard"
    )
    return None


def _label(value: object, default: str) -> str:
    return str(value.get("label") or default) if isinstance(value, dict) else default


def _old_board(boards: Fields, name: str, entries: list[tuple[int, Fields, str]]) -> Leaderboard:
    columns = []
    primary = 0
    # Ranks order the columns; columns of the same rank keep the order of the file.
    for index, (_, column, key) in enumerate(sorted(entries, key=lambda entry: entry[0])):
        if "computed" in column:
            column.note("a column computed from ranks has no value here: the next one ranks", "computed")
            # The one that ranks has values: what is computed can only rank where nothing else could.
            primary += primary == index < len(entries) - 1
        columns.append(
            Column(
                key=key,
                title=column.text("label", key, limit=200),
                index=index,
                sorting=cast(Sorting, column.choice("sort", _SORTINGS, "desc")),
                precision=column.digits("numeric_format"),
                hidden=column.flag("hidden"),
            )
        )
    board = boards.mapping(name)
    return Leaderboard(
        key=name,
        title=board.text("label", name, limit=200) if board else name,
        columns=tuple(columns),
        primary_index=primary,
        hidden=board.flag("hidden") if board else False,
    )

"""Watching a run: a live bar on a terminal, a plain line a second elsewhere. All of it goes to stderr."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from benchgen.cli import text
from benchgen.cli.exits import Exit, Stop
from benchgen.cli.output import console, note

if TYPE_CHECKING:
    from rich.progress import Progress

    from benchgen.client import Client
    from benchgen.eval.v1 import run_pb2

# Long enough to smooth the bursts of results that are stored together, short enough to see a stall.
_WINDOW_SECONDS = 10.0
# A rate over less than this says nothing.
_SHORTEST_SECONDS = 0.3
_LINE_SECONDS = 1.0


class Pace:
    """How fast results come in, and scores once all results are there, over the last ten seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, moment: float, done: int) -> None:
        """Note how many there are at a moment (monotonic seconds). Fewer than before: something else is counted now."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((moment, done))
        while len(self._seen) > 2 and moment - self._seen[1][0] >= _WINDOW_SECONDS:
            self._seen.popleft()

    def per_second(self) -> float | None:
        """How many a second; None before there is anything to tell."""
        if len(self._seen) < 2:
            return None
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        known = ended - began >= _SHORTEST_SECONDS and last > first
        return (last - first) / (ended - began) if known else None


class _View(Protocol):
    def show(self, run: run_pb2.Run, pace: Pace) -> None: ...


def follow(client: Client, run: run_pb2.Run) -> run_pb2.Run:
    """Show a run until it has ended or is paused, and return it as it stands then.

    Ctrl-C ends the watching, never the run.
    """
    from benchgen.eval.v1 import run_pb2

    pace = Pace()
    last = run
    watching = client.watch(run.name)
    try:
        with _view(run) as view:
            for last in watching:
                pace.note(time.monotonic(), _done(last))
                view.show(last, pace)
                if last.state == run_pb2.Run.STATE_PAUSED:
                    break
    except KeyboardInterrupt:
        raise Stop(
            Exit.INTERRUPTED,
            f"\nThe run {run.name} goes on.",
            f"  watch it:   benchgen runs watch {run.name}\n  cancel it:  benchgen runs cancel {run.name}",
        ) from None
    return last


@contextmanager
def _view(run: run_pb2.Run) -> Iterator[_View]:
    from benchgen import schemas

    note(f"{run.name}: {run.spec.environment} × {schemas.subject_name(run.spec)}")
    if not console(err=True).is_terminal:
        yield _Lines()
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console(err=True), transient=True) as bar:
        yield _Bar(bar, run)


class _Bar:
    """The live bar."""

    def __init__(self, progress: Progress, run: run_pb2.Run) -> None:
        self._progress = progress
        self._task = progress.add_task("queued", total=run.spec.planned or None, figures="")

    def show(self, run: run_pb2.Run, pace: Pace) -> None:
        state, *figures = figures_of(run, pace)
        self._progress.update(
            self._task,
            description=state,
            total=run.progress.planned or run.spec.planned or None,
            completed=_done(run),
            figures="  ".join(figures),
        )


class _Lines:
    """A line a second at most, and one for every change of state."""

    def __init__(self) -> None:
        self._state = -1
        self._said = 0.0

    def show(self, run: run_pb2.Run, pace: Pace) -> None:
        now = time.monotonic()
        if run.state != self._state or now - self._said >= _LINE_SECONDS:
            self._state, self._said = run.state, now
            note("  ".join(figures_of(run, pace)))


def _done(run: run_pb2.Run) -> int:
    """How many trials have what the run works on: results, and then their scores."""
    from benchgen.eval.v1 import run_pb2

    return run.progress.scored if run.state == run_pb2.Run.STATE_SCORING else run.progress.recorded


def figures_of(run: run_pb2.Run, pace: Pace) -> list[str]:
    """State, done of total, rate, accuracy so far, faults, cached answers, cost and time left, as far as known."""
    from benchgen import schemas

    progress = run.progress
    planned = progress.planned or run.spec.planned
    done = _done(run)
    figures = [schemas.state_name(run.state), f"{text.count(done)}/{text.count(planned)}"]
    per_second = pace.per_second()
    if per_second:
        figures.append(text.rate(per_second))
    if progress.scored and not run.spec.competition_json:
        figures.append(f"accuracy {text.score(progress.passed / progress.scored)}")
    figures.append(text.counted(progress.faults, "fault"))
    if progress.cache_hits:
        figures.append(f"{text.count(progress.cache_hits)} cached")
    if progress.calls:
        figures.append(f"cost {text.usd(schemas.cost_usd(progress))}")
    if per_second and planned > done:
        figures.append(f"ETA {text.duration((planned - done) / per_second)}")
    return figures

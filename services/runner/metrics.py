"""What a runner counts: plain integers, a few nanoseconds each, made into metrics when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from services.common.models.retry import CallRecord
from services.common.telemetry import MOST_LABELS, OTHER, gauge

if TYPE_CHECKING:
    from services.runner.lanes import Lane

#: Upper bounds of a call's latency in milliseconds; models think for up to minutes.
_BOUNDS_MS = (50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0, 10_000.0, 30_000.0, 60_000.0, 300_000.0)
_ANSWERED = "answered"


class Calls:
    """The calls of one model, for as long as the process lives."""

    __slots__ = ("buckets", "milliseconds", "results", "retries")

    def __init__(self) -> None:
        self.results: dict[str, int] = {_ANSWERED: 0}
        """By fault kind, or `answered`."""
        self.retries = 0
        self.milliseconds = 0.0
        self.buckets = [0] * (len(_BOUNDS_MS) + 1)

    def note(self, call: CallRecord) -> None:
        """Count one try."""
        result = _ANSWERED if call.kind is None else call.kind
        self.results[result] = self.results.get(result, 0) + 1
        if call.number > 1:
            self.retries += 1
        self.milliseconds += call.latency_ms
        self.buckets[bisect_left(_BOUNDS_MS, call.latency_ms)] += 1


#: In the order in which a lane is asked.
_BY_MODEL = (
    ("calls_in_flight", "Calls of models that are under way."),
    ("permits", "Calls that the hub allows this runner."),
    ("calls_allowed", "Calls that the model seems to bear at the moment; at most the permits."),
    ("trials_waiting", "Trials that have not been started."),
    ("results_unstored", "Results that the scorer has not acknowledged."),
)

_calls: dict[str, Calls] = {}


def calls_of(model: str) -> Calls:
    """Where the calls of a model are counted; models beyond the first fifty are counted together."""
    name = model if model in _calls or len(_calls) < MOST_LABELS else OTHER
    return _calls.setdefault(name, Calls())


def measure(held: int, most: int, lanes: Iterable[Lane]) -> list[Metric]:
    """How a runner stands that holds so many shards, and ``most`` at most, and what it has counted so far."""
    sums: dict[str, list[int]] = {}
    for lane in lanes:
        name = lane.name if lane.name in _calls else OTHER
        limit = lane.limit
        numbers = (limit.in_flight, limit.permits, limit.allowed, lane.waiting, lane.unstored)
        sums[name] = [a + b for a, b in zip(sums.get(name, [0] * len(numbers)), numbers, strict=True)]
    return [
        gauge("benchgen_runner_shards_held", "Shards that are being worked on.", [], {(): held}),
        gauge("benchgen_runner_shards_room", "Shards that it can hold.", [], {(): most}),
        *(
            gauge(
                f"benchgen_runner_{name}",
                what,
                ["model"],
                {(model,): row[place] for model, row in sums.items()},
            )
            for place, (name, what) in enumerate(_BY_MODEL)
        ),
        *_call_metrics(_calls),
    ]


def measure_boxes(busy: int, most: int, waiting: int) -> list[Metric]:
    """How the sandboxes of a runner stand."""
    return [
        gauge("benchgen_runner_sandboxes_busy", "Sandboxes with a program.", [], {(): busy}),
        gauge("benchgen_runner_sandboxes_room", "Sandboxes that there may be at once.", [], {(): most}),
        gauge("benchgen_runner_sandboxes_waiting", "Shards that wait for a sandbox.", [], {(): waiting}),
    ]


def _call_metrics(counted: Mapping[str, Calls]) -> Iterable[Metric]:
    calls = CounterMetricFamily(
        "benchgen_runner_calls",
        "Calls of models, by model and result: `answered` or the kind of fault.",
        labels=["model", "result"],
    )
    retries = CounterMetricFamily(
        "benchgen_runner_retries", "Calls that repeated a failed one.", labels=["model"]
    )
    latency = HistogramMetricFamily(
        "benchgen_runner_call_seconds", "From sending a request to the end of its reply.", labels=["model"]
    )
    for model, tally in counted.items():
        for result, count in tally.results.items():
            calls.add_metric([model, result], count)
        retries.add_metric([model], tally.retries)
        below, buckets = 0, []
        for bound, count in zip((*_BOUNDS_MS, None), tally.buckets, strict=True):
            below += count
            buckets.append(("+Inf" if bound is None else f"{bound / 1000:g}", below))
        latency.add_metric([model], buckets, tally.milliseconds / 1000)
    return [calls, retries, latency]

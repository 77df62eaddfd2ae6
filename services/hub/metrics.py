"""What the hub counts: events, never more than one increment each."""

from __future__ import annotations

from prometheus_client import Counter

RINGS = Counter(
    "benchgen_hub_rings_total",
    "Rings sent for shards: `first`, or `again` because nobody answered although a runner had room.",
    ["kind"],
)
LEASES = Counter(
    "benchgen_hub_leases_total",
    "Answers to rings: `new` leases, `again` (the first answer was lost), `refused` (somebody was first).",
    ["kind"],
)
LEASE_ENDS = Counter(
    "benchgen_hub_lease_ends_total",
    "Leases that ended: `done`, handed back (`stopping`, `fault`, `permanent`), or `expired`.",
    ["how"],
)
SHARDS_ABANDONED = Counter("benchgen_hub_shards_abandoned_total", "Shards given up after a lease.")
RUNS_CREATED = Counter("benchgen_hub_runs_created_total", "Runs created.")
RUNS_ENDED = Counter("benchgen_hub_runs_ended_total", "Runs that ended, by state.", ["state"])
PUBLICATIONS_ENDED = Counter(
    "benchgen_hub_publications_ended_total", "Uploads that were carried to their end, by state.", ["state"]
)

for _counter, _values in (
    (RINGS, ("first", "again")),
    (LEASES, ("new", "again", "refused")),
    (LEASE_ENDS, ("done", "stopping", "fault", "permanent", "expired")),
    (RUNS_ENDED, ("SUCCEEDED", "FAILED", "CANCELLED")),
    (PUBLICATIONS_ENDED, ("READY", "REJECTED")),
):
    # There from the start: a series that appears with its first event hides that event from `increase`.
    for _value in _values:
        _counter.labels(_value)

"""Metrics of real services: what the dashboard and the alerts name is there, and says what happened."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from benchgen.client import Client
from benchgen.eval.v1 import run_pb2
from services.common import db
from services.common.queries import load_queries
from services.hub.app import MIGRATIONS
from services.local.state import DataDir
from tests.conftest import Database, LocalStack

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "dashboards" / "benchgen.json").read_text())
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
GUIDE = (DEPLOY.parent / "docs" / "operations.md").read_text()

Samples = dict[str, list[tuple[dict[str, str], float]]]


def scrape(stack: LocalStack) -> Samples:
    """All samples of all services by name, and an empty list for a metric that has none at the moment."""
    ports = DataDir(stack.data_dir).settings().ports
    found: Samples = {}
    for service in ("hub", "scorer", "gateway", "runner-1", "runner-2"):
        with urllib.request.urlopen(
            f"http://127.0.0.1:{ports[f'{service}.http']}/metrics", timeout=5
        ) as page:
            text = page.read().decode()
        for family in text_string_to_metric_families(text):
            found.setdefault(family.name, [])
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def total(samples: Samples, name: str, **labels: str) -> float:
    return sum(value for has, value in samples.get(name, []) if labels.items() <= has.items())


def named(expressions: Iterable[str]) -> set[str]:
    return {name for text in expressions for name in re.findall(r"\bbenchgen_\w+", text)}


@pytest.fixture(scope="module")
def samples(stack: LocalStack) -> tuple[Samples, Samples]:
    """Before and after a run of ten cases in thirty trials."""
    before = scrape(stack)
    with Client(stack.grpc, stack.api_key) as client:
        run = client.run("gsm8k-mini", model="builtin/simulated?accuracy=0.5", limit=10, trials=3)
        for latest in client.watch(run.name):
            run = latest
    assert run.state == run_pb2.Run.STATE_SUCCEEDED
    asked = urllib.request.Request(
        f"{stack.api}/api/v1/runs/{run.name}", headers={"Authorization": f"Bearer {stack.api_key}"}
    )
    urllib.request.urlopen(asked, timeout=5).close()
    return before, scrape(stack)


def test_every_metric_that_is_named_is_there(samples: tuple[Samples, Samples]) -> None:
    shown = named(target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", []))
    alerted = named(rule["expr"] for rule in ALERTS["groups"][0]["rules"])
    told = {name for name in named([GUIDE]) if not name.endswith("_")}
    assert len(shown) > 40
    assert (shown | alerted | told) - samples[1].keys() == set()


def test_a_run_shows_in_the_figures(samples: tuple[Samples, Samples]) -> None:
    before, after = samples

    def rose(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    assert rose("benchgen_scorer_results_total", outcome="ok") == 30
    assert rose("benchgen_runner_calls_total", model="builtin/simulated", result="answered") == 30
    assert rose("benchgen_runner_call_seconds_count") == 30
    assert rose("benchgen_scorer_calls_total") == 30
    assert rose("benchgen_scorer_transaction_rows_sum") == 30
    assert rose("benchgen_scorer_rejections_total") == 0
    assert rose("benchgen_hub_runs_created_total") == 1
    assert rose("benchgen_hub_runs_ended_total", state="SUCCEEDED") == 1
    assert (
        rose("benchgen_hub_leases_total", kind="new")
        == rose("benchgen_hub_lease_ends_total", how="done")
        >= 1
    )
    assert rose("benchgen_scorer_report_seconds_count") == 1


def test_the_gauges_say_how_things_stand(samples: tuple[Samples, Samples]) -> None:
    _, after = samples
    assert total(after, "benchgen_hub_runners") == 2
    assert total(after, "benchgen_hub_runs", state="RUNNING") == 0
    assert total(after, "benchgen_hub_wanted_shards") == 0
    assert total(after, "benchgen_hub_budget_usd") == 0
    assert total(after, "benchgen_runner_results_unstored") == 0
    assert {labels["service"] for labels, _ in after["benchgen_build_info"]} == {
        "hub",
        "scorer",
        "gateway",
        "runner",
    }


async def test_what_has_ended_is_not_read_again_at_every_scrape(database: Callable[..., Database]) -> None:
    queries = load_queries(DEPLOY.parent / "services" / "hub" / "measures.sql")
    async with db.pool(database().dsn("hub"), MIGRATIONS) as pool, pool.acquire() as connection:
        await connection.execute(
            "INSERT INTO runs (id, request_id, request, key_id, environment, environment_name, model, subject_kind,"
            " pool, cap, state, priority, spec, trials, planned, shards, shards_open)"
            " SELECT 'r' || n, gen_random_uuid(), '', 'k', 'e@1', 'e', 'm', 'endpoint', 'm', 4,"
            " CASE WHEN n < 3 THEN 'RUNNING' ELSE 'SUCCEEDED' END, 0, '', 1, 50, 50, CASE WHEN n < 3 THEN 50 ELSE 0 END"
            " FROM generate_series(1, 1000) AS n"
        )
        await connection.execute(
            "INSERT INTO shards (run_id, number, pool, first, count, state)"
            " SELECT id, n, 'm', n, 1,"
            " CASE WHEN shards_open = 0 THEN 'DONE' WHEN n < 9 THEN 'RUNNING' ELSE 'PENDING' END"
            " FROM runs, generate_series(0, 49) AS n"
        )
        await connection.execute("ANALYZE runs, shards")
        for name in ("pools", "runs", "budgets"):
            plan = "\n".join(row[0] for row in await connection.fetch("EXPLAIN " + queries[name]))
            assert "Seq Scan on shards" not in plan, plan
            assert "Seq Scan on runs" not in plan, plan
        (row,) = await connection.fetch(queries["pools"])
        assert (row["open"], row["running"], row["pending"], row["cap"]) == (100, 18, 82, 4)

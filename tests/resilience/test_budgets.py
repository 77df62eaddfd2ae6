"""A cost budget with several runners and slow calls, counted where it is paid: at the model."""

from __future__ import annotations

import hashlib
import time
import uuid

from benchgen.eval.v1 import model_pb2, model_pb2_grpc, run_pb2, run_pb2_grpc
from tests.resilience.cluster import ENVIRONMENT, SOON, Cluster
from tests.resilience.model_server import Trial, refused_case

CAP = 8
CASES = 200
MICRO = 10**6
#: About 60 calls at what they cost, and 10 at what they could.
BUDGET = 1800 * MICRO
#: A call's request has fewer bytes than this, and its reply at most 64 tokens.
WORST_CALL = (450 + 64) * MICRO


def price(trial: Trial) -> int:
    """What the model says that a call used, at a micro-dollar a token."""
    if refused_case(trial.case):
        return 0
    draw = hashlib.sha256(f"{trial.case}:{trial.seed}".encode()).digest()
    return (15 + draw[2] % 16 + draw[3] % 16) * MICRO


def paid(cluster: Cluster) -> int:
    return sum(times * price(trial) for trial, times in cluster.model.counts.asked.items())


def started(cluster: Cluster) -> str:
    name = f"priced-{uuid.uuid4().hex[:8]}"
    model = model_pb2.Model(
        name=name,
        base_url=cluster.model.url,
        model_id="m",
        api=model_pb2.Model.API_OPENAI_CHAT,
        max_concurrency=CAP,
        price=model_pb2.Price(input_usd_per_mtok="1", output_usd_per_mtok="1"),
    )
    cluster.call(
        lambda channel: model_pb2_grpc.ModelServiceStub(channel).CreateModel,
        model_pb2.CreateModelRequest(request_id=str(uuid.uuid4()), model=model),
    )
    request = run_pb2.CreateRunRequest(
        request_id=str(uuid.uuid4()),
        environment=ENVIRONMENT,
        model=name,
        selection=run_pb2.Selection(limit=CASES),
        budget=run_pb2.Budget(cost_picousd=BUDGET),
    )
    run: run_pb2.Run = cluster.call(lambda channel: run_pb2_grpc.RunServiceStub(channel).CreateRun, request)
    return run.name


def until_paused(cluster: Cluster, run: str) -> run_pb2.Run:
    cluster.until(
        lambda: cluster.get(run).state == run_pb2.Run.STATE_PAUSED, "the end of the budget", within=SOON
    )
    return cluster.get(run)


def resume(cluster: Cluster, run: str, budget: int) -> None:
    request = run_pb2.ResumeRunRequest(name=run, budget=run_pb2.Budget(cost_picousd=budget))
    cluster.call(lambda channel: run_pb2_grpc.RunServiceStub(channel).ResumeRun, request)


def test_a_budget_is_never_passed_and_more_of_it_ends_the_run(cluster: Cluster) -> None:
    cluster.model.reset()
    cluster.model.latency = 0.2
    run = started(cluster)
    paused = until_paused(cluster, run)
    assert paused.state_message.startswith("budget: $0.00")
    assert BUDGET - WORST_CALL < paid(cluster) <= BUDGET
    assert paused.budget.used.cost_picousd == paid(cluster), "what the hub counts is what was paid"
    assert paused.progress.cost_picousd == paid(cluster), "all of it was for results that are stored"
    asked = sum(cluster.model.counts.asked.values())
    time.sleep(1.0)
    assert sum(cluster.model.counts.asked.values()) == asked
    resume(cluster, run, 100 * BUDGET)
    ended = cluster.until_ended(run)
    assert ended.progress.recorded == CASES
    assert ended.progress.faults == CASES // 100
    assert cluster.model.counts.repeated == 0
    assert ended.budget.used.cost_picousd == ended.progress.cost_picousd == paid(cluster)


def test_runners_and_hubs_that_die_let_it_pass_by_their_calls_in_flight_at_most(cluster: Cluster) -> None:
    cluster.model.reset()
    cluster.model.latency = 0.2
    run = started(cluster)
    cluster.until_recorded(run, 15)
    runner, hub = cluster.of_kind("runner")[0], cluster.of_kind("hub")[0]
    runner.kill()
    hub.kill()
    for node in (hub, runner):
        node.start()
    paused = until_paused(cluster, run)
    assert paid(cluster) <= BUDGET + CAP * WORST_CALL
    # What was recorded is counted, no more and no less than once; what the dead one held is there again.
    assert paused.budget.used.cost_picousd >= paused.progress.cost_picousd
    assert paused.budget.used.cost_picousd <= BUDGET
    assert paused.budget.used.cost_picousd > BUDGET - WORST_CALL
    held = cluster.query("SELECT count(*) AS n FROM hub.grants WHERE run_id = $1 AND state = 'LOST'", run)
    assert held[0]["n"] == 0

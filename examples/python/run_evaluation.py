"""Run an evaluation with the generated stubs alone: create a run, watch it, read its report."""

import os
import sys
import uuid

import grpc

from benchgen.eval.v1 import result_pb2, result_pb2_grpc, run_pb2, run_pb2_grpc


def main(environment: str, model: str) -> None:
    key = (("authorization", f"Bearer {os.environ['BENCHGEN_API_KEY']}"),)
    request = run_pb2.CreateRunRequest(
        request_id=str(uuid.uuid4()),  # the same id again would answer with the same run
        environment=environment,
        model=model,
        selection=run_pb2.Selection(limit=20),
    )
    with grpc.insecure_channel(os.environ["BENCHGEN_SERVER"]) as channel:
        runs = run_pb2_grpc.RunServiceStub(channel)
        name = runs.CreateRun(request, metadata=key).name
        for run in runs.WatchRun(run_pb2.WatchRunRequest(name=name), metadata=key):
            state = run_pb2.Run.State.Name(run.state).removeprefix("STATE_").lower()
            print(f"{name} {state} {run.progress.recorded}/{run.spec.planned}")
        results = result_pb2_grpc.ResultServiceStub(channel)
        report = results.GetReport(result_pb2.GetReportRequest(run=name), metadata=key)
    metric = report.metrics[report.primary_rule]
    low, high = metric.ci95
    print(f"{report.primary_rule}: {metric.mean:.3f} (95 % interval {low:.3f} to {high:.3f}, n = {metric.n})")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} ENVIRONMENT MODEL, such as gsm8k-mini builtin/simulated")
    main(*sys.argv[1:])

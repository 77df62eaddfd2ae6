"""The JSON that BenchGen shows to the world, made from the messages of its contracts.

The command line (`--json`) and the HTTP API share these shapes. What is not known is `null`, never 0 or an
empty text; integers are numbers; times are RFC 3339 in UTC; money is US dollars. Fields may be added; none
changes its name or meaning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from benchgen.eval.v1 import environment_pb2, key_pb2, model_pb2, result_pb2, run_pb2

Json = dict[str, Any]

PICOUSD = 1_000_000_000_000
"""How many of the contracts' smallest unit of money are one US dollar."""

_MAX_CONCURRENCY_DEFAULT = 64


def _optional(message: Any, field: str) -> Any:
    """The field's value, or None where it is not set."""
    return getattr(message, field) if message.HasField(field) else None


def _time(moment: Timestamp, is_set: bool) -> str | None:
    return moment.ToJsonString() if is_set else None


def state_name(state: run_pb2.Run.State.ValueType) -> str:
    """A run's state as JSON and people see it, such as `succeeded`."""
    return run_pb2.Run.State.Name(state).removeprefix("STATE_").lower()


def outcome_name(outcome: result_pb2.Outcome.ValueType) -> str:
    """An outcome as JSON and people see it, such as `provider_error`."""
    return result_pb2.Outcome.Name(outcome).removeprefix("OUTCOME_").lower()


def category_name(category: environment_pb2.Category.ValueType) -> str | None:
    """A category as manifests write it, such as `tool-use`; None when not stated."""
    if category == environment_pb2.CATEGORY_UNSPECIFIED:
        return None
    return environment_pb2.Category.Name(category).removeprefix("CATEGORY_").lower().replace("_", "-")


def subject_name(spec: run_pb2.RunSpec) -> str:
    """Who answers in a run: the model's name, or the label of the predictions."""
    match spec.subject.WhichOneof("kind"):
        case "predictions":
            return spec.subject.predictions.label
        case "submission":
            return spec.subject.submission.label or spec.subject.submission.digest[:12]
        case _:
            return spec.subject.model.name


def cost_usd(progress: run_pb2.RunProgress) -> float | None:
    """What a run's calls cost so far; None when the cost of any of them is unknown."""
    return None if progress.calls_of_unknown_cost else progress.cost_picousd / PICOUSD


# --- environments --------------------------------------------------------------------------------


def environment_json(environment: environment_pb2.Environment) -> Json:
    """One environment, with what its latest version says."""
    return {
        "name": environment.name,
        "latest_version": environment.latest_version or None,
        "title": environment.title,
        "description": environment.description,
        "category": category_name(environment.category),
        "tags": list(environment.tags),
        "cases": environment.cases,
        "created_at": _time(environment.create_time, environment.HasField("create_time")),
        "updated_at": _time(environment.update_time, environment.HasField("update_time")),
    }


def version_json(version: environment_pb2.EnvironmentVersion) -> Json:
    """One version of an environment, with the digests that say what is comparable with it.

    `scoring` and `manifest_yaml` are null without the scope `answers`: they can hold answers, word for word.
    """
    return {
        "name": version.name,
        "environment": version.environment,
        "version": version.version,
        "title": version.title,
        "description": version.description,
        "category": category_name(version.category),
        "tags": list(version.tags),
        "license": version.license or None,
        "cases": version.cases,
        "split": version.split or None,
        "digest": version.digest,
        "inputs_digest": version.inputs_digest,
        "targets_digest": version.targets_digest,
        "solutions_digest": version.solutions_digest or None,
        "scoring_digest": version.scoring_digest,
        "scoring": json.loads(version.scoring_json) if version.scoring_json else None,
        "primary_rule": version.primary_rule,
        "materialiser": version.materialiser,
        "generation": generation_json(version.generation),
        "verification": _verification_json(version.verification)
        if version.HasField("verification")
        else None,
        "yanked": version.yanked,
        "created_at": _time(version.create_time, version.HasField("create_time")),
        "manifest_yaml": version.manifest_yaml or None,
        "competition": json.loads(version.competition_json) if version.competition_json else None,
    }


def publication_json(publication: environment_pb2.Publication) -> Json:
    """One upload on its way to being a version."""
    state = environment_pb2.Publication.State.Name(publication.state)
    return {
        "publication": publication.name,
        "state": state.removeprefix("STATE_").lower(),
        "environment_version": publication.environment_version or None,
        "digest": publication.digest or None,
        "already_published": publication.already_published,
        "cases": publication.cases or None,
        "verification": _verification_json(publication.verification)
        if publication.HasField("verification")
        else None,
        "problems": [problem_json(problem) for problem in publication.problems],
        "created_at": _time(publication.create_time, publication.HasField("create_time")),
    }


def problem_json(problem: environment_pb2.Problem) -> Json:
    """One thing that is wrong with a bundle."""
    return {
        "file": problem.file,
        "line": problem.line or None,
        "field": problem.field or None,
        "message": problem.message,
    }


def _verification_json(verification: environment_pb2.Verification) -> Json:
    state = environment_pb2.Verification.State.Name(verification.state)
    return {
        "state": state.removeprefix("STATE_").lower(),
        "cases": verification.cases,
        "oracle_mean": _optional(verification, "oracle_mean"),
        "empty_mean": _optional(verification, "empty_mean"),
        "message": verification.message or None,
        "solutions": [
            {
                "solution": one.solution,
                "case_id": one.case_id,
                "scores": dict(one.scores),
                "error": one.error or None,
            }
            for one in verification.solutions
        ],
    }


def generation_json(generation: environment_pb2.Generation) -> Json:
    """How a model is asked; what is null is left to the endpoint."""
    return {
        "temperature": _optional(generation, "temperature"),
        "top_p": _optional(generation, "top_p"),
        "max_tokens": _optional(generation, "max_tokens"),
        "stop": list(generation.stop),
        "extra": json.loads(generation.extra_json) if generation.extra_json else {},
    }


# --- models and runs -----------------------------------------------------------------------------


def model_json(model: model_pb2.Model) -> Json:
    """One model. Prices stay decimal texts, so that no digit is lost."""
    return {
        "name": model.name,
        "base_url": model.base_url or None,
        "model": model.model_id or None,
        "builtin": model.builtin,
        "description": model.description,
        "has_secret": model.has_secret,
        "price_usd_per_mtok": {
            "input": model.price.input_usd_per_mtok or None,
            "output": model.price.output_usd_per_mtok or None,
            "cached": model.price.cached_usd_per_mtok or None,
        },
        "max_concurrency": model.max_concurrency or _MAX_CONCURRENCY_DEFAULT,
        "generation": generation_json(model.generation),
        "created_at": _time(model.create_time, model.HasField("create_time")),
    }


def model_test_json(answer: model_pb2.TestModelResponse) -> Json:
    """What came back from one tiny call."""
    return {
        "ok": answer.ok,
        "response": answer.response if answer.ok else None,
        "error": answer.error or None,
        "http_status": answer.http_status or None,
        "latency_ms": answer.latency_ms,
        "reported_model": answer.reported_model or None,
        "tokens": _tokens(_optional(answer, "input_tokens"), _optional(answer, "output_tokens")),
    }


def run_actions(run: run_pb2.Run) -> list[str]:
    """What can be done with a run as it stands: `pause`, `resume`, `cancel`, `delete`."""
    states = run_pb2.Run
    match run.state:
        case states.STATE_QUEUED | states.STATE_RUNNING:
            return ["pause", "cancel"]
        case states.STATE_PAUSED:
            return ["resume", "cancel"]
        case states.STATE_SCORING:
            return ["cancel"]
        case states.STATE_SUCCEEDED | states.STATE_FAILED | states.STATE_CANCELLED:
            return [*(["resume"] if missing_trials(run) else []), "delete"]
    return []


def missing_trials(run: run_pb2.Run) -> int:
    """How many trials have no final result."""
    return max(0, run.spec.planned - run.progress.recorded + run.progress.faults)


def run_json(run: run_pb2.Run) -> Json:
    """One run: what it is, where it stands and how far it is."""
    spec = run.spec
    return {
        "run": run.name,
        "state": state_name(run.state),
        "state_message": run.state_message or None,
        "actions": run_actions(run),
        "environment": spec.environment,
        "digest": spec.digest,
        "model": subject_name(spec),
        "simulated": spec.simulated,
        "cases": spec.cases,
        "trials": spec.trials,
        "planned": spec.planned,
        "seed": spec.seed,
        "selection": {
            "limit": spec.selection.limit or None,
            "sample": spec.selection.sample or None,
            "phase": spec.selection.phase or None,
        },
        "generation": generation_json(spec.generation),
        "primary_rule": spec.primary_rule,
        "priority": run.priority,
        "cache": spec.use_cache,
        "budget": budget_json(run.budget) if run.HasField("budget") else None,
        "progress": _progress_json(run.progress),
        "created_at": _time(run.create_time, run.HasField("create_time")),
        "started_at": _time(run.start_time, run.HasField("start_time")),
        "ended_at": _time(run.end_time, run.HasField("end_time")),
    }


def budget_json(budget: run_pb2.Budget) -> Json:
    """What a run may spend, null where that is not limited, and how much of it is used."""
    used = budget.used
    return {
        "cost_usd": budget.cost_picousd / PICOUSD if budget.HasField("cost_picousd") else None,
        "tokens": _optional(budget, "tokens"),
        "seconds": budget.time.ToTimedelta().total_seconds() if budget.HasField("time") else None,
        "errors": _optional(budget, "errors"),
        "used": {
            "cost_usd": used.cost_picousd / PICOUSD,
            "tokens": used.tokens,
            "seconds": used.time.ToTimedelta().total_seconds(),
            "errors": used.errors,
            "reserved_usd": used.reserved_picousd / PICOUSD,
            "reserved_tokens": used.reserved_tokens,
        },
    }


def estimate_json(estimate: run_pb2.RunEstimate) -> Json:
    """What a run would take; null is not known."""
    cost = _optional(estimate, "most_cost_picousd")
    return {
        "environment": estimate.environment,
        "planned": estimate.planned,
        "calls": estimate.calls,
        "input_tokens": _optional(estimate, "input_tokens"),
        "most_input_tokens": _optional(estimate, "most_input_tokens"),
        "most_output_tokens": _optional(estimate, "most_output_tokens"),
        "most_cost_usd": None if cost is None else cost / PICOUSD,
        "unknown": list(estimate.unknown),
    }


def _progress_json(progress: run_pb2.RunProgress) -> Json:
    return {
        "planned": progress.planned,
        "recorded": progress.recorded,
        "scored": progress.scored,
        "passed": progress.passed,
        "faults": progress.faults,
        "calls": progress.calls,
        "tokens": {"input": progress.input_tokens, "output": progress.output_tokens},
        "cost_usd": cost_usd(progress),
        "calls_of_unknown_cost": progress.calls_of_unknown_cost,
        "cache_hits": progress.cache_hits,
        "shards": progress.shards,
        "shards_done": progress.shards_done,
    }


def key_json(key: key_pb2.ApiKey) -> Json:
    """An API key, without its secret; `daily_budget` is what all its runs may spend a day (UTC)."""
    daily = key.daily_budget
    return {
        "key": key.name,
        "name": key.display_name,
        "scopes": list(key.scopes),
        "daily_budget": {
            "cost_usd": daily.cost_picousd / PICOUSD if daily.HasField("cost_picousd") else None,
            "tokens": _optional(daily, "tokens"),
        },
        "created_at": _time(key.create_time, key.HasField("create_time")),
        "expires_at": _time(key.expire_time, key.HasField("expire_time")),
        "revoked_at": _time(key.revoke_time, key.HasField("revoke_time")),
        "last_used_at": _time(key.last_use_time, key.HasField("last_use_time")),
    }


def new_key_json(made: key_pb2.CreateKeyResponse) -> Json:
    """A key that was made, with its secret."""
    return key_json(made.key) | {"secret": made.secret}


# --- results and reports -------------------------------------------------------------------------


def result_json(result: result_pb2.Result) -> Json:
    """What one trial produced, with its scores.

    Without the scope `answers` `target` is null and explanations are empty; so are, for `builtin/oracle` and
    `builtin/simulated`, response, reasoning and answers.
    """
    picousd = _optional(result, "cost_picousd")
    return {
        "run": result.run,
        "case_id": result.case_id,
        "position": result.position,
        "trial": result.trial,
        "attempt": result.attempt,
        "outcome": outcome_name(result.outcome),
        "input": [{"role": message.role, "content": message.content} for message in result.input],
        "response": result.response,
        "reasoning": result.reasoning or None,
        "target": json.loads(result.target_json) if result.target_json else None,
        "scores": {score.rule: _score_json(score) for score in result.scores},
        "latency_ms": _optional(result, "latency_ms"),
        "tokens": usage_json(result.usage) if result.HasField("usage") else None,
        "cost_usd": None if picousd is None else picousd / PICOUSD,
        "cached": result.cached,
        "saved_tokens": usage_json(result.saved_usage) if result.HasField("saved_usage") else None,
        "error": result.error or None,
        "finish_reason": result.finish_reason or None,
        "failed_calls": [_failed_call_json(call) for call in result.failed_calls],
        "reported_model": result.reported_model or None,
        "payload": {"digest": result.payload.digest, "bytes": result.payload.size_bytes}
        if result.HasField("payload")
        else None,
        "recorded_at": _time(result.record_time, result.HasField("record_time")),
        "calls": result.calls,
        "program": _program_json(result.program) if result.HasField("program") else None,
    }


def call_json(call: result_pb2.ModelCall) -> Json:
    """One model call that a program made.

    Without the scope `answers` request and answer are null for `builtin/simulated`.
    """
    picousd = _optional(call, "cost_picousd")
    return {
        "number": call.number,
        "attempt": call.attempt,
        "endpoint": call.endpoint,
        "request": json.loads(call.request_json) if call.request_json else None,
        "answer": json.loads(call.answer_json) if call.answer_json else None,
        "error": call.error or None,
        "latency_ms": _optional(call, "latency_ms"),
        "tokens": usage_json(call.usage) if call.HasField("usage") else None,
        "cost_usd": None if picousd is None else picousd / PICOUSD,
        "tries": call.calls,
        "failed_calls": [_failed_call_json(failed) for failed in call.failed_calls],
        "reported_model": call.reported_model or None,
        "request_digest": call.request_digest,
        "answered_by": call.answered_by or None,
        "started_at": _time(call.start_time, call.HasField("start_time")),
        "recorded_at": _time(call.record_time, call.HasField("record_time")),
    }


def call_messages(request: Json) -> list[tuple[str, str]]:
    """Who said what in a request of a program: roles and texts."""
    if "prompt" in request:
        prompt = request["prompt"]
        return [("prompt", prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False))]
    messages = request.get("messages")
    said = []
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, dict):
            said.append((str(message.get("role", "")), _said(message)))
    return said


def call_answer(answer: Json) -> str:
    """What a model said in the answer to a program."""
    choice = answer["choices"][0]
    return str(choice["text"]) if "text" in choice else _said(choice["message"])


def _said(message: Json) -> str:
    content, calls = message.get("content"), message.get("tool_calls")
    said = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False) if content else ""
    if calls:
        said = f"{said} {json.dumps(calls, ensure_ascii=False)}".lstrip()
    return said


def program_end(program: result_pb2.ProgramRun) -> str:
    """How a program ended, in words."""
    if program.HasField("exit_code"):
        return f"exit {program.exit_code}"
    if program.HasField("signal"):
        return f"signal {program.signal}"
    return program.ended.replace("_", " ")


def _program_json(program: result_pb2.ProgramRun) -> Json:
    return {
        "ended": program.ended,
        "exit_code": _optional(program, "exit_code"),
        "signal": _optional(program, "signal"),
        "wall_seconds": program.wall_seconds,
        "cpu_seconds": program.cpu_seconds,
        "peak_memory_bytes": _optional(program, "peak_memory_bytes"),
        "stdout": program.stdout,
        "stderr": program.stderr,
        "cut": program.cut,
        "batch": program.batch,
    }


def _score_json(score: result_pb2.Score) -> Json:
    return {
        "value": _optional(score, "value"),
        "passed": _optional(score, "passed"),
        "answer": _optional(score, "answer"),
        "explanation": score.explanation,
        "error": score.error or None,
    }


def _failed_call_json(call: result_pb2.FailedCall) -> Json:
    return {
        "http_status": call.http_status or None,
        "error": call.error,
        "latency_ms": call.latency_ms,
        "tokens": usage_json(call.usage) if call.HasField("usage") else None,
        "wait_ms": call.wait_ms,
    }


def usage_json(usage: result_pb2.Usage) -> Json | None:
    """The tokens of one call; None when nothing was reported."""
    counted = _tokens(_optional(usage, "input_tokens"), _optional(usage, "output_tokens"))
    if counted is None:
        return None
    return counted | {
        "cached": _optional(usage, "cached_tokens"),
        "reasoning": _optional(usage, "reasoning_tokens"),
    }


def _tokens(given: int | None, made: int | None) -> Json | None:
    return None if given is None and made is None else {"input": given, "output": made}


def report_json(report: result_pb2.Report) -> Json:
    """A run's report."""
    return {
        "run": report.run,
        "number": report.number,
        "environment": report.environment,
        "digest": report.digest,
        "model": report.model,
        "state": report.state,
        "simulated": report.simulated,
        "trials": report.trials,
        "coverage": {
            "planned": report.coverage.planned,
            "recorded": report.coverage.recorded,
            "scored": report.coverage.scored,
        },
        "primary_rule": report.primary_rule,
        "metrics": _metrics_json(report.metrics),
        "pass_at_k": {
            rule: {
                str(point.k): {"mean": point.mean, "n": point.n} for point in report.pass_at_k[rule].points
            }
            for rule in sorted(report.pass_at_k)
        },
        "slices": {field: _slices_json(report.slices[field].values) for field in sorted(report.slices)},
        "outcomes": outcomes_json(report.outcomes),
        "latency_ms": {
            "mean": report.latency_ms.mean,
            "p50": report.latency_ms.p50,
            "p95": report.latency_ms.p95,
        }
        if report.HasField("latency_ms")
        else None,
        "tokens": _tokens(_optional(report.tokens, "input"), _optional(report.tokens, "output")),
        "cost_usd": {"total": report.cost_usd.total, "per_case": report.cost_usd.per_case}
        if report.HasField("cost_usd")
        else None,
        "cost_known_cases": report.cost_known_cases,
        "budget": budget_json(report.budget) if report.HasField("budget") else None,
        "calls": report.calls,
        "cache_hits": report.cache_hits,
        "saved_tokens": _tokens(
            _optional(report.saved_tokens, "input"), _optional(report.saved_tokens, "output")
        ),
        "totals_only": report.totals_only,
        "seconds": report.seconds,
    }


def task_json(task: result_pb2.Task) -> Json:
    """How a task of a competition went."""
    return {
        "run": task.run,
        "case_id": task.case_id,
        "trial": task.trial,
        "error": task.error or None,
        "has_details": task.has_details,
        "cases": task.cases,
        "predictions": {"digest": task.predictions.digest, "bytes": task.predictions.size_bytes}
        if task.HasField("predictions")
        else None,
        "programs": [
            {
                "step": program.step,
                "name": program.name,
                "ended": program.ended,
                "exit_code": _optional(program, "exit_code"),
                "seconds": program.seconds,
                "stdout": program.stdout,
                "stderr": program.stderr,
                "cut": program.cut,
            }
            for program in task.programs
        ],
    }


def leaderboard_json(board: result_pb2.Leaderboard) -> Json:
    """The runs of a phase of a competition, the best first."""
    return {
        "columns": list(board.columns),
        "entries": [
            {
                "place": entry.place,
                "run": entry.run,
                "model": entry.label,
                "scores": {column: entry.scores.get(column) for column in board.columns},
                "reported_at": _time(entry.report_time, entry.HasField("report_time")),
            }
            for entry in board.entries
        ],
    }


def outcomes_json(outcomes: Mapping[str, int]) -> dict[str, int]:
    """How many results ended how, in the order of the contract; `ok` is always there."""
    order = [outcome_name(value) for value in result_pb2.Outcome.values()]
    counts = {"ok": 0} | {name: outcomes[name] for name in order if name in outcomes}
    return counts | {name: outcomes[name] for name in sorted(outcomes) if name not in counts}


def _metrics_json(metrics: Mapping[str, result_pb2.Metric]) -> dict[str, Json]:
    return {name: _metric_json(metrics[name]) for name in sorted(metrics)}


def _slices_json(values: Mapping[str, result_pb2.Metric]) -> dict[str, Json]:
    """The primary rule by the values of a field; what trials did is counted for the whole run only."""
    return {
        value: {
            "mean": _optional(values[value], "mean"),
            "ci95": list(values[value].ci95) or None,
            "n": values[value].n,
        }
        for value in sorted(values)
    }


def _metric_json(metric: result_pb2.Metric) -> Json:
    return {
        "mean": _optional(metric, "mean"),
        "stderr": _optional(metric, "stderr"),
        "ci95": list(metric.ci95) or None,
        "n": metric.n,
        "passed": metric.passed,
        "failed": metric.failed,
        "errors": metric.errors,
        "missing": metric.missing,
        "method": metric.method or None,
        "worst": _optional(metric, "worst"),
        "best": _optional(metric, "best"),
    }

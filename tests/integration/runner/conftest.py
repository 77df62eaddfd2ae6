"""A scorer of the runner's tests own, with the environment of the scorer's."""

from __future__ import annotations

from tests.integration.scorer.conftest import buckets, environment, scorer, scorer_dsn

__all__ = ["buckets", "environment", "scorer", "scorer_dsn"]

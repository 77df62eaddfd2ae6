"""A scorer of the runner's tests own, with the environment of the scorer's."""

from __future__ import annotations

from tests.integration.runner.bench import bench
from tests.integration.scorer.conftest import buckets, environment, other, scorer, scorer_dsn

__all__ = ["bench", "buckets", "environment", "other", "scorer", "scorer_dsn"]

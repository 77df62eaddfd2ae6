"""The two steps of a competition, each in a box: making predictions, and scoring them.

The runner makes predictions, the scorer scores, and before a bundle is published the scorer does both with its
solutions. Paths, placeholders and rules are those that bundles rely on: ``docs/competition-yaml.md``.
"""

from services.common.competition.packs import PackStore
from services.common.competition.steps import (
    Prediction,
    Program,
    ProgramLog,
    Scoring,
    StepLimits,
    Steps,
    Work,
)

__all__ = ["PackStore", "Prediction", "Program", "ProgramLog", "Scoring", "StepLimits", "Steps", "Work"]

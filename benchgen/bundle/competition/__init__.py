"""``competition.yaml`` bundles: the format that Codabench and CodaLab share, in all its dialects.

``read_competition`` gives one model for versions 2, 1.5 and 1.8, or all problems; ``Nested`` opens the programs
and data that it names; ``read_scores`` and ``rank`` do with scores what a leaderboard promises.
"""

from __future__ import annotations

from benchgen.bundle.competition.model import COMPETITION_FILE, Competition, Dialect
from benchgen.bundle.competition.nested import Nested
from benchgen.bundle.competition.parse import ReadCompetition, is_competition, read_competition
from benchgen.bundle.competition.ranking import Entry, Ranked, rank
from benchgen.bundle.competition.scores import Scores, ScoresUnreadableError, read_scores

__all__ = [
    "COMPETITION_FILE",
    "Competition",
    "Dialect",
    "Entry",
    "Nested",
    "Ranked",
    "ReadCompetition",
    "Scores",
    "ScoresUnreadableError",
    "is_competition",
    "rank",
    "read_competition",
    "read_scores",
]

"""``python -m services.scorer``"""

from __future__ import annotations

import sys

from services.common import process
from services.scorer.app import serve
from services.scorer.config import ScorerSettings

if __name__ == "__main__":
    sys.exit(process.main("scorer", ScorerSettings, serve))

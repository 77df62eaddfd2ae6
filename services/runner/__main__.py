"""``python -m services.runner``"""

from __future__ import annotations

import sys

from services.common import process
from services.runner.app import serve
from services.runner.config import RunnerSettings

if __name__ == "__main__":
    sys.exit(process.main("runner", RunnerSettings, serve))

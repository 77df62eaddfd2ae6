"""``python -m services.hub``"""

from __future__ import annotations

import sys

from services.common import process
from services.hub.app import serve
from services.hub.config import HubSettings

if __name__ == "__main__":
    sys.exit(process.main("hub", HubSettings, serve))

"""``python -m services.gateway``"""

from __future__ import annotations

import sys

from services.common import process
from services.gateway.app import serve
from services.gateway.config import GatewaySettings

if __name__ == "__main__":
    sys.exit(process.main("gateway", GatewaySettings, serve))

"""``python -m services.gateway``: started and stopped as its supervisor does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable

from services.local.credentials import Credentials
from services.local.files import PROGRAM_ROOT
from services.local.ports import free_port
from tests.conftest import Database

COMMAND = [sys.executable, "-m", "services.gateway"]
START_SECONDS = 20.0


def test_settings_that_cannot_be_used_are_named() -> None:
    wrong = {"BENCHGEN_HUB_ADDRESS": "nowhere", "BENCHGEN_BOOTSTRAP_KEY_HASH": "bg_the-key-itself"}
    ended = subprocess.run(
        COMMAND,
        cwd=PROGRAM_ROOT,
        env=os.environ | wrong,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    for name in (
        "HUB_ADDRESS",
        "SCORER_ADDRESS",
        "POSTGRES_DSN",
        "PRINCIPAL_SIGNING_KEY",
        "BOOTSTRAP_KEY_HASH",
    ):
        assert f"BENCHGEN_{name}:" in ended.stderr
    assert "bg_the-key-itself" not in ended.stderr


def test_it_is_ready_alone_and_stops_when_told(
    database: Callable[..., Database], secrets_of_session: Credentials
) -> None:
    health, api, nobody = free_port(), free_port(), free_port()
    environment = os.environ | {
        "BENCHGEN_HTTP_LISTEN": f"127.0.0.1:{health}",
        "BENCHGEN_API_LISTEN": f"127.0.0.1:{api}",
        "BENCHGEN_HUB_ADDRESS": f"127.0.0.1:{nobody}",
        "BENCHGEN_SCORER_ADDRESS": f"127.0.0.1:{nobody}",
        "BENCHGEN_POSTGRES_DSN": database().dsn("gateway"),
        "BENCHGEN_PRINCIPAL_SIGNING_KEY": secrets_of_session.principal_seed,
    }

    def answers(port: int, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    with subprocess.Popen(COMMAND, cwd=PROGRAM_ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + START_SECONDS
        while not answers(health, "/readyz"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert answers(api, "/")
        assert answers(health, "/metrics")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0

"""Runs in a box: starts several programs at once, and writes down how each of them went.

Its own source is sent into the box, so it needs nothing but Python 3. What it writes lies in the box and can be
changed there: it is information, and nothing that anybody trusts.
"""

import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

FOLDER = "/app/logs"


def run_one(program: dict[str, Any], went: dict[str, Any]) -> None:
    """One program: its commands one after the other, until one of them fails."""
    name, began, code = program["name"], time.monotonic(), 0
    out_path, err_path = (os.path.join(FOLDER, f"{name}_{stream}") for stream in ("stdout", "stderr"))
    with open(out_path, "ab", 0) as out, open(err_path, "ab", 0) as err:
        for command in program["commands"]:
            try:
                code = subprocess.call(
                    command, cwd=program["cwd"], stdin=subprocess.DEVNULL, stdout=out, stderr=err
                )
            except OSError as error:
                err.write(f"{command[0]}: {error}\n".encode())
                code = 127
            if code:
                break
    went[name] = {"exit_code": code, "seconds": time.monotonic() - began}
    write(went)


def write(went: dict[str, Any]) -> None:
    """What is known so far: the box may be ended before all programs have."""
    path = os.path.join(FOLDER, "went.json")
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(went, file)
    os.replace(path + ".new", path)


def main() -> None:
    """Start all, wait for all."""
    went: dict[str, Any] = {}
    threads = [threading.Thread(target=run_one, args=(one, went)) for one in json.loads(sys.argv[1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()

"""Seeds of single trials, derived from the seed of the run."""

from __future__ import annotations

import hashlib


def derive_seed(run_seed: int, case_id: str, trial: int) -> int:
    """Return the seed of one trial: 31 bits, never negative, since some servers take a signed 32-bit number.

    The case id comes last, so that no two (run, case, trial) can write the same text.
    """
    digest = hashlib.sha256(f"{run_seed}:{trial}:{case_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFF_FFFF

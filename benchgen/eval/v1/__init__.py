"""Version 1 of the contracts: generated, never edited."""

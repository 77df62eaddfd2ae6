"""Runs: planned into shards, handed out as leases, followed until they end."""

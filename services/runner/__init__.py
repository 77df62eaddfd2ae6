"""The runner owns nothing: it leases shards, executes their trials and streams the results to the scorer."""

"""The runner's parts that need no server."""

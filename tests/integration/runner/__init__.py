"""The runner against real servers."""

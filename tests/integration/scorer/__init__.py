"""The scorer on real servers."""

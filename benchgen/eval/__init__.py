"""The contracts, by version."""

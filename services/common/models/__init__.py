"""Talking to models: endpoints, replies, faults, retries, adaptive concurrency and the built-in subjects."""

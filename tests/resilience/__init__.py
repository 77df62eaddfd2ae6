"""What dies in the middle of a run, and what must not come of it."""

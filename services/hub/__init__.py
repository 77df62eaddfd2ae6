"""The hub: environments, models, runs and the work they need; what should happen, not what did."""

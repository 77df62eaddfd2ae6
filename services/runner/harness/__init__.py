"""How a model is run on one case."""

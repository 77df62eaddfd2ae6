"""BenchGen Eval: measure how well a model does a task."""

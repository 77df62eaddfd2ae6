"""How responses are judged and figures are made: pure functions, nothing here waits or reads a clock."""

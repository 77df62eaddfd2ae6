"""Tests of the model client's pure parts, and of the simulator's."""

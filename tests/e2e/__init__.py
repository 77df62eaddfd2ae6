"""Tests of the whole stack, started as a user starts it."""

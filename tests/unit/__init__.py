"""Tests of pure code: no server, no network."""

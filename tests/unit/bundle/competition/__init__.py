"""Tests of benchgen.bundle.competition."""

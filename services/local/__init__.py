"""The whole of BenchGen Eval on one machine: real servers and services, supervised, in one data directory."""

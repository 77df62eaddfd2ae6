"""The HTTP API: JSON over the same calls that gRPC callers make."""

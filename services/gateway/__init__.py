"""The gateway is where callers enter: it checks API keys, serves HTTP, and passes gRPC through."""

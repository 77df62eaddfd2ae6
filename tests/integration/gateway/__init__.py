"""The gateway on a real database, in front of gRPC servers that a test can steer."""

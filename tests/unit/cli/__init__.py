"""The client library and the command line, against a real gRPC server."""

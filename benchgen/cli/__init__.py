"""The `benchgen` command. Heavy things (gRPC, rich, pydantic) are imported when a command needs them."""

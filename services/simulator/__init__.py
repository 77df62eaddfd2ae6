"""A simulated model: an OpenAI-compatible server with programmable accuracy, latency and faults."""

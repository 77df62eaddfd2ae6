"""The model proxy: the one way from a sandboxed program to a model, in the shape of OpenAI's API."""

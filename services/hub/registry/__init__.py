"""The registry of models: endpoints, their prices and limits, and their secrets, encrypted."""

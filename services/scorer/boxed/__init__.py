"""What runs inside of boxes: nothing here is imported by the scorer, and nothing here imports more than Python has."""

"""Publishing: from an uploaded zip to an immutable version that can be run."""

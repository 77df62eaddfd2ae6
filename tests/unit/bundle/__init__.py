"""The package format: reading, checking, packing, materialising."""

"""The platform: what is deployed. It runs from a clone or an image, never from the wheel."""

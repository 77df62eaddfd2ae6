"""The engines that one machine runs for itself: PostgreSQL, NATS and SeaweedFS, each from its PyPI wheel."""

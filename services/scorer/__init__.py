"""The scorer owns what did happen: it records, judges, aggregates and reports."""

"""The scorer's pure parts."""

"""Competitions at the scorer: scores of tasks, solutions of new versions, logs, detailed results, leaderboards."""

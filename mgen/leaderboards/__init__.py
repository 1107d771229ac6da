"""Leaderboards: models compared on tasks, with what can and cannot be said of their differences."""

"""Leaderboards: their file, their runs, what is read before them and what came of them."""

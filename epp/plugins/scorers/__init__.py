"""Scorers: how well each candidate suits, in [0, 1]."""

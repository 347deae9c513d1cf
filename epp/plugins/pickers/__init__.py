"""Pickers: from totals to the chosen endpoints."""

"""Producers: data of one cycle, computed from core state before any filter runs."""

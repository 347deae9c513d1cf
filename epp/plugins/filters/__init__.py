"""Filters: who may not serve this request."""

"""Reporters: metrics, logs and the decision log, each an observer that the core does not know."""

"""epp: an endpoint picker for fleets of LLM inference servers, driven by Envoy's External Processing."""

from epp import names

__version__ = "0.1.0"

BUILD = "pure Python" if names.__file__.endswith(".py") else "compiled"
"""Which of the two builds this is (setup.py); they differ in speed only."""

"""epp: an endpoint picker for fleets of LLM inference servers, driven by Envoy's External Processing."""

__version__ = "0.1.0"

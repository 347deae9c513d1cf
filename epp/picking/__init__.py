"""Core: picking an endpoint for a request, and the books about requests that are under way."""

from epp.picking.director import Director

__all__ = ["Director"]

"""Core: what an inference request says, as far as routing needs it.

`RequestParsers` turns headers and body bytes into an InferenceRequest; one module per API states what that API
requires. Nothing here changes a byte of the body, knows tokens, or does I/O. Called by the director, once a request.
"""

from epp.requests.parsers import DEFAULT_PARSERS, PARSER_TYPES, RequestParsers

__all__ = ["DEFAULT_PARSERS", "PARSER_TYPES", "RequestParsers"]

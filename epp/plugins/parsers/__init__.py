"""Parsers as a configuration names them; the parsing itself is epp.requests."""

"""Outbound I/O: each source pushes plain events into the core; nothing here decides (docs/architecture.md)."""

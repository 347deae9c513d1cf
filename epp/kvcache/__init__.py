"""Core: which endpoint holds which prefix. Events in, block keys, one index; no I/O, no clock."""

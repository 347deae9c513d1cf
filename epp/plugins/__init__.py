"""Opinions: every plugin type that epp ships, one module each, found through the entry-point group `epp.plugins`.

A module holds a frozen dataclass of parameters, the plugin and a PluginType. Plugins get their collaborators as arguments,
time and randomness from the cycle, and do no I/O.
"""

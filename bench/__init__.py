"""`make bench`: what epp costs a request, beside the Envoy it serves, measured in one run on one machine (bench/README.md).

Imports epp freely; nothing of epp imports this.
"""

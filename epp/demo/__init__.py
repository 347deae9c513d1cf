"""The demo: one chat workload, played through a real Envoy three times, and a picture of the difference.

`command` is the command line; `session` plays every mode on a fresh fleet (`fleet`, `processes`) with `client`; `workload`,
`bound`, `explain` and `figures` are pure; `terminal` and `page` draw. docs/architecture.md has the way of a request.
"""

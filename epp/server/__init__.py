"""The inbound shell: what data planes and probes connect to.

`interfaces` says what it needs of the rest of the process, `conversation` drives one exchange whatever carries it, and
`fast` is the default transport, `grpc_aio` the conservative one.
"""

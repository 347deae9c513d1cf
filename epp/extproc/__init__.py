"""Envoy's side of the conversation, without I/O: the ext_proc exchange as a state table, and the access log's end of it.

`events` are the words, `exchange` the grammar, `codec` their form on the wire, `rejections` the answers of our own and
`access_log` what Envoy tells afterwards. Imports no grpc: a transport feeds bytes and performs what comes back.
"""

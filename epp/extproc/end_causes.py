"""What Envoy's access log says about why an answer ended, in our words: its response flags and details to causes. Pure."""

from typing import Final

from epp._proto import access_log_pb2 as pb
from epp._proto import core_pb2
from epp.domain import EndCause

# Field of ResponseFlags to the short form that Envoy's %RESPONSE_FLAGS% and its documentation use.
FLAGS: Final = {
    "failed_local_healthcheck": "LH",
    "no_healthy_upstream": "UH",
    "upstream_request_timeout": "UT",
    "local_reset": "LR",
    "upstream_remote_reset": "UR",
    "upstream_connection_failure": "UF",
    "upstream_connection_termination": "UC",
    "upstream_overflow": "UO",
    "no_route_found": "NR",
    "delay_injected": "DI",
    "fault_injected": "FI",
    "rate_limited": "RL",
    "rate_limit_service_error": "RLSE",
    "downstream_connection_termination": "DC",
    "upstream_retry_limit_exceeded": "URX",
    "stream_idle_timeout": "SI",
    "invalid_envoy_request_headers": "IH",
    "downstream_protocol_error": "DPE",
    "upstream_max_stream_duration_reached": "UMSDR",
    "response_from_cache_filter": "RFCF",
    "no_filter_config_found": "NFCF",
    "duration_timeout": "DT",
    "upstream_protocol_error": "UPE",
    "no_cluster_found": "NC",
    "overload_manager": "OM",
    "dns_resolution_failure": "DF",
    "downstream_remote_reset": "DR",
}
# No connection to the model server came about.
NOT_CONNECTED: Final = "UF"
# The client's side ended it: connection closed, stream reset, broken HTTP.
CLIENT_FLAGS: Final = frozenset(("DC", "DR", "DPE"))
# The model server, or the way to it, failed. An idle timeout counts here: it takes a server that is silent for minutes.
UPSTREAM_FLAGS: Final = frozenset(("LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "URX", "SI", "UMSDR", "UPE", "NR", "NC", "DF"))


def short_flags(flags: pb.ResponseFlags) -> tuple[str, ...]:
    """The short forms of those that are set."""
    return tuple(FLAGS[field.name] for field, _ in flags.ListFields())


def cause(flags: tuple[str, ...], details: str) -> EndCause:
    """Why the answer ended, from Envoy's flags, or from its details where it set none.

    The client's leaving outranks an upstream failure: then nobody waited for the answer any more.
    """
    if not CLIENT_FLAGS.isdisjoint(flags) or details.startswith("downstream_"):
        return EndCause.CLIENT_GONE
    if not UPSTREAM_FLAGS.isdisjoint(flags) or details.startswith("upstream_reset"):
        return EndCause.UPSTREAM_FAILED
    return EndCause.FINISHED


def host_port(address: core_pb2.SocketAddress) -> str | None:
    """ "ip:port", IPv6 in brackets as in a destination; None where there is none, such as an upstream that was not reached."""
    host = address.address
    if not host:
        return None
    return f"[{host}]:{address.port_value}" if ":" in host else f"{host}:{address.port_value}"

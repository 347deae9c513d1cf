"""The part of a bootstrap that is about epp: how it is asked, found, and told of the end of answers (spec/protocol.md 7.2, 10.1)."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from epp import names
from epp.testing.bootstrap.json_types import HTTP_OPTIONS, TYPE, Json, assignment, breakers

EPP_CLUSTER: Final = "epp"
LOG_NAME: Final = "epp"


class Responses(Enum):
    """How epp learns that an answer has ended."""

    ACCESS_LOG = "access-log"
    """Our default: answers stay out of ext_proc; Envoy streams one log entry a request. epp's death touches no answer."""
    HEADERS = "headers"
    """Only response headers go through ext_proc, and its stream lasts as long as the answer. epp's death cuts answers."""
    FULL_DUPLEX = "full-duplex"
    """What gateways hard-code: every chunk of every answer passes through epp. epp's death cuts answers."""


# Headers, body and trailers of a response, by how the end is learnt.
_RESPONSE_MODES: Final = {
    Responses.ACCESS_LOG: ("SKIP", "NONE", "SKIP"),
    Responses.HEADERS: ("SEND", "NONE", "SEND"),
    Responses.FULL_DUPLEX: ("SEND", "FULL_DUPLEX_STREAMED", "SEND"),
}


@dataclass(frozen=True, slots=True)
class Pickers:
    """The instances of epp behind one Envoy."""

    addresses: tuple[tuple[str, int], ...]
    """Host and port of each."""
    tls: bool = False
    """They serve TLS, with certificates nobody needs to verify."""
    by_name: bool = False
    """Hosts are DNS names rather than IP literals."""


def ext_proc_filter(responses: Responses, request_body: str) -> Json:
    """Ask the picker for every request."""
    headers, body, trailers = _RESPONSE_MODES[responses]
    logged = responses is Responses.ACCESS_LOG
    return {
        "name": "envoy.filters.http.ext_proc",
        "typed_config": {
            "@type": f"{TYPE}.filters.http.ext_proc.v3.ExternalProcessor",
            "grpc_service": {"envoy_grpc": {"cluster_name": EPP_CLUSTER, "authority": "epp"}, "timeout": "10s"},
            # Fail closed: without a picker there is no destination to forward to.
            "failure_mode_allow": False,
            # The picker may wait for tokens or for room in the pool; the client's own deadline ends what takes too long.
            "message_timeout": "1000s",
            "processing_mode": {
                "request_header_mode": "SEND",
                "request_body_mode": request_body,
                "request_trailer_mode": "SEND",  # Envoy demands it with FULL_DUPLEX_STREAMED
                "response_header_mode": headers,
                "response_body_mode": body,
                "response_trailer_mode": trailers,
            },
            "metadata_options": {
                "forwarding_namespaces": {"untyped": [names.DESTINATION_NAMESPACE, names.SUBSET_NAMESPACE]},
                # Ours comes back in the access log and matches an answer to its decision.
                "receiving_namespaces": {"untyped": [names.DESTINATION_NAMESPACE, names.EPP_NAMESPACE]},
            },
            # They find the decision of a client that left before Envoy took the decision's id over.
            **({"request_attributes": list(names.ORIGIN_ATTRIBUTES)} if logged else {}),
        },
    }


def access_logs(pickers: Pickers) -> list[Json]:
    """One logger an instance: each must get every entry, because an entry does not say whose stream it will take."""
    return [_access_log(name) for name, _ in _log_clusters(pickers)]


def picker_clusters(pickers: Pickers, responses: Responses) -> list[Json]:
    """One cluster of all instances, for picking; with several, one of each for its log."""
    clusters = [_cluster(EPP_CLUSTER, pickers.addresses, pickers)]
    if responses is Responses.ACCESS_LOG:
        clusters += [_cluster(name, (address,), pickers) for name, address in _log_clusters(pickers) if name != EPP_CLUSTER]
    return clusters


def _log_clusters(pickers: Pickers) -> list[tuple[str, tuple[str, int]]]:
    if len(pickers.addresses) == 1:
        return [(EPP_CLUSTER, pickers.addresses[0])]
    return [(f"{EPP_CLUSTER}-{number}", address) for number, address in enumerate(pickers.addresses)]


def _access_log(cluster: str) -> Json:
    return {
        "name": "envoy.access_loggers.http_grpc",
        "typed_config": {
            "@type": f"{TYPE}.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
            "common_config": {
                "log_name": LOG_NAME,
                "transport_api_version": "V3",
                "grpc_service": {"envoy_grpc": {"cluster_name": cluster, "authority": "epp"}},
                # At once: an answer that ended but still counts as in flight makes its endpoint look busier than it is.
                "buffer_flush_interval": "0.02s",
                "buffer_size_bytes": 0,
            },
        },
    }


def _cluster(name: str, addresses: tuple[tuple[str, int], ...], pickers: Pickers) -> Json:
    return {
        "name": name,
        "type": "STRICT_DNS" if pickers.by_name else "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "connect_timeout": "5s",
        "circuit_breakers": breakers(),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": HTTP_OPTIONS,
                "explicit_http_config": {
                    "http2_protocol_options": {"initial_stream_window_size": 65536, "initial_connection_window_size": 1048576}
                },
            }
        },
        # A picker that drains says NOT_SERVING: two looks, a second apart, take it out long before its drain ends.
        "health_checks": [
            {
                "timeout": "2s",
                "interval": "1s",
                # Envoy's default looks once a minute until there was traffic, and would send requests to a picker long gone.
                "no_traffic_interval": "1s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "grpc_health_check": {"service_name": names.EXT_PROC_SERVICE},
            }
        ],
        # With no picker that says "ready", asking one all the same beats refusing every request.
        "common_lb_config": {"healthy_panic_threshold": {"value": 1.0 if len(addresses) > 1 else 50.0}},
        "load_assignment": assignment(name, addresses),
        **({"transport_socket": _tls()} if pickers.tls else {}),
    }


def _tls() -> Json:
    """TLS without verification: epp's own certificate is self-signed unless it is given one (spec/protocol.md 5.5, 7.1)."""
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{TYPE}.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {"alpn_protocols": ["h2"], "validation_context": {}},
        },
    }

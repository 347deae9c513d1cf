"""Envoy's configuration with epp as endpoint picker, as plain data: one source for envoy/*.yaml, the demo and the tests.

Pure. `standalone` puts epp beside Envoy and forwards to whatever endpoint it names; `round_robin` is the baseline without a
picker. The routing, the breakers and the windows towards epp are those of the reference bootstraps (spec/protocol.md 7.2). Other
on purpose: connecting gives up after seconds, not hours, so that a dead address is an error somebody sees; health is looked at
every second; headers with underscores pass (`session_id` is one).
"""

from collections.abc import Mapping, Sequence
from enum import Enum

from epp import names

Json = dict[str, object]

_TYPE = "type.googleapis.com/envoy.extensions"
_HCM = f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"
_EXT_PROC = f"{_TYPE}.filters.http.ext_proc.v3.ExternalProcessor"
_ROUTER = f"{_TYPE}.filters.http.router.v3.Router"
_HTTP_GRPC_LOG = f"{_TYPE}.access_loggers.grpc.v3.HttpGrpcAccessLogConfig"
_HTTP_OPTIONS = f"{_TYPE}.upstreams.http.v3.HttpProtocolOptions"

EPP_CLUSTER = "epp"
ENDPOINTS_CLUSTER = "endpoints"
LOG_NAME = "epp"


class Responses(Enum):
    """How epp learns that an answer has ended (spec/protocol.md 10.1)."""

    ACCESS_LOG = "access-log"
    """Our default: responses stay out of ext_proc; Envoy streams one log entry a request. epp's death touches no answer."""
    FULL_DUPLEX = "full-duplex"
    """What gateways hard-code: every chunk of every answer passes through epp, and ends with it."""


def standalone(
    *,
    listener: int,
    admin: int,
    epp: int,
    host: str = "127.0.0.1",
    epp_host: str = "127.0.0.1",
    responses: Responses = Responses.ACCESS_LOG,
    keep_request_id: bool = False,
    tell_endpoint: bool = False,
) -> Json:
    """Envoy in front, epp at `epp_host:epp`, endpoints wherever epp says.

    Ports are TCP ports on `host`; 0 for `listener` and `admin` lets the system choose. `keep_request_id`: a client's x-request-id
    reaches epp and the endpoint unchanged (for tests; at an edge Envoy should make its own). `tell_endpoint`: an answer carries
    the "ip:port" it came from in x-inference-pod, for endpoints that do not say it themselves.
    """
    filters: list[Json] = [_ext_proc_filter(responses), {"name": "envoy.filters.http.router", "typed_config": {"@type": _ROUTER}}]
    access_log = [_access_log()] if responses is Responses.ACCESS_LOG else []
    clusters = [_epp_cluster(epp_host, epp), _original_destination_cluster()]
    return _bootstrap(host, listener, admin, filters, access_log, clusters, keep_request_id=keep_request_id, tell_endpoint=tell_endpoint)


def round_robin(
    *,
    listener: int,
    admin: int,
    endpoints: Sequence[tuple[str, int]],
    host: str = "127.0.0.1",
    keep_request_id: bool = False,
    tell_endpoint: bool = False,
) -> Json:
    """Plain Envoy over a fixed list of (IP literal, port), each in turn: what one has without a picker."""
    filters: list[Json] = [{"name": "envoy.filters.http.router", "typed_config": {"@type": _ROUTER}}]
    cluster: Json = {
        "name": ENDPOINTS_CLUSTER,
        "type": "STATIC",
        "lb_policy": "ROUND_ROBIN",
        "connect_timeout": "10s",
        "circuit_breakers": _breakers(),
        "typed_extension_protocol_options": _upstream_options(),
        "load_assignment": {
            "cluster_name": ENDPOINTS_CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(address, port)}} for address, port in endpoints]}],
        },
    }
    return _bootstrap(host, listener, admin, filters, [], [cluster], keep_request_id=keep_request_id, tell_endpoint=tell_endpoint)


def _bootstrap(
    host: str,
    listener: int,
    admin: int,
    filters: Sequence[Mapping[str, object]],
    access_log: Sequence[Json],
    clusters: Sequence[Json],
    *,
    keep_request_id: bool,
    tell_endpoint: bool,
) -> Json:
    served_by = {"header": {"key": names.INFERENCE_POD, "value": "%UPSTREAM_REMOTE_ADDRESS%"}, "append_action": "ADD_IF_ABSENT"}
    manager: Json = {
        "@type": _HCM,
        "stat_prefix": "inference",
        "codec_type": "AUTO",
        "normalize_path": True,
        "merge_slashes": True,
        # Who talks to this port is a client: its x-forwarded-for and x-request-id are not to be believed.
        "use_remote_address": True,
        "generate_request_id": True,
        "preserve_external_request_id": keep_request_id,
        # A long prompt can wait for minutes in an engine's queue before the first byte of its answer.
        "stream_idle_timeout": "0s",
        "request_timeout": "0s",
        "access_log": list(access_log),
        "http_filters": list(filters),
        "route_config": {
            "name": "inference",
            **({"response_headers_to_add": [served_by]} if tell_endpoint else {}),
            "virtual_hosts": [
                {
                    "name": "inference",
                    "domains": ["*"],
                    "routes": [
                        {"match": {"prefix": "/"}, "route": {"cluster": ENDPOINTS_CLUSTER, "timeout": "86400s", "idle_timeout": "86400s"}}
                    ],
                }
            ],
        },
    }
    return {
        "admin": {"address": _address("127.0.0.1", admin)},
        "static_resources": {
            "listeners": [
                {
                    "name": "inference",
                    "address": _address(host, listener),
                    # Else a second Envoy on this port starts without a word and gets every other connection.
                    "enable_reuse_port": False,
                    # Smaller than Envoy's default of 1 MiB, so that a slow reader of many streams does not fill memory.
                    "per_connection_buffer_limit_bytes": 32768,
                    "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
                }
            ],
            "clusters": list(clusters),
        },
    }


def _ext_proc_filter(responses: Responses) -> Json:
    skip = responses is Responses.ACCESS_LOG
    return {
        "name": "envoy.filters.http.ext_proc",
        "typed_config": {
            "@type": _EXT_PROC,
            "grpc_service": {"envoy_grpc": {"cluster_name": EPP_CLUSTER, "authority": "epp"}, "timeout": "10s"},
            # Fail closed: without a picker there is no destination to forward to.
            "failure_mode_allow": False,
            # The picker may wait for tokens or for room in the pool; the client's own deadline ends what takes too long.
            "message_timeout": "1000s",
            "processing_mode": {
                "request_header_mode": "SEND",
                "request_body_mode": "FULL_DUPLEX_STREAMED",
                "request_trailer_mode": "SEND",  # Envoy demands it with FULL_DUPLEX_STREAMED
                "response_header_mode": "SKIP" if skip else "SEND",
                "response_body_mode": "NONE" if skip else "FULL_DUPLEX_STREAMED",
                "response_trailer_mode": "SKIP" if skip else "SEND",
            },
            "metadata_options": {
                "forwarding_namespaces": {"untyped": [names.DESTINATION_NAMESPACE, names.SUBSET_NAMESPACE]},
                # Ours comes back in the access log and matches an answer to its decision.
                "receiving_namespaces": {"untyped": [names.DESTINATION_NAMESPACE, names.EPP_NAMESPACE]},
            },
        },
    }


def _access_log() -> Json:
    return {
        "name": "envoy.access_loggers.http_grpc",
        "typed_config": {
            "@type": _HTTP_GRPC_LOG,
            "common_config": {
                "log_name": LOG_NAME,
                "transport_api_version": "V3",
                "grpc_service": {"envoy_grpc": {"cluster_name": EPP_CLUSTER, "authority": "epp"}},
                # At once: an answer that ended but still counts as in flight makes its endpoint look busier than it is.
                "buffer_flush_interval": "0.02s",
                "buffer_size_bytes": 0,
            },
        },
    }


def _epp_cluster(host: str, port: int) -> Json:
    return {
        "name": EPP_CLUSTER,
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "connect_timeout": "5s",
        "circuit_breakers": _breakers(),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _HTTP_OPTIONS,
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
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "grpc_health_check": {"service_name": names.EXT_PROC_SERVICE},
            }
        ],
        # With one picker, asking it although it says "not ready" beats refusing every request.
        "common_lb_config": {"healthy_panic_threshold": {"value": 50.0}},
        "load_assignment": {
            "cluster_name": EPP_CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(host, port)}}]}],
        },
    }


def _original_destination_cluster() -> Json:
    return {
        "name": ENDPOINTS_CLUSTER,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
        "circuit_breakers": _breakers(),
        "typed_extension_protocol_options": _upstream_options(),
        "original_dst_lb_config": {"use_http_header": True, "http_header_name": names.DESTINATION_ENDPOINT},
    }


def _upstream_options() -> Json:
    """vLLM's server closes a connection that was idle for 5 s; a request sent at that moment would fail, so Envoy lets go first."""
    options = {
        "@type": _HTTP_OPTIONS,
        "common_http_protocol_options": {"idle_timeout": "4s"},
        "explicit_http_config": {"http_protocol_options": {}},
    }
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}


def _breakers() -> Json:
    """No limit that a busy fleet would meet: how much an endpoint gets is the picker's business."""
    limits = {"max_connections": 40000, "max_pending_requests": 40000, "max_requests": 40000, "max_retries": 1024}
    return {"thresholds": [{"priority": "DEFAULT", **limits}]}


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}

"""The part of a bootstrap that is about clients, and the frame around all parts.

Routing, windows and limits are those of the reference bootstraps (spec/protocol.md 7.2, spec/deploy.md 3.7). Other on
purpose: connecting gives up after seconds, not hours, so that a dead address is an error somebody sees; health is looked
at every second; headers with underscores pass (`session_id` is one).
"""

from collections.abc import Sequence
from typing import Final

from epp import names
from epp.testing.bootstrap.json_types import TYPE, Json, address, assignment
from epp.testing.bootstrap.upstream import ENDPOINTS_CLUSTER

_MANAGER: Final = f"{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ADMIN_CLUSTER: Final = "envoy-admin"


def assemble(
    *,
    host: str,
    listener: int,
    admin: int,
    filters: Sequence[Json],
    access_log: Sequence[Json],
    clusters: Sequence[Json],
    extra_listeners: Sequence[Json],
    keep_request_id: bool,
    tell_endpoint: bool,
) -> Json:
    """The whole bootstrap."""
    manager: Json = {
        "@type": _MANAGER,
        "stat_prefix": "inference",
        "codec_type": "AUTO",
        "http2_protocol_options": {
            "max_concurrent_streams": 1024, "initial_stream_window_size": 65536, "initial_connection_window_size": 1048576,
        },
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        # Who talks to this port is a client: its x-forwarded-for and x-request-id are not to be believed.
        "use_remote_address": True,
        "generate_request_id": True,
        "preserve_external_request_id": keep_request_id,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        # A long prompt can wait for minutes in an engine's queue before the first byte of its answer.
        "stream_idle_timeout": "0s",
        "request_timeout": "0s",
        "access_log": list(access_log),
        "http_filters": [*filters, _router()],
        "route_config": _routes(tell_endpoint=tell_endpoint),
    }  # fmt: skip
    return {
        "node": {"id": "envoy", "cluster": "epp"},
        "admin": {"address": address("127.0.0.1", admin)},
        "static_resources": {
            "listeners": [_listener("inference", host, listener, manager), *extra_listeners],
            "clusters": list(clusters),
        },
    }


def ready_listener(host: str, port: int) -> Json:
    """/ready for probes and /stats/prometheus for Prometheus, on a port of their own."""
    manager: Json = {
        "@type": _MANAGER,
        "stat_prefix": "ready",
        "http_filters": [
            {
                "name": "envoy.filters.http.health_check",
                "typed_config": {
                    "@type": f"{TYPE}.filters.http.health_check.v3.HealthCheck",
                    "pass_through_mode": False,
                    "headers": [{"name": ":path", "string_match": {"exact": "/ready"}}],
                },
            },
            _router(),
        ],
        "route_config": {
            "name": "ready",
            "virtual_hosts": [
                {
                    "name": "ready",
                    "domains": ["*"],
                    "routes": [{"match": {"path": "/stats/prometheus"}, "route": {"cluster": _ADMIN_CLUSTER}}],
                }
            ],
        },
    }
    return _listener("ready", host, port, manager)


def admin_cluster(admin: int) -> Json:
    """Envoy's own admin interface, for /stats/prometheus."""
    return {
        "name": _ADMIN_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": assignment(_ADMIN_CLUSTER, (("127.0.0.1", admin),)),
    }


def _listener(name: str, host: str, port: int, manager: Json) -> Json:
    return {
        "name": name,
        "address": address(host, port),
        # Else a second Envoy on this port starts without a word and gets every other connection.
        "enable_reuse_port": False,
        # Smaller than Envoy's default of 1 MiB, so that a slow reader of many streams does not fill memory.
        "per_connection_buffer_limit_bytes": 32768,
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    }


def _router() -> Json:
    return {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{TYPE}.filters.http.router.v3.Router", "suppress_envoy_headers": True},
    }


def _routes(*, tell_endpoint: bool) -> Json:
    served_by = {"header": {"key": names.INFERENCE_POD, "value": "%UPSTREAM_REMOTE_ADDRESS%"}, "append_action": "ADD_IF_ABSENT"}
    # No retries: with one Envoy 1.40 sends a body that ends with trailers twice to the first endpoint already.
    route: Json = {"cluster": ENDPOINTS_CLUSTER, "timeout": "86400s", "idle_timeout": "86400s"}
    return {
        "name": "inference",
        **({"response_headers_to_add": [served_by]} if tell_endpoint else {}),
        "virtual_hosts": [{"name": "inference", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}],
    }

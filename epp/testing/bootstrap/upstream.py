"""The part of a bootstrap that is about model servers: how the picker's word becomes a connection (spec/protocol.md 7.2, 7.3)."""

from collections.abc import Sequence
from typing import Final

from epp import names
from epp.testing.bootstrap.json_types import HTTP_OPTIONS, TYPE, Json, assignment, breakers

ENDPOINTS_CLUSTER: Final = "endpoints"


def original_destination() -> Json:
    """Whatever address the destination header names: Envoy need not know the endpoints."""
    return {
        **_common(),
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "original_dst_lb_config": {"use_http_header": True, "http_header_name": names.DESTINATION_ENDPOINT},
    }


def override_host(eds_file: str) -> Json:
    """One of the endpoints that Envoy knows, the one the picker names; others only for a retry, or where it names a stranger.

    `eds_file`: a DiscoveryResponse that Envoy follows, in place of a control plane.
    """
    destination = [{"key": names.DESTINATION_ENDPOINT}]
    return {
        **_common(),
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"resource_api_version": "V3", "path_config_source": {"path": eds_file}}},
        "load_balancing_policy": {
            "policies": [
                {
                    "typed_extension_config": {
                        "name": "envoy.load_balancing_policies.override_host",
                        "typed_config": {
                            "@type": f"{TYPE}.load_balancing_policies.override_host.v3.OverrideHost",
                            "override_host_sources": [
                                {"metadata": {"key": names.DESTINATION_NAMESPACE, "path": destination}},
                                {"header": names.DESTINATION_ENDPOINT},
                            ],
                            "selected_host_key": {
                                "key": names.DESTINATION_NAMESPACE,
                                "path": [{"key": names.SERVED_ENDPOINT}],
                            },
                            "fallback_policy": {
                                "policies": [
                                    {
                                        "typed_extension_config": {
                                            "name": "envoy.load_balancing_policies.round_robin",
                                            "typed_config": {"@type": f"{TYPE}.load_balancing_policies.round_robin.v3.RoundRobin"},
                                        }
                                    }
                                ]
                            },
                        },
                    }
                }
            ]
        },
    }


def round_robin_cluster(endpoints: Sequence[tuple[str, int]]) -> Json:
    """A fixed list, each in turn."""
    return {**_common(), "type": "STATIC", "lb_policy": "ROUND_ROBIN", "load_assignment": assignment(ENDPOINTS_CLUSTER, tuple(endpoints))}


def _common() -> Json:
    return {
        "name": ENDPOINTS_CLUSTER,
        "connect_timeout": "10s",
        "circuit_breakers": breakers(),
        # vLLM's server closes a connection that was idle for 5 s; a request sent at that moment would fail, so Envoy lets go first.
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": HTTP_OPTIONS,
                "common_http_protocol_options": {"idle_timeout": "4s"},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }

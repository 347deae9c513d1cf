"""What all pieces of a bootstrap are made of."""

Json = dict[str, object]

TYPE = "type.googleapis.com/envoy.extensions"
HTTP_OPTIONS = f"{TYPE}.upstreams.http.v3.HttpProtocolOptions"


def address(host: str, port: int) -> Json:
    """A TCP address."""
    return {"socket_address": {"address": host, "port_value": port}}


def breakers() -> Json:
    """No limit that a busy fleet would meet: how much an endpoint gets is the picker's business."""
    limits = {"max_connections": 40000, "max_pending_requests": 40000, "max_requests": 40000, "max_retries": 1024}
    return {"thresholds": [{"priority": "DEFAULT", **limits}]}


def assignment(cluster: str, endpoints: "list[tuple[str, int]] | tuple[tuple[str, int], ...]") -> Json:
    """A cluster's fixed endpoints."""
    return {
        "cluster_name": cluster,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(host, port)}} for host, port in endpoints]}],
    }

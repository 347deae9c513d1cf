"""Envoy's configuration with epp as endpoint picker, as plain data: one source for envoy/*.yaml, the demo, bench and tests.

Pure. `front` puts pickers beside Envoy; `standalone` is its common case, one picker on this host; `round_robin` is the
baseline without a picker; `SHIPPED` are the files of envoy/, which `tools/envoy.py` writes. The pieces: `pickers`
(ext_proc filter, clusters and access loggers of epp), `upstream` (where requests go), `listeners`.
"""

from collections.abc import Sequence

from epp.testing.bootstrap.json_types import Json
from epp.testing.bootstrap.listeners import admin_cluster, assemble, ready_listener
from epp.testing.bootstrap.pickers import EPP_CLUSTER, Pickers, Responses, access_logs, ext_proc_filter, picker_clusters
from epp.testing.bootstrap.upstream import ENDPOINTS_CLUSTER, original_destination, override_host, round_robin_cluster

__all__ = [
    "ENDPOINTS_CLUSTER",
    "EPP_CLUSTER",
    "SHIPPED",
    "Json",
    "Pickers",
    "Responses",
    "front",
    "original_destination",
    "override_host",
    "round_robin",
    "standalone",
]


def front(
    *,
    listener: int,
    admin: int,
    pickers: Pickers,
    upstream: Json,
    responses: Responses = Responses.ACCESS_LOG,
    request_body: str = "FULL_DUPLEX_STREAMED",
    host: str = "127.0.0.1",
    ready: int | None = None,
    keep_request_id: bool = False,
    tell_endpoint: bool = False,
) -> Json:
    """Envoy in front of `upstream`, asking `pickers` for every request.

    Ports are TCP ports on `host`; 0 for `listener` and `admin` lets the system choose; `ready` is the port of /ready and
    /stats/prometheus. `request_body` is a ProcessingMode.BodySendMode. `keep_request_id`: a client's x-request-id reaches
    epp and the endpoint unchanged (for tests; at an edge Envoy should make its own). `tell_endpoint`: an answer carries the
    "ip:port" it came from in x-inference-pod, for endpoints that do not say it themselves.
    """
    return assemble(
        host=host,
        listener=listener,
        admin=admin,
        filters=[ext_proc_filter(responses, request_body)],
        access_log=access_logs(pickers) if responses is Responses.ACCESS_LOG else [],
        clusters=[*picker_clusters(pickers, responses), upstream, *([] if ready is None else [admin_cluster(admin)])],
        extra_listeners=[] if ready is None else [ready_listener(host, ready)],
        keep_request_id=keep_request_id,
        tell_endpoint=tell_endpoint,
    )


def standalone(
    *,
    listener: int,
    admin: int,
    epp: int,
    host: str = "127.0.0.1",
    responses: Responses = Responses.ACCESS_LOG,
    request_body: str = "FULL_DUPLEX_STREAMED",
    tls: bool = False,
    keep_request_id: bool = False,
    tell_endpoint: bool = False,
) -> Json:
    """Envoy with one picker on this host at port `epp`, endpoints wherever it says; parameters as those of `front`."""
    return front(
        listener=listener,
        admin=admin,
        pickers=Pickers((("127.0.0.1", epp),), tls=tls),
        upstream=original_destination(),
        responses=responses,
        request_body=request_body,
        host=host,
        keep_request_id=keep_request_id,
        tell_endpoint=tell_endpoint,
    )


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
    return assemble(
        host=host,
        listener=listener,
        admin=admin,
        filters=[],
        access_log=[],
        clusters=[round_robin_cluster(endpoints)],
        extra_listeners=[],
        keep_request_id=keep_request_id,
        tell_endpoint=tell_endpoint,
    )


def _shipped() -> dict[str, Json]:
    """What envoy/ holds, by file name: three arrangements, each in our default mode and for gateways' habits."""
    sidecar = Pickers((("127.0.0.1", 9002),), tls=True)
    listed = Pickers((("epp-0.epp", 9002), ("epp-1.epp", 9002)), tls=True, by_name=True)
    service = Pickers((("epp", 9002),), tls=True, by_name=True)
    eds = override_host("/etc/envoy/endpoints.eds.yaml")
    files: dict[str, Json] = {}
    for suffix, responses in (("", Responses.ACCESS_LOG), ("-full-duplex", Responses.FULL_DUPLEX)):
        files[f"sidecar{suffix}.yaml"] = _ours(sidecar, original_destination(), responses)
        files[f"standalone{suffix}.yaml"] = _ours(listed, original_destination(), responses)
        files[f"override-host{suffix}.yaml"] = _ours(listed, eds, responses)
    files["standalone-service.yaml"] = _ours(service, original_destination(), Responses.HEADERS)
    return files


def _ours(pickers: Pickers, upstream: Json, responses: Responses) -> Json:
    return front(listener=8081, admin=19000, ready=19001, host="0.0.0.0", pickers=pickers, upstream=upstream, responses=responses)  # noqa: S104  # clients come from outside


SHIPPED = _shipped()

"""grpc.health.v1 as bytes to bytes: Check and List. Watch is left out, as llm-d does (spec/protocol.md 5.6).

Pure; called by the transports, on the event loop.
"""

from google.protobuf.message import DecodeError

from epp import names
from epp._proto import health_pb2 as pb
from epp.errors import ProtocolError
from epp.server.interfaces import Health

SERVICE = "grpc.health.v1.Health"


def check(health: Health, request: bytes) -> bytes:
    """The HealthCheckResponse for a HealthCheckRequest. A service nobody knows is a status of the answer, as in llm-d, not an error."""
    message = pb.HealthCheckRequest()
    try:
        message.ParseFromString(request)
    except DecodeError as error:
        raise ProtocolError(f"not a HealthCheckRequest: {error}") from None
    return _response(health, message.service).SerializeToString()


def list_services(health: Health) -> bytes:
    """The HealthListResponse: the one service a data plane needs."""
    statuses = {names.EXT_PROC_SERVICE: _response(health, names.EXT_PROC_SERVICE)}
    return pb.HealthListResponse(statuses=statuses).SerializeToString()


def _response(health: Health, service: str) -> pb.HealthCheckResponse:
    return pb.HealthCheckResponse(status=_STATUS[health.serving(service)])


_STATUS = {
    True: pb.HealthCheckResponse.SERVING,
    False: pb.HealthCheckResponse.NOT_SERVING,
    None: pb.HealthCheckResponse.SERVICE_UNKNOWN,
}

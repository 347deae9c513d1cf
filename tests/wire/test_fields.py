"""Our definitions against an independent codec: what we encode the other decodes to the same values, and back.

The other codec is envoy-data-plane (betterproto2), generated from Envoy's own files. The test walks our descriptors,
so a new message or field is covered the moment it exists; a new message needs a row in PEERS.
"""

import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.unknown_fields import UnknownFieldSet
from grpclib.health.v1 import health_pb2 as health_peer

from epp._proto import access_log_pb2, core_pb2, ext_proc_pb2, health_pb2

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the peer's own use of pydantic is not our concern
    from envoy_data_plane.envoy.config.core import v3 as core
    from envoy_data_plane.envoy.data.accesslog import v3 as data_accesslog
    from envoy_data_plane.envoy.extensions.filters.http.ext_proc import v3 as ext_proc_filter
    from envoy_data_plane.envoy.service.accesslog import v3 as service_accesslog
    from envoy_data_plane.envoy.service.ext_proc import v3 as ext_proc
    from envoy_data_plane.envoy.type import v3 as envoy_type

PEERS: Mapping[str, Any] = {
    "epp.core.Address": core.Address,
    "epp.core.HeaderMap": core.HeaderMap,
    "epp.core.HeaderValue": core.HeaderValue,
    "epp.core.HeaderValueOption": core.HeaderValueOption,
    "epp.core.HttpStatus": envoy_type.HttpStatus,
    "epp.core.Metadata": core.Metadata,
    "epp.core.SocketAddress": core.SocketAddress,
    "epp.ext_proc.BodyMutation": ext_proc.BodyMutation,
    "epp.ext_proc.BodyResponse": ext_proc.BodyResponse,
    "epp.ext_proc.CommonResponse": ext_proc.CommonResponse,
    "epp.ext_proc.HeaderMutation": ext_proc.HeaderMutation,
    "epp.ext_proc.HeadersResponse": ext_proc.HeadersResponse,
    "epp.ext_proc.HttpBody": ext_proc.HttpBody,
    "epp.ext_proc.HttpHeaders": ext_proc.HttpHeaders,
    "epp.ext_proc.HttpTrailers": ext_proc.HttpTrailers,
    "epp.ext_proc.ImmediateResponse": ext_proc.ImmediateResponse,
    "epp.ext_proc.ProcessingRequest": ext_proc.ProcessingRequest,
    "epp.ext_proc.ProcessingResponse": ext_proc.ProcessingResponse,
    "epp.ext_proc.ProtocolConfiguration": ext_proc.ProtocolConfiguration,
    "epp.ext_proc.StreamedBodyResponse": ext_proc.StreamedBodyResponse,
    "epp.ext_proc.TrailersResponse": ext_proc.TrailersResponse,
    "epp.access_log.AccessLogCommon": data_accesslog.AccessLogCommon,
    "epp.access_log.HTTPAccessLogEntry": data_accesslog.HttpAccessLogEntry,
    "epp.access_log.HTTPRequestProperties": data_accesslog.HttpRequestProperties,
    "epp.access_log.HTTPResponseProperties": data_accesslog.HttpResponseProperties,
    "epp.access_log.ResponseFlags": data_accesslog.ResponseFlags,
    "epp.access_log.StreamAccessLogsMessage": service_accesslog.StreamAccessLogsMessage,
    "epp.access_log.StreamAccessLogsMessage.HTTPAccessLogEntries": service_accesslog.StreamAccessLogsMessageHttpAccessLogEntries,
    "epp.access_log.StreamAccessLogsMessage.Identifier": service_accesslog.StreamAccessLogsMessageIdentifier,
    "epp.access_log.StreamAccessLogsResponse": service_accesslog.StreamAccessLogsResponse,
}
ENUM_PEERS: Mapping[str, Any] = {
    "epp.ext_proc.BodySendMode": ext_proc_filter.ProcessingModeBodySendMode,
    "epp.access_log.AccessLogType": data_accesslog.AccessLogType,
}

Plain = Any
"""A message as a dict of the fields that are set, times as those of datetime, a Struct as JSON, a wrapper as its value."""

ATOMS: Mapping[int, Plain] = {
    FieldDescriptor.TYPE_BOOL: True,
    FieldDescriptor.TYPE_BYTES: b"\x00\xff",
    FieldDescriptor.TYPE_INT32: 200,
    FieldDescriptor.TYPE_STRING: "text é",
    FieldDescriptor.TYPE_UINT32: 200,
    FieldDescriptor.TYPE_UINT64: 2**40,
}


# --- values to try ------------------------------------------------------------------------------------------------


def type_of(field: FieldDescriptor) -> Descriptor:
    assert field.message_type is not None
    return field.message_type


def numbers(field: FieldDescriptor) -> list[int]:
    """The values of an enum field that are not its default."""
    assert field.enum_type is not None
    return [value.number for value in field.enum_type.values[1:]]


def is_map(field: FieldDescriptor) -> bool:
    return field.type == FieldDescriptor.TYPE_MESSAGE and type_of(field).GetOptions().map_entry


def settable(descriptor: Descriptor) -> list[FieldDescriptor]:
    """All fields, but of each oneof only the first."""
    first = {f.containing_oneof.full_name: f for f in reversed(descriptor.fields) if f.containing_oneof is not None}
    return [f for f in descriptor.fields if f.containing_oneof is None or first[f.containing_oneof.full_name] is f]


def sample(field: FieldDescriptor) -> Plain:
    """A value the field does not have by default, nested messages filled in."""
    if is_map(field):
        return {"key": atom(type_of(field).fields_by_name["value"])}
    return [atom(field), atom(field)] if field.is_repeated else atom(field)


def atom(field: FieldDescriptor) -> Plain:
    if field.type == FieldDescriptor.TYPE_ENUM:
        return numbers(field)[-1]
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        return ATOMS[field.type]
    match type_of(field).full_name:
        case "google.protobuf.Duration":
            return timedelta(seconds=3, microseconds=250)
        case "google.protobuf.Timestamp":
            return datetime(2026, 1, 31, 12, 0, 0, 250, UTC)
        case "google.protobuf.Struct":
            return {"text": "v", "list": ["a", "b"], "inner": {"number": 1.5, "flag": True}}
        case "google.protobuf.UInt32Value":
            return 200
    return {f.name: sample(f) for f in settable(type_of(field))}


# --- our codec --------------------------------------------------------------------------------------------------


def to_ours(descriptor: Descriptor, plain: Plain) -> Any:
    message = message_factory.GetMessageClass(descriptor)()
    for name, value in plain.items():
        field = descriptor.fields_by_name[name]
        target = getattr(message, name)
        if is_map(field):
            for key, item in value.items():
                target[key].CopyFrom(ours_atom(type_of(field).fields_by_name["value"], item))
        elif field.is_repeated:
            target.extend(ours_atom(field, item) for item in value)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            target.CopyFrom(ours_atom(field, value))
            target.SetInParent()
        else:
            setattr(message, name, value)
    return message


def ours_atom(field: FieldDescriptor, plain: Plain) -> Any:
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        return plain
    message: Any = message_factory.GetMessageClass(type_of(field))()
    match type_of(field).full_name:
        case "google.protobuf.Duration":
            message.FromTimedelta(plain)
        case "google.protobuf.Timestamp":
            message.FromDatetime(plain)
        case "google.protobuf.Struct":
            message.update(plain)
        case "google.protobuf.UInt32Value":
            message.value = plain
        case _:
            return to_ours(type_of(field), plain)
    return message


def from_ours(message: Message) -> Plain:
    assert not len(UnknownFieldSet(message)), f"{message.DESCRIPTOR.full_name} received fields it does not define"
    plain: dict[str, Plain] = {}
    for field, value in message.ListFields():
        if is_map(field):
            plain[field.name] = {key: plain_of_ours(item) for key, item in value.items()}
        elif field.is_repeated:
            plain[field.name] = [plain_of_ours(item) for item in value]
        else:
            plain[field.name] = plain_of_ours(value)
    return plain


def plain_of_ours(value: Any) -> Plain:
    if not isinstance(value, Message):
        return value
    match value.DESCRIPTOR.full_name:
        case "google.protobuf.Duration":
            return value.ToTimedelta()  # type: ignore[attr-defined]  # a well-known type
        case "google.protobuf.Timestamp":
            return value.ToDatetime(UTC)  # type: ignore[attr-defined]  # a well-known type
        case "google.protobuf.Struct":
            return json_format.MessageToDict(value)
        case "google.protobuf.UInt32Value":
            return value.value  # type: ignore[attr-defined]  # a well-known type
    return from_ours(value)


# --- the other codec, read and built through our descriptor ---------------------------------------------------------


def to_theirs(peer: Any, descriptor: Descriptor, plain: Plain) -> Any:
    values: dict[str, Any] = {}
    for name, value in plain.items():
        field = descriptor.fields_by_name[name]
        classes = peer._betterproto.cls_by_field
        if is_map(field):
            value_field = type_of(field).fields_by_name["value"]
            values[name] = {key: theirs_atom(classes[f"{name}.value"], value_field, item) for key, item in value.items()}
        elif field.is_repeated:
            values[name] = [theirs_atom(classes[name], field, item) for item in value]
        else:
            values[name] = theirs_atom(classes[name], field, value)
    return peer(**values)


def theirs_atom(peer: Any, field: FieldDescriptor, plain: Plain) -> Any:
    if isinstance(plain, dict):
        return peer.from_dict(plain) if type_of(field).full_name == Struct.DESCRIPTOR.full_name else to_theirs(peer, type_of(field), plain)
    return peer(plain) if field.type == FieldDescriptor.TYPE_ENUM else plain


def from_theirs(message: Any, descriptor: Descriptor) -> Plain:
    assert not message._unknown_fields, f"{descriptor.full_name} sent fields the peer does not know"
    plain: dict[str, Plain] = {}
    for field in descriptor.fields:
        value = getattr(message, field.name)
        if value is None or (field.type != FieldDescriptor.TYPE_MESSAGE and not value and not field.has_presence) or value in ([], {}):
            continue
        if is_map(field):
            plain[field.name] = {key: plain_of_theirs(item, type_of(field).fields_by_name["value"]) for key, item in value.items()}
        elif field.is_repeated:
            plain[field.name] = [plain_of_theirs(item, field) for item in value]
        else:
            plain[field.name] = plain_of_theirs(value, field)
    return plain


def plain_of_theirs(value: Any, field: FieldDescriptor) -> Plain:
    if field.type != FieldDescriptor.TYPE_MESSAGE or isinstance(value, timedelta | datetime | int):
        return int(value) if field.type == FieldDescriptor.TYPE_ENUM else value
    if type_of(field).full_name == Struct.DESCRIPTOR.full_name:
        return value.to_dict()
    return from_theirs(value, type_of(field))


# --- the proof --------------------------------------------------------------------------------------------------


def messages() -> Iterator[Descriptor]:
    """Every message of our files but health's."""
    waiting = [d for file in (core_pb2, ext_proc_pb2, access_log_pb2) for d in file.DESCRIPTOR.message_types_by_name.values()]
    while waiting:
        descriptor = waiting.pop()
        if not descriptor.GetOptions().map_entry:
            yield descriptor
            waiting += descriptor.nested_types


FIELDS = {field.full_name: (descriptor, field) for descriptor in messages() for field in descriptor.fields}


def check(descriptor: Descriptor, plain: Plain) -> None:
    peer = PEERS[descriptor.full_name]
    assert from_theirs(peer.parse(to_ours(descriptor, plain).SerializeToString()), descriptor) == plain
    ours = message_factory.GetMessageClass(descriptor)()
    ours.ParseFromString(bytes(to_theirs(peer, descriptor, plain)))
    assert from_ours(ours) == plain


def test_every_message_has_a_peer() -> None:
    """No message of ours is left without proof, and none is listed that is gone."""
    assert {descriptor.full_name for descriptor in messages()} == set(PEERS)


@pytest.mark.parametrize("name", FIELDS)
def test_field(name: str) -> None:
    """One field at a time: number, type and nesting agree in both directions."""
    owner, field = FIELDS[name]
    values = numbers(field) if field.type == FieldDescriptor.TYPE_ENUM else [sample(field)]
    for value in values:
        check(owner, {field.name: value})


@pytest.mark.parametrize("name", PEERS)
def test_whole_and_empty_messages(name: str) -> None:
    """All fields together, and none."""
    [descriptor] = [d for d in messages() if d.full_name == name]
    check(descriptor, {f.name: sample(f) for f in settable(descriptor)})
    check(descriptor, {})


@pytest.mark.parametrize("name", ENUM_PEERS)
def test_enum_numbers_have_the_same_names(name: str) -> None:
    """A number means the same to both."""
    enums: list[EnumDescriptor] = [e for file in (ext_proc_pb2, access_log_pb2) for e in file.DESCRIPTOR.enum_types_by_name.values()]
    assert {enum.full_name for enum in enums} == set(ENUM_PEERS)
    [enum] = [e for e in enums if e.full_name == name]
    for value in enum.values:
        assert ENUM_PEERS[name](value.number).name.lower() == value.name.lower().replace("_", "" if "AccessLog" in name else "_")


@pytest.mark.parametrize("status", health_pb2.HealthCheckResponse.ServingStatus.values())
def test_health_messages(status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
    """Health agrees with grpclib's copy of grpc.health.v1, byte for byte."""
    peer: Any = health_peer
    ours, theirs = health_pb2.HealthCheckResponse(status=status), peer.HealthCheckResponse(status=status)
    assert ours.SerializeToString() == theirs.SerializeToString()
    assert health_pb2.HealthCheckRequest(service="a").SerializeToString() == peer.HealthCheckRequest(service="a").SerializeToString()
    assert health_pb2.HealthCheckResponse.ServingStatus.Name(status) == peer.HealthCheckResponse.ServingStatus.Name(status)


def test_health_list() -> None:
    """HealthListResponse is newer than that copy: a map<string, HealthCheckResponse> in field 1, written out by hand."""
    listed = health_pb2.HealthListResponse(statuses={"a": health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)})
    assert listed.SerializeToString() == b"\x0a\x07" + b"\x0a\x01a" + b"\x12\x02\x08\x01"

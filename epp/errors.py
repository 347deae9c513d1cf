"""The exception tree, arranged by who must act.

Every exception that can end a request carries `http_status` (the status the client sees), `code` (llm-d's code
string, which becomes part of the body and of the error_code label) and, where llm-d defines one, `dropped_reason`.
Only `epp.extproc.rejections` renders one for the wire (spec/protocol.md 1.5).
"""

from typing import ClassVar


class EppError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(EppError):
    """The operator must mend a file, flag or environment variable. `str()` is one sentence that names the place and the remedy."""


class RequestError(EppError):
    """A request ends here with an answer of ours. Never raised itself: raise the child that says who must act."""

    http_status: ClassVar[int]
    code: ClassVar[str]

    def __init__(self, message: str, *, dropped_reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.dropped_reason = dropped_reason


class BadRequestError(RequestError):
    """The client sent something no model server could serve."""

    http_status = 400
    code = "BadRequest"


class PreconditionFailedError(RequestError):
    """The client wants this request served from a cached prefix or not at all."""

    http_status = 412
    code = "PreconditionFailed"


class PayloadTooLargeError(RequestError):
    """The body is larger than --max-request-body."""

    http_status = 413
    code = "PayloadTooLarge"


class ResourceExhaustedError(RequestError):
    """The pool has no room for this request: the client may come back later."""

    http_status = 429
    code = "ResourceExhausted"


class NoneOfKindError(ResourceExhaustedError):
    """None of the candidates is of the kind the request needs, whatever their load."""


class InternalError(RequestError):
    """Our bug, or a pool without endpoints where llm-d answers 500."""

    http_status = 500
    code = "Internal"


class ServiceUnavailableError(RequestError):
    """No endpoint is eligible."""

    http_status = 503
    code = "ServiceUnavailable"


class ProtocolError(EppError):
    """Envoy sent messages in an impossible order or of an impossible form: the stream ends with a gRPC status."""

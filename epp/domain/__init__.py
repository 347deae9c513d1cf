"""The nouns of the picker, shared by every room: endpoints, requests, tokens, decisions.

Plain records without behaviour beyond derived properties; nothing here does I/O or knows a clock. Records built
once per request use slots and are treated as immutable; snapshots are frozen. Import them from here.
"""

from epp.domain.facts import (
    CPU,
    GPU,
    NEVER_SCRAPED,
    NO_LABELS,
    STORAGE,
    BlockKey,
    DecisionId,
    Endpoint,
    EndpointId,
    EndpointMetrics,
    EngineHash,
    MediaSpan,
    ParityLoss,
    PrefixMatch,
    TokenIds,
    TokenizedRequest,
    Usage,
    medium_name,
)
from epp.domain.kinds import AnswerFormat, Api, EndCause, TokenState
from epp.domain.records import Decision, InferenceRequest, PluginScores, ProfileResult, RequestEnd, StreamClosed

__all__ = [
    "CPU",
    "GPU",
    "NEVER_SCRAPED",
    "NO_LABELS",
    "STORAGE",
    "AnswerFormat",
    "Api",
    "BlockKey",
    "Decision",
    "DecisionId",
    "EndCause",
    "Endpoint",
    "EndpointId",
    "EndpointMetrics",
    "EngineHash",
    "InferenceRequest",
    "MediaSpan",
    "ParityLoss",
    "PluginScores",
    "PrefixMatch",
    "ProfileResult",
    "RequestEnd",
    "StreamClosed",
    "TokenIds",
    "TokenState",
    "TokenizedRequest",
    "Usage",
    "medium_name",
]

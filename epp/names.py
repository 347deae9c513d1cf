"""Names on the wire, each with the sentence of the specification it comes from.

Imports nothing of ours and holds only constants, so that every room, and the simulator, may use it.
"""

from typing import Final

# --- Endpoint Picker protocol (GIE proposal 004) -------------------------------------------------------------
# Request header and dynamic metadata key that carry the choice; both must hold the identical "ip:port".
DESTINATION_ENDPOINT: Final = "x-gateway-destination-endpoint"
# Every scored candidate's total, beside DESTINATION_ENDPOINT in the metadata (llm-d, --emit-endpoint-scores).
ENDPOINT_SCORES: Final = "x-gateway-destination-endpoint-scores"
# Metadata key, in the same namespace, of the endpoint that served the answer.
SERVED_ENDPOINT: Final = "x-gateway-destination-endpoint-served"
# Dynamic metadata namespace of DESTINATION_ENDPOINT.
DESTINATION_NAMESPACE: Final = "envoy.lb"
# filter_metadata namespace and key by which the data plane restricts the candidates.
SUBSET_NAMESPACE: Final = "envoy.lb.subset_hint"
SUBSET_KEY: Final = "x-gateway-destination-endpoint-subset"

# --- Request headers; where there are two names, the current one first, then the deprecated alias ---------------
MODEL_REWRITE_HEADERS: Final = ("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite")
FAIRNESS_ID_HEADERS: Final = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
# The flow of a request that names none.
DEFAULT_FLOW: Final = "default-flow"
REQUEST_ID: Final = "x-request-id"
# A preference (RFC 7240) that makes serving depend on a cached prefix; its parameters mean nothing.
PREFER: Final = "prefer"
IF_AVAILABLE: Final = "if-available"
DROPPED_REASON: Final = "x-llm-d-request-dropped-reason"
# Where the path is found: the pseudo header, then what gateways leave behind, then the default.
PATH_HEADERS: Final = (":path", "x-original-path", "x-forwarded-path")
DEFAULT_PATH: Final = "/v1/completions"
# Debug header both reference pickers put on every response they process.
WENT_INTO_RESPONSE_HEADERS: Final = "x-went-into-resp-headers"

# --- gRPC services -------------------------------------------------------------------------------------------
EXT_PROC_SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
ACCESS_LOG_SERVICE: Final = "envoy.service.accesslog.v3.AccessLogService"

# --- Pod labels ----------------------------------------------------------------------------------------------
ROLE_LABEL: Final = "llm-d.ai/role"
ENGINE_TYPE_LABEL: Final = "llm-d.ai/engine-type"
LEGACY_ENGINE_TYPE_LABEL: Final = "inference.networking.k8s.io/engine-type"

# --- Ours ----------------------------------------------------------------------------------------------------
# Dynamic metadata namespace and key by which an access-log entry is matched to its decision.
EPP_NAMESPACE: Final = "epp"
DECISION_ID: Final = "decision"
# Attributes by which Envoy names a request in ext_proc as it does in its access log (epp.extproc.origin).
ORIGIN_ATTRIBUTES: Final = ("request.time", "source.address")
# Labels of an endpoint that name the base ports of its KV-event sockets; a rank adds its index.
KV_EVENTS_PORT_LABEL: Final = "epp.internal/kv-events-port"
KV_REPLAY_PORT_LABEL: Final = "epp.internal/kv-replay-port"
DEFAULT_KV_EVENTS_PORT: Final = 5557

# Header by which a model server tells which pod answered (llm-d-inference-sim's name).
INFERENCE_POD: Final = "x-inference-pod"

"""llm-d's command line: Go flag syntax to one frozen record (spec/protocol.md 5.2, spec/deploy.md 1.5).

`-x` and `--x` are the same, values follow `=` or a space, a bare boolean is true (its value must be attached), camelCase
names are accepted, empty arguments where no value is due are ignored and the last occurrence wins. Nothing is parsed and
ignored: a flag acts, or what it asks for holds anyway, which a note says where somebody asks for something else, or it is
an error that says "known, not supported yet". Pure; called once by epp.cli, which also gives it the environment.
"""

import difflib
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

from epp.config import flag_values as values
from epp.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The flags of `epp` when it serves. Field names are the flags' names with underscores."""

    config_file: str = ""
    config_text: str = ""
    grpc_port: int = 9002
    grpc_health_port: int = 9003
    metrics_port: int = 9090
    transport: str = "fast"
    grpc_max_recv_msg_size: int = 4 << 20
    max_request_body: int = 64 << 20
    drain_timeout: float = 30.0
    secure_serving: bool = True
    cert_path: str = ""
    enable_cert_reload: bool = False
    tls_min_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    tls_cipher_suites: tuple[str, ...] = ()
    """OpenSSL's names."""
    pool_name: str = ""
    pool_namespace: str = ""
    pool_group: str = "inference.networking.k8s.io"
    endpoint_selector: str = ""
    endpoint_target_ports: tuple[int, ...] = ()
    disable_endpoint_subset_filter: bool = False
    emit_endpoint_scores: bool = False
    instance_id: str = ""
    refresh_metrics_interval: float = 0.05
    refresh_prometheus_metrics_interval: float = 5.0
    metrics_staleness_threshold: float = 2.0
    total_queued_requests_metric: str = ""
    total_running_requests_metric: str = ""
    kv_cache_usage_percentage_metric: str = ""
    lora_info_metric: str = ""
    cache_info_metric: str = ""
    model_server_metrics_port: int = 0
    model_server_metrics_path: str = ""
    model_server_metrics_scheme: str = ""
    model_server_metrics_https_insecure_skip_verify: bool = True
    enable_grpc_stream_metrics: bool = False
    metrics_cert_dir: str = ""
    metrics_client_ca_file: str = ""
    decision_log: str = ""
    v: int = 2
    zap_encoder: str = ""
    zap_log_level: str = ""
    zap_time_encoding: str = ""
    zap_stacktrace_level: str = ""
    notes: tuple[str, ...] = field(default=())
    """Sentences about flags whose effect is not the one asked for; to be logged at start."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: how its text becomes a value, and its line in --help."""

    name: str
    parse: Callable[[str], object]
    help: str
    instead: str = ""
    """What holds whatever the flag says; empty: it acts."""
    holds: object = None
    """The value with which the flag says just that."""


GROUPS: Mapping[str, Sequence[Flag]] = {
    "configuration": (
        Flag("config-file", str, "path of an EndpointPickerConfig"),
        Flag("config-text", str, "the same as text; not together with --config-file"),
    ),
    "serving": (
        Flag("grpc-port", values.port, "port of ext_proc, access log and health (default 9002)"),
        Flag("grpc-health-port", values.port, "port of the health service, always in plaintext (default 9003)"),
        Flag("metrics-port", values.port, "port of /metrics (default 9090)"),
        Flag("transport", values.choice("fast", "grpc"), "fast: libnghttp2 in this process; grpc: grpc.aio (default fast)"),
        Flag("grpc-max-recv-msg-size", values.empty_is(4 << 20, values.message_size), "largest gRPC message accepted (default 4MiB)"),
        Flag("max-request-body", values.body_size, "largest request body; larger ones get 413 (default 64MiB)"),
        Flag("drain-timeout", values.wait, "how long to serve on, not ready, after SIGTERM (default 30s)"),
    ),
    "TLS on the gRPC port": (
        Flag("secure-serving", values.boolean, "TLS (default true); false: plaintext HTTP/2"),
        Flag("cert-path", str, "folder with tls.crt and tls.key (default: a self-signed certificate, in memory)"),
        Flag("enable-cert-reload", values.boolean, "follow the files of --cert-path (default false)"),
        Flag(
            "tls-min-version",
            values.empty_is(ssl.TLSVersion.TLSv1_2, values.tls_version),
            "oldest version, VersionTLS12 or VersionTLS13 (default VersionTLS12)",
        ),
        Flag("tls-cipher-suites", values.tls_suites, "suites of TLS 1.2, Go's names (default: OpenSSL's choice)"),
    ),
    "pool": (
        Flag("pool-name", str, 'name of the pool; names it in metrics where endpoints come from a file (default "epp")'),
        Flag("pool-namespace", str, "its namespace (default: $NAMESPACE, then default)"),
        Flag(
            "pool-group",
            values.choice("inference.networking.k8s.io", "inference.networking.x-k8s.io"),
            "API group of the InferencePool (default inference.networking.k8s.io)",
        ),
        Flag("endpoint-selector", str, "label selector of the pods, in place of a pool"),
        Flag("endpoint-target-ports", values.empty_is((), values.target_ports), "their ports, 1 to 8 of them"),
        Flag("disable-endpoint-subset-filter", values.boolean, "ignore the subset the data plane asks for (default false)"),
        Flag("emit-endpoint-scores", values.boolean, "tell the data plane the score of each endpoint (default false)"),
        Flag("instance-id", str, "tells this picker from others behind the same Envoy (default: $POD_NAME, then made up)"),
    ),
    "endpoints' metrics": (
        Flag(
            "refresh-metrics-interval", values.refresh_interval, "how often /metrics of each endpoint is read (default 50ms, at least that)"
        ),
        Flag("metrics-staleness-threshold", values.period, "older readings are left out of the pool's averages (default 2s)"),
        Flag("model-server-metrics-port", values.port, "port of their /metrics (default 0: the one that serves)"),
        Flag("model-server-metrics-path", str, "its path (default /metrics)"),
        Flag("model-server-metrics-scheme", values.empty_is("", values.choice("http", "https")), "http or https (default http)"),
        Flag("model-server-metrics-https-insecure-skip-verify", values.boolean, "do not verify their certificates (default true)"),
        Flag("total-queued-requests-metric", str, "vLLM's name of it, as name{label=value}"),
        Flag("total-running-requests-metric", str, "likewise"),
        Flag("kv-cache-usage-percentage-metric", str, "likewise"),
        Flag("lora-info-metric", str, "likewise"),
        Flag("cache-info-metric", str, "likewise"),
    ),
    "observation": (
        Flag("refresh-prometheus-metrics-interval", values.period, "how often the pool's averages are computed (default 5s)"),
        Flag("enable-grpc-stream-metrics", values.boolean, "metrics of ext_proc streams (default false)"),
        Flag("metrics-cert-dir", str, "folder with tls.crt and tls.key: /metrics over TLS; needs --metrics-client-ca-file"),
        Flag("metrics-client-ca-file", str, "clients of /metrics must show a certificate of this CA"),
        Flag("decision-log", str, "file that gets one JSON line a decision and one an end: who was picked and why"),
        Flag("v", values.verbosity, "verbosity of the log: 2 default, 3 verbose, 4 debug (default 2)"),
        Flag("zap-encoder", values.any_case(values.choice("console", "json")), "form of a log line (default console)"),
        Flag("zap-log-level", values.level, "debug, info, warn, error, panic or a verbosity; overrides -v"),
        Flag(
            "zap-time-encoding",
            values.any_case(values.choice("epoch", "millis", "nano", "iso8601", "rfc3339", "rfc3339nano")),
            "time in a log line (default rfc3339 with milliseconds)",
        ),
        Flag("zap-stacktrace-level", values.level, "least level that shows stack traces (default error)"),
    ),
    "accepted; what they ask for holds anyway, or has no meaning here": (
        Flag(
            "health-checking",
            values.boolean,
            "health is always served, on both ports",
            "health is always served, on both ports",
            holds=True,
        ),
        Flag("tracing", values.boolean, "there are no traces yet", "there are no traces yet", holds=False),
        Flag("enable-pprof", values.boolean, "/debug/pprof is Go's", "/debug/pprof is Go's and does not exist here", holds=False),
        Flag(
            "metrics-endpoint-auth",
            values.boolean,
            "/metrics asks for no token: that takes the Kubernetes API",
            "/metrics asks for no token; to protect it give --metrics-cert-dir and --metrics-client-ca-file",
            holds=False,
        ),
        Flag("allow-experimental-plugins", values.boolean, "no plugin here is experimental", "no plugin here is experimental", holds=False),
        Flag(
            "grpc-max-send-msg-size",
            values.empty_is(0, values.size),
            "no reply is larger than 64 KB",
            "no reply is larger than 64 KB",
            holds=0,
        ),
        Flag(
            "zap-devel",
            values.boolean,
            "sets defaults that have flags of their own",
            "use --zap-encoder, --zap-log-level and --zap-stacktrace-level",
            holds=True,
        ),
        Flag(
            "destination-endpoint-hint-key",
            values.exactly("x-gateway-destination-endpoint", "the protocol has fixed this name"),
            "x-gateway-destination-endpoint",
            "",
            holds="x-gateway-destination-endpoint",
        ),
        Flag(
            "destination-endpoint-hint-metadata-namespace",
            values.exactly("envoy.lb", "the protocol has fixed this name"),
            "envoy.lb",
            "",
            holds="envoy.lb",
        ),
    ),
}
FLAGS: Mapping[str, Flag] = {flag.name: flag for flags in GROUPS.values() for flag in flags}
_WITHOUT_FIELD = frozenset(flag.name for flag in GROUPS["accepted; what they ask for holds anyway, or has no meaning here"])

# Booleans that wait for the capability they belong to; false may be given.
NOT_YET = frozenset(("ha-enable-leader-election",))

# Flags that say something about pods in Kubernetes, and about the certificate.
_OF_PODS = ("pool-namespace", "pool-group", "endpoint-selector", "endpoint-target-ports")
_OF_TLS = ("cert-path", "enable-cert-reload", "tls-min-version", "tls-cipher-suites")

# Variables of capabilities that do not exist yet (spec/protocol.md 5.3): set, they change nothing, which is said.
_UNUSED_VARIABLES = ("OTEL_", "TRAINING_SERVER_URL", "PREDICTION_SERVER_URL", "LATENCY_")


def parse(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> ServeOptions:
    """The options of one command line. Raises ConfigError that names the flag and the remedy."""
    environment = environment or {}
    texts = dict(_pairs(arguments))
    given: dict[str, object] = {}
    for name, text in texts.items():
        try:
            value = FLAGS[name].parse(text)
        except ValueError as error:
            raise ConfigError(f"--{name}: {text!r}: {error}") from None
        if name not in _WITHOUT_FIELD:
            given[name.replace("-", "_")] = value
    if texts.get("tls-cipher-suites", "").strip(", ") and not given["tls_cipher_suites"]:
        given["tls_min_version"] = ssl.TLSVersion.TLSv1_3  # as with Go: without a suite there is no TLS 1.2
    given["pool_namespace"] = given.get("pool_namespace") or environment.get("NAMESPACE") or "default"
    given.setdefault("instance_id", environment.get("POD_NAME", ""))
    notes = (*_notes(texts, secure=given.get("secure_serving", True) is True), *_notes_on(environment))
    options = ServeOptions(**given, notes=notes)  # type: ignore[arg-type]  # FLAGS and the fields are held together below
    _check(options)
    return options


def _notes(texts: Mapping[str, str], *, secure: bool) -> Iterator[str]:
    """What is said about flags whose effect is not the one asked for."""
    for name, text in texts.items():
        flag = FLAGS[name]
        if flag.instead and flag.parse(text) != flag.holds:
            yield f"--{name}={text}: {flag.instead}"
    if values.is_raised(text := texts.get("refresh-metrics-interval", "")):
        yield f"--refresh-metrics-interval={text}: raised to the smallest that there is, 50ms"
    if (text := texts.get("tls-min-version", "")) in values.OLD_TLS_VERSIONS:
        yield f"--tls-min-version={text}: HTTP/2 takes TLS 1.2 at least, older versions are not offered"
    if idle := [f"--{name}" for name in _OF_PODS if texts.get(name)]:
        yield f"{', '.join(idle)}: without effect, endpoints come from a file"
    if (text := texts.get("tls-cipher-suites", "")).strip(", ") and not values.tls_suites(text):
        yield f"--tls-cipher-suites={text}: none of them is for TLS 1.2, which is not offered then"
    if not secure and (idle := [f"--{name}" for name in _OF_TLS if texts.get(name) and FLAGS[name].parse(texts[name]) is not False]):
        yield f"{', '.join(idle)}: without effect with --secure-serving=false"


def _notes_on(environment: Mapping[str, str]) -> Iterator[str]:
    if unused := sorted(name for name in environment if name.startswith(_UNUSED_VARIABLES)):
        yield f"environment: {', '.join(unused)} without effect: traces and latency prediction do not exist here yet"


def _check(options: ServeOptions) -> None:
    """Flags that contradict each other."""
    if bool(options.config_file) == bool(options.config_text):
        problem = "both are given, which one counts?" if options.config_file else "neither is given; epp has no built-in configuration yet"
        raise ConfigError(f"--config-file, --config-text: {problem}")
    if options.pool_name and options.endpoint_selector:
        raise ConfigError("--pool-name, --endpoint-selector: both are given, which one counts?")
    if bool(options.endpoint_selector) != bool(options.endpoint_target_ports):
        raise ConfigError("--endpoint-selector, --endpoint-target-ports: give both or none")
    if options.enable_cert_reload and not options.cert_path:
        raise ConfigError("--enable-cert-reload: there is nothing to reload without --cert-path")
    if bool(options.metrics_cert_dir) != bool(options.metrics_client_ca_file):
        raise ConfigError(
            "--metrics-cert-dir, --metrics-client-ca-file: give both: TLS without client certificates protects nothing while /metrics asks for no token"
        )


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Flag names (known ones only) and their texts."""
    rest = iter(arguments)
    for argument in rest:
        if not argument.strip():
            continue
        if argument == "--":
            for extra in filter(str.strip, rest):
                raise ConfigError(f"{extra!r}: nothing is a flag after '--'; put flags before it")
            return
        written, equals, text = argument.removeprefix("-").removeprefix("-").partition("=")
        if not argument.startswith("-") or not written or written.startswith("-"):
            raise ConfigError(f"{argument!r}: not a flag; flags look like --grpc-port=9002 (booleans need the '=': --secure-serving=false)")
        name = _kebab(written)
        if name in NOT_YET and _is_false(text, default=not equals):
            continue
        if name not in FLAGS:
            raise ConfigError(_unknown(written, name))
        if not equals:
            text = "true" if FLAGS[name].parse is values.boolean else _next(rest, name)
        yield name, text


def _is_false(text: str, *, default: bool) -> bool:
    """Whether the value of a boolean is false; a bare one is true."""
    try:
        return not default and not values.boolean(text)
    except ValueError:
        return False


def _next(rest: Iterator[str], name: str) -> str:
    value = next(rest, None)
    if value is None:
        raise ConfigError(f"--{name}: needs a value, e.g. --{name}=...")
    return value


def _kebab(name: str) -> str:
    """ "grpcPort" and "GrpcPort" as "grpc-port"."""
    return re.sub(r"(?<=[a-z0-9])[A-Z]", lambda match: "-" + match[0], name).lower()


def _unknown(written: str, name: str) -> str:
    if name in NOT_YET:
        return f"--{written}: known, not supported yet"
    close = difflib.get_close_matches(name, FLAGS, n=1)
    return f"--{written}: unknown flag" + (f", did you mean --{close[0]}?" if close else "; see epp --help")


def usage() -> str:
    """The flags by group, a line each."""
    width = max(map(len, FLAGS)) + 4
    lines = []
    for group, flags in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {'--' + flag.name:<{width}}{flag.help}" for flag in flags)]
    return "\n".join(lines[1:])


assert {name.replace("-", "_") for name in FLAGS if name not in _WITHOUT_FIELD} | {"notes"} == {
    field.name for field in fields(ServeOptions)
}

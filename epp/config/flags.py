"""llm-d's command line: Go flag syntax to one frozen record (spec/protocol.md 5.2, spec/deploy.md 1.5).

`-x` and `--x` are the same, values follow `=` or a space, a bare boolean is true (its value must be attached), camelCase
names are accepted, empty arguments are ignored and the last occurrence wins. A flag that llm-d knows and epp does not
support yet is an error that says so: nothing is parsed and ignored. Pure; called once by epp.cli.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from epp.config.units import parse_duration
from epp.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The flags of `epp` when it serves. Field names are the flags' names with underscores."""

    config_file: str = ""
    config_text: str = ""
    grpc_port: int = 9002
    grpc_health_port: int = 9003
    metrics_port: int = 9090
    secure_serving: bool = True
    pool_name: str = "epp"
    refresh_metrics_interval: float = 0.05
    drain_timeout: float = 30.0
    grpc_max_recv_msg_size: int = 4 << 20
    max_request_body: int = 64 << 20
    disable_endpoint_subset_filter: bool = False
    decision_log: str = ""
    v: int = 2


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: how its text becomes a value, and its line in --help."""

    name: str
    parse: Callable[[str], object]
    help: str


MIN_REFRESH_INTERVAL_S = 0.05
BYTE_UNITS: Mapping[str, int] = {
    "": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30,
}  # fmt: skip


def parse_bytes(text: str) -> int:
    """Bytes of a Kubernetes quantity with an optional trailing B, such as "10MiB" or "25MB". Raises ValueError."""
    number = text.rstrip("Bb") if text[-1:] in "Bb" else text
    digits = number.rstrip("kKMGi")
    unit = number[len(digits) :]
    if not digits.isascii() or not digits.isdigit() or unit not in BYTE_UNITS:
        raise ValueError('expected a size such as "10MiB" or "25MB"')
    return int(digits) * BYTE_UNITS[unit]


def _parse_bool(text: str) -> bool:
    if text.lower() in {"1", "t", "true"}:
        return True
    if text.lower() in {"0", "f", "false"}:
        return False
    raise ValueError("expected true or false")


def _parse_port(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) <= 65535:
        return int(text)
    raise ValueError("expected a port, 0 to 65535 (0: one the system chooses)")


def _parse_wait(text: str) -> float:
    seconds = parse_duration(text)
    if seconds < 0:
        raise ValueError("must not be negative")
    return seconds


def _parse_interval(text: str) -> float:
    """At least 50 ms, as llm-d clamps it."""
    return max(MIN_REFRESH_INTERVAL_S, _parse_wait(text))


def _parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("expected a whole number") from None


FLAGS: Mapping[str, Flag] = {
    flag.name: flag
    for flag in (
        Flag("config-file", str, "path of an EndpointPickerConfig"),
        Flag("config-text", str, "the same as text; not together with --config-file"),
        Flag("grpc-port", _parse_port, "port of ext_proc, access log and health (default 9002)"),
        Flag("grpc-health-port", _parse_port, "port of the plaintext health service (default 9003)"),
        Flag("metrics-port", _parse_port, "port of /metrics (default 9090)"),
        Flag("secure-serving", _parse_bool, "TLS on the gRPC port (default true; not supported yet: pass --secure-serving=false)"),
        Flag("pool-name", str, 'name of the pool in metrics when endpoints come from a file (default "epp")'),
        Flag("refresh-metrics-interval", _parse_interval, "how often /metrics of each endpoint is read (default 50ms, at least that)"),
        Flag("drain-timeout", _parse_wait, "how long to serve on, not ready, after SIGTERM (default 30s)"),
        Flag("grpc-max-recv-msg-size", parse_bytes, "largest gRPC message accepted (default 4MiB)"),
        Flag("max-request-body", parse_bytes, "largest request body; larger ones get 413 (default 64MiB)"),
        Flag("disable-endpoint-subset-filter", _parse_bool, "ignore the subset the data plane asks for (default false)"),
        Flag("decision-log", str, "file that gets one JSON line a decision and one an end: who was picked and why"),
        Flag("v", _parse_int, "verbosity of the log: 2 default, 3 verbose, 4 debug (default 2)"),
    )
}

# llm-d's and GIE's flags that wait for the capability they belong to (spec/protocol.md 5.2, spec/deploy.md 1.5).
NOT_YET = frozenset(
    """
    pool-group pool-namespace endpoint-selector endpoint-target-ports ha-enable-leader-election emit-endpoint-scores grpc-max-send-msg-size
    refresh-prometheus-metrics-interval metrics-staleness-threshold total-queued-requests-metric total-running-requests-metric
    kv-cache-usage-percentage-metric lora-info-metric cache-info-metric zap-devel zap-encoder zap-log-level zap-stacktrace-level zap-time-encoding
    tracing health-checking enable-pprof cert-path enable-cert-reload enable-grpc-stream-metrics tls-min-version tls-cipher-suites
    metrics-endpoint-auth metrics-client-ca-file metrics-cert-dir allow-experimental-plugins model-server-metrics-port model-server-metrics-path
    model-server-metrics-scheme model-server-metrics-https-insecure-skip-verify destination-endpoint-hint-key
    destination-endpoint-hint-metadata-namespace
    """.split()
)


def parse(arguments: Sequence[str]) -> ServeOptions:
    """The options of one command line. Raises ConfigError that names the flag and the remedy."""
    values: dict[str, object] = {}
    for name, text in _pairs(arguments):
        flag = FLAGS[name]
        try:
            values[name.replace("-", "_")] = flag.parse(text)
        except ValueError as error:
            raise ConfigError(f"--{name}: {text!r}: {error}") from None
    options = ServeOptions(**values)  # type: ignore[arg-type]  # FLAGS and the fields are held together by a test
    if bool(options.config_file) == bool(options.config_text):
        problem = "both are given, which one counts?" if options.config_file else "neither is given; epp has no built-in configuration yet"
        raise ConfigError(f"--config-file, --config-text: {problem}")
    if options.secure_serving:
        raise ConfigError("--secure-serving: TLS is not supported yet; pass --secure-serving=false to serve plaintext")
    return options


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Flag names (known ones only) and their texts."""
    rest = iter([argument for argument in arguments if argument.strip()])
    for argument in rest:
        if not argument.startswith("-") or argument in ("-", "--"):
            raise ConfigError(f"{argument!r}: not a flag; flags look like --grpc-port=9002 (booleans need the '=': --secure-serving=false)")
        written, equals, text = argument.lstrip("-").partition("=")
        name = _kebab(written)
        if name not in FLAGS:
            raise ConfigError(_unknown(written, name))
        if not equals:
            text = "true" if FLAGS[name].parse is _parse_bool else _next(rest, name)
        yield name, text


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
    """The flags, a line each."""
    width = max(map(len, FLAGS)) + 4
    return "\n".join(f"  {'--' + flag.name:<{width}}{flag.help}" for flag in FLAGS.values())


assert {flag.replace("-", "_") for flag in FLAGS} == {field.name for field in fields(ServeOptions)}

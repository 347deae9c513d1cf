"""The command line: Go syntax, llm-d's names, clear refusals, and the argument lists of those who start pickers."""

import json
import ssl
from dataclasses import fields
from pathlib import Path

import pytest

from epp.config import flag_values
from epp.config.flags import FLAGS, NOT_YET, ServeOptions, parse, usage
from epp.errors import ConfigError

MINIMUM = ["--config-text=x"]
ARGUMENT_LISTS = Path(__file__).parents[2] / "data" / "args"


def changed(options: ServeOptions) -> dict[str, object]:
    """The options that differ from their defaults."""
    default = ServeOptions()
    return {field.name: value for field in fields(options) if (value := getattr(options, field.name)) != getattr(default, field.name)}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--grpc-port=9"], {"grpc_port": 9}),
        (["--grpc-port", "9"], {"grpc_port": 9}),
        (["-grpc-port=9"], {"grpc_port": 9}),
        (["-grpcPort", "9"], {"grpc_port": 9}),
        (["--grpc-port=9", "--grpc-port=10"], {"grpc_port": 10}),
        (["", "--grpc-port=9", " "], {"grpc_port": 9}),
        (["--disable-endpoint-subset-filter"], {"disable_endpoint_subset_filter": True}),
        (["--disable-endpoint-subset-filter", "--v=4"], {"disable_endpoint_subset_filter": True, "v": 4}),
        (["--secure-serving=F"], {"secure_serving": False}),
        (["--refresh-metrics-interval=100ms"], {"refresh_metrics_interval": 0.1}),
        (["--grpc-port=9", "--", ""], {"grpc_port": 9}),
        (["--zap-encoder=JSON", "--zap-log-level=Info"], {"zap_encoder": "json", "zap_log_level": "info"}),
        (["--v=-1"], {}),
        (["--v=+4"], {"v": 4}),
        (["--max-request-body", "10MiB"], {"max_request_body": 10 << 20}),
        (["--tls-cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"], {"tls_cipher_suites": ("ECDHE-RSA-AES128-GCM-SHA256",)}),
        (["--tls-cipher-suites= ,"], {}),
        (["--ha-enable-leader-election=false"], {}),
        (["-haEnableLeaderElection=F"], {}),
    ],
)
def test_go_syntax_is_understood(arguments: list[str], expected: dict[str, object]) -> None:
    """One or two dashes, '=' or space, camelCase, bare booleans, empty arguments, last wins."""
    assert changed(parse([*MINIMUM, *arguments])) == {"config_text": "x", "pool_namespace": "default"} | expected


@pytest.mark.parametrize("path", sorted(ARGUMENT_LISTS.glob("*.json")), ids=lambda path: path.stem)
def test_argument_lists_in_the_field(path: Path) -> None:
    """What each version of KServe and the charts pass is understood as they mean it; what has no effect here is told."""
    fixture = json.loads(path.read_text())
    options = changed(parse(fixture["arguments"], fixture["environment"]))
    assert list(options.pop("notes", ())) == fixture["notes"]  # type: ignore[call-overload]  # a tuple
    expected = {name: tuple(value) if isinstance(value, list) else value for name, value in fixture["options"].items()}
    assert options == {"pool_namespace": "default"} | expected


def test_an_empty_value_is_a_value() -> None:
    """Charts write one to switch something off; the flag after it is not taken for it, and an empty namespace is none."""
    options = parse([*MINIMUM, "--lora-info-metric", "", "--v", "4", "--pool-namespace", ""], {"NAMESPACE": "serving"})
    assert (options.lora_info_metric, options.v, options.pool_namespace) == ("", 4, "serving")


@pytest.mark.parametrize(
    "flag",
    [
        "grpc-max-recv-msg-size",
        "grpc-max-send-msg-size",
        "tls-min-version",
        "tls-cipher-suites",
        "cert-path",
        "endpoint-selector",
        "endpoint-target-ports",
        "model-server-metrics-scheme",
        "model-server-metrics-path",
    ],
)
def test_an_empty_value_is_the_default_where_llm_d_s_is_empty(flag: str) -> None:
    """So a chart that passes on what nobody has set starts, and nothing is said about it."""
    assert changed(parse([*MINIMUM, f"--{flag}="])) == changed(parse(MINIMUM))


def test_target_ports_that_repeat_count_once() -> None:
    """As with llm-d, in the order they are given."""
    arguments = ["--endpoint-selector=app=vllm", "--endpoint-target-ports=8001,8000,8001,1,2,3,4,5,6"]
    assert parse([*MINIMUM, *arguments]).endpoint_target_ports == (8001, 8000, 1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("default", "")),
        ({"NAMESPACE": "serving", "POD_NAME": "epp-0"}, ("serving", "epp-0")),
        ({"NAMESPACE": ""}, ("default", "")),
    ],
)
def test_the_environment_fills_in(environment: dict[str, str], expected: tuple[str, str]) -> None:
    """NAMESPACE and POD_NAME count where no flag says otherwise."""
    options = parse(MINIMUM, environment)
    assert (options.pool_namespace, options.instance_id) == expected
    options = parse([*MINIMUM, "--pool-namespace=flag", "--instance-id=me"], environment)
    assert (options.pool_namespace, options.instance_id) == ("flag", "me")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*MINIMUM, "--grpc-prot=9"], "--grpc-prot: unknown flag, did you mean --grpc-port?"),
        ([*MINIMUM, "--ha-enable-leader-election"], "--ha-enable-leader-election: known, not supported yet"),
        ([*MINIMUM, "--ha-enable-leader-election=maybe"], "--ha-enable-leader-election: known, not supported yet"),
        ([*MINIMUM, "--", "--v=4"], "'--v=4': nothing is a flag after '--'; put flags before it"),
        ([*MINIMUM, "---v=4"], "'---v=4': not a flag"),
        ([*MINIMUM, "-"], "'-': not a flag"),
        ([*MINIMUM, "--=4"], "'--=4': not a flag"),
        ([*MINIMUM, "--grpc-port=70000"], "--grpc-port: '70000': expected a port"),
        ([*MINIMUM, "--grpc-max-recv-msg-size=0"], "--grpc-max-recv-msg-size: '0': must be between 1 byte and 2147483647 bytes"),
        ([*MINIMUM, "--grpc-max-recv-msg-size=2Gi"], "--grpc-max-recv-msg-size: '2Gi': must be between 1 byte and 2147483647 bytes"),
        ([*MINIMUM, "--max-request-body=0"], "--max-request-body: '0': must be between 1 byte and"),
        ([*MINIMUM, "--drain-timeout=30"], "--drain-timeout: '30': must be a duration"),
        ([*MINIMUM, "--drain-timeout=-1s"], "--drain-timeout: '-1s': must not be negative"),
        ([*MINIMUM, "--metrics-staleness-threshold=0s"], "--metrics-staleness-threshold: '0s': must be above 0s"),
        ([*MINIMUM, "--v"], "--v: needs a value"),
        ([*MINIMUM, "--v=loud"], "--v: 'loud': expected a whole number"),
        ([*MINIMUM, "--transport=quic"], "--transport: 'quic': expected fast or grpc"),
        ([*MINIMUM, "--disable-endpoint-subset-filter", "false"], "'false': not a flag"),
        ([*MINIMUM, "--secure-serving=maybe"], "--secure-serving: 'maybe': expected true or false"),
        ([*MINIMUM, "--tls-min-version=1.2"], "expected VersionTLS10, VersionTLS11, VersionTLS12 or VersionTLS13"),
        ([*MINIMUM, "--zap-log-level=loud"], "--zap-log-level: 'loud': expected debug, info, warn, error or panic"),
        ([*MINIMUM, "--destination-endpoint-hint-key=x-mine"], "the protocol has fixed this name"),
        ([*MINIMUM, "--enable-cert-reload"], "--enable-cert-reload: there is nothing to reload without --cert-path"),
        ([*MINIMUM, "--metrics-cert-dir=/x"], "--metrics-cert-dir, --metrics-client-ca-file: give both"),
        ([*MINIMUM, "--metrics-client-ca-file=/x"], "--metrics-cert-dir, --metrics-client-ca-file: give both"),
        ([*MINIMUM, "--pool-name=a", "--endpoint-selector=b", "--endpoint-target-ports=1"], "--pool-name, --endpoint-selector: both"),
        ([*MINIMUM, "--endpoint-selector=b"], "--endpoint-selector, --endpoint-target-ports: give both or none"),
        ([*MINIMUM, "--endpoint-selector=b", "--endpoint-target-ports=1,2,3,4,5,6,7,8,9"], "expected 1 to 8 ports"),
        ([], "neither is given"),
        ([*MINIMUM, "--config-file=y"], "both are given"),
    ],
)
def test_a_wrong_command_line_is_refused_with_its_remedy(arguments: list[str], sentence: str) -> None:
    """The flag is named, and what to do about it."""
    with pytest.raises(ConfigError) as refusal:
        parse(arguments)

    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    ("argument", "note"),
    [
        ("--tracing=true", "--tracing=true: there are no traces yet"),
        ("--tracing=false", None),
        ("--health-checking=false", "--health-checking=false: health is always served, on both ports"),
        ("--health-checking", None),
        (
            "--metrics-endpoint-auth=true",
            "--metrics-endpoint-auth=true: /metrics asks for no token; to protect it give --metrics-cert-dir and --metrics-client-ca-file",
        ),
        ("--allow-experimental-plugins", "--allow-experimental-plugins=true: no plugin here is experimental"),
        ("--refresh-metrics-interval=1ms", "--refresh-metrics-interval=1ms: raised to the smallest that there is, 50ms"),
        ("--refresh-metrics-interval=50ms", None),
        ("--tls-min-version=VersionTLS10", "--tls-min-version=VersionTLS10: HTTP/2 takes TLS 1.2 at least, older versions are not offered"),
        ("--tls-min-version=VersionTLS12", None),
        ("--pool-namespace=serving", "--pool-namespace: without effect, endpoints come from a file"),
        ("--pool-name=serving", None),
    ],
)
def test_what_has_no_effect_is_told(argument: str, note: str | None) -> None:
    """A flag that asks for something else than what holds here is accepted, and a line in the log says so."""
    assert parse([*MINIMUM, argument]).notes == (() if note is None else (note,))


def test_suites_without_tls_1_2_are_told() -> None:
    """As in Go there is no TLS 1.2 then; a line in the log says so."""
    options = parse([*MINIMUM, "--tls-cipher-suites=TLS_AES_128_GCM_SHA256"])
    assert options.tls_min_version is ssl.TLSVersion.TLSv1_3
    assert options.notes == ("--tls-cipher-suites=TLS_AES_128_GCM_SHA256: none of them is for TLS 1.2, which is not offered then",)


def test_a_certificate_without_tls_is_told() -> None:
    """Whoever turns TLS off and asks for a certificate gets one line that says what counts."""
    arguments = ["--secure-serving=false", "--cert-path=/tls", "--enable-cert-reload", "--tls-cipher-suites="]
    assert parse([*MINIMUM, *arguments]).notes == ("--cert-path, --enable-cert-reload: without effect with --secure-serving=false",)
    assert parse([*MINIMUM, "--secure-serving=false", "--enable-cert-reload=false"]).notes == ()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10", 10),
        ("10MiB", 10 << 20),
        ("25MB", 25_000_000),
        ("4Gi", 4 << 30),
        ("5k", 5000),
        ("1.5Mi", 3 << 19),
        ("1.5", 2),
        ("2Ti", 2 << 40),
        ("1e6", 1_000_000),
        ("64b", 64),
    ],
)
def test_sizes_are_quantities(text: str, size: int) -> None:
    """Kubernetes quantities, with or without the trailing B."""
    assert flag_values.size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "MiB", "10 MB", "10MMB", "10mib", "1e999999999", "٣"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """Digits, and a unit that Kubernetes has."""
    with pytest.raises(ValueError, match="expected a size"):
        flag_values.size(text)


def test_help_lists_every_flag_that_works_and_none_that_does_not() -> None:
    """--help is the truth."""
    lines = usage()

    assert all(f"  --{name} " in lines for name in FLAGS)
    assert not any(f"  --{name} " in lines for name in NOT_YET)


def test_the_page_about_flags_is_complete() -> None:
    """docs/flags.md says of each flag what --help says."""
    page = (Path(__file__).parents[3] / "docs" / "flags.md").read_text()
    assert [flag.name for flag in FLAGS.values() if f"| `--{flag.name}` | {flag.help} |" not in page] == []

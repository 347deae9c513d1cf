"""The command line: Go syntax, llm-d's names, clear refusals."""

import pytest

from epp.config.flags import NOT_YET, ServeOptions, parse, parse_bytes, usage
from epp.errors import ConfigError

MINIMUM = ["--config-text=x", "--secure-serving=false"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--grpc-port=9"], ServeOptions(grpc_port=9)),
        (["--grpc-port", "9"], ServeOptions(grpc_port=9)),
        (["-grpc-port=9"], ServeOptions(grpc_port=9)),
        (["-grpcPort", "9"], ServeOptions(grpc_port=9)),
        (["--grpc-port=9", "--grpc-port=10"], ServeOptions(grpc_port=10)),
        (["", "--grpc-port=9", " "], ServeOptions(grpc_port=9)),
        (["--disable-endpoint-subset-filter"], ServeOptions(disable_endpoint_subset_filter=True)),
        (["--disable-endpoint-subset-filter", "--v=4"], ServeOptions(disable_endpoint_subset_filter=True, v=4)),
        (["--refresh-metrics-interval=100ms"], ServeOptions(refresh_metrics_interval=0.1)),
        (["--refresh-metrics-interval=1ms"], ServeOptions(refresh_metrics_interval=0.05)),
        (["--max-request-body", "10MiB"], ServeOptions(max_request_body=10 << 20)),
    ],
)
def test_go_syntax_is_understood(arguments: list[str], expected: ServeOptions) -> None:
    """One or two dashes, '=' or space, camelCase, bare booleans, empty arguments, last wins."""
    options = parse([*MINIMUM, *arguments])

    assert {name: getattr(options, name) for name in ServeOptions.__slots__} == {
        name: getattr(expected, name) for name in ServeOptions.__slots__
    } | {"config_text": "x", "secure_serving": False}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*MINIMUM, "--grpc-prot=9"], "--grpc-prot: unknown flag, did you mean --grpc-port?"),
        ([*MINIMUM, "--tracing=false"], "--tracing: known, not supported yet"),
        ([*MINIMUM, "--grpc-port=70000"], "--grpc-port: '70000': expected a port"),
        ([*MINIMUM, "--drain-timeout=30"], "--drain-timeout: '30': must be a duration"),
        ([*MINIMUM, "--drain-timeout=-1s"], "--drain-timeout: '-1s': must not be negative"),
        ([*MINIMUM, "--v"], "--v: needs a value"),
        ([*MINIMUM, "--disable-endpoint-subset-filter", "false"], "'false': not a flag"),
        (["--secure-serving=false"], "neither is given"),
        ([*MINIMUM, "--config-file=y"], "both are given"),
        (["--config-text=x"], "pass --secure-serving=false"),
    ],
)
def test_a_wrong_command_line_is_refused_with_its_remedy(arguments: list[str], sentence: str) -> None:
    """The flag is named, and what to do about it."""
    with pytest.raises(ConfigError) as refusal:
        parse(arguments)

    assert sentence in str(refusal.value)


@pytest.mark.parametrize(("text", "size"), [("10", 10), ("10MiB", 10 << 20), ("25MB", 25_000_000), ("4Gi", 4 << 30), ("5k", 5000)])
def test_sizes_are_quantities(text: str, size: int) -> None:
    """Kubernetes quantities, with or without the trailing B."""
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1.5", "MiB", "10 MB", "10MMB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """Whole, non-negative numbers only."""
    with pytest.raises(ValueError, match="expected a size"):
        parse_bytes(text)


def test_help_lists_every_flag_that_works_and_none_that_does_not() -> None:
    """--help is the truth."""
    lines = usage()

    assert all(f"--{name.replace('_', '-')} " in lines for name in ServeOptions.__slots__)
    assert not any(f"--{name} " in lines for name in NOT_YET)

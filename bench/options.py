"""The command line of `make bench ARGS="..."`. Pure: text to one frozen record."""

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.records import Work
from bench.rig import CONFIG, ENDPOINTS_FILE, GRPC_PORT, HEALTH_PORT, METRICS_PORT, Picker

TRANSPORTS = ("fast", "grpc")
BLOCKS = ("steps", "index", "requests", "answers", "events", "direct", "memory")


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure, and for how long."""

    output: Path
    blocks: Sequence[str]
    transports: Sequence[str]
    peers: Sequence[Picker]
    compiled: Path | None
    """Where the compiled build is; None: it does not take part."""
    quick: bool
    rounds: int
    warm_s: float
    seconds: float
    answer_seconds: float
    streams: int
    """Open at a time when memory is measured."""


def parse(arguments: Sequence[str]) -> Options:
    """Exits with 2 and a sentence where the arguments mean nothing."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.peer is None and (args.peer_config or args.peer_port or args.peer_tls):
        parser.error("--peer-...: there is no --peer")
    return Options(
        output=args.output,
        blocks=args.only,
        transports=args.transports,
        peers=[] if args.peer is None else [_peer(args)],
        compiled=args.compiled,
        quick=args.quick,
        rounds=args.rounds,
        warm_s=0.2 if args.quick else 0.5,
        seconds=args.seconds or (0.7 if args.quick else 2.0),
        answer_seconds=0.7 if args.quick else 2.0,
        streams=2000 if args.quick else 5000,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description="What epp costs a request, beside the Envoy it serves.")
    parser.add_argument("--quick", action="store_true", help="shorter samples, no TLS rows: about a minute and a half")
    parser.add_argument("--output", type=Path, default=Path("build/bench"), help="folder for results.json, chart.svg and logs")
    parser.add_argument("--only", type=_words(BLOCKS), default=BLOCKS, metavar="BLOCK,...", help=f"of {', '.join(BLOCKS)}")
    parser.add_argument("--transports", type=_words(TRANSPORTS), default=TRANSPORTS, metavar="NAME,...", help="of fast, grpc")
    parser.add_argument("--compiled", type=Path, metavar="FOLDER", help="the compiled build takes part too (make compiled)")
    parser.add_argument("--rounds", type=_count, default=2, help="samples of each row, taken in turns (default 2)")
    parser.add_argument("--seconds", type=_seconds, help="length of a sample (default 2, with --quick 0.7)")
    peer = parser.add_argument_group("a peer", "another endpoint picker in the same run")
    peer.add_argument(
        "--peer",
        metavar="COMMAND",
        help=f"its command line; {GRPC_PORT}, {HEALTH_PORT}, {METRICS_PORT}, {ENDPOINTS_FILE} and {CONFIG} are filled in",
    )
    peer.add_argument("--peer-name", default="peer", help="what to call it")
    peer.add_argument("--peer-port", type=_count, default=0, help="the ext_proc port it always listens on, if it takes no {port}")
    peer.add_argument("--peer-tls", action="store_true", help="its ext_proc port speaks TLS")
    peer.add_argument(
        "--peer-config",
        action="append",
        type=_config,
        default=[],
        metavar="WORK=FILE",
        help="its own configuration for transport, default or precise; without any it is given epp's",
    )
    return parser


def _peer(args: argparse.Namespace) -> Picker:
    return Picker(args.peer_name, shlex.split(args.peer), args.peer_tls, dict(args.peer_config) or None, args.peer_port)


def _words(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def words(text: str) -> tuple[str, ...]:
        found = tuple(word.strip() for word in text.split(",") if word.strip())
        if unknown := [word for word in found if word not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return found

    return words


def _config(text: str) -> tuple[Work, Path]:
    work, _, file = text.partition("=")
    try:
        return Work(work), Path(file).resolve(strict=True)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{work!r} is none of {', '.join(each.value for each in Work)}") from None
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{file}: {error.strerror}") from None


def _count(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text) < 1 << 16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 on")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if 0.1 <= seconds <= 600:
        return seconds
    raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, 0.1 to 600")

"""`python -m tests.soak`, which `make soak` runs: many requests through a real Envoy, and nothing may be lost or left behind.

Exit codes: 0 everything holds; 1 something does not, or did not run; 2 bad arguments; 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Final

import uvloop

from epp.demo.progress import Progress
from epp.testing.bootstrap import Responses
from tests.load_run import exit_code
from tests.soak import verdict
from tests.soak.run import Options, soak

TRANSPORTS: Final = ("fast", "grpc")
FULL: Final = 200_000
SHORT: Final = 20_000
FEWEST: Final = 10_000
"""Below that some kind of request may not come up at all."""


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    options = _parse(arguments)

    def play(progress: Progress) -> tuple[str, bool]:
        reports = [uvloop.run(soak(options, transport, progress)) for transport in options.transports]
        return verdict.render(reports), all(check.passed for report in reports for check in verdict.checks(report))

    return exit_code("soak", play)


def _parse(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="make soak", description="Many requests through a real Envoy: none lost, nothing left behind.")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--requests", type=_count, default=FULL, help=f"for each transport, {FEWEST:,} or more (default {FULL:,})")
    size.add_argument("--short", action="store_const", dest="requests", const=SHORT, help=f"{SHORT:,} requests")
    parser.add_argument("--transport", choices=(*TRANSPORTS, "both"), default="both", help="which of them (default both)")
    parser.add_argument("--seed", type=_seed, default=1, help="the same seed plays the same requests (default 1)")
    parser.add_argument("--clients", type=_clients, default=128, help="requests under way at a time (default 128)")
    modes = [mode.value for mode in Responses]
    parser.add_argument("--responses", choices=modes, default=modes[0], help=f"how the end of an answer is learnt (default {modes[0]})")
    parser.add_argument("--tls", action="store_true", help="between Envoy and the picker")
    args = parser.parse_args(arguments)
    transports = TRANSPORTS if args.transport == "both" else (args.transport,)
    return Options(args.requests, transports, args.seed, args.clients, Responses(args.responses), args.tls)


def _count(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) >= FEWEST:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, {FEWEST} or more")


def _clients(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 1000:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 1 to 1000")


def _seed(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

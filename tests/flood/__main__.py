"""`python -m tests.flood`, which `make flood` runs: one publisher sends garbage, and nobody else may notice.

Exit codes: 0 everything holds; 1 something does not, or did not run; 2 bad arguments; 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Final

import uvloop

from epp.demo.progress import Progress
from tests.flood import garbage, verdict
from tests.flood.publisher import ALL, SMALL
from tests.flood.run import ALLOWED_A_SECOND, Flood, run
from tests.load_run import exit_code

SECONDS: Final = 10.0


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make flood", description="One publisher sends garbage; nobody else may notice.")
    parser.add_argument("--short", action="store_true", help="all kinds of garbage in turns, not each by itself as well")
    floods = _floods(short=parser.parse_args(arguments).short)

    def play(progress: Progress) -> tuple[str, bool]:
        phases = uvloop.run(run(floods, progress))
        return verdict.render(phases), all(check.passed for phase in phases for check in verdict.checks(phase))

    return exit_code("flood", play)


def _floods(*, short: bool) -> Sequence[Flood]:
    mixed = [
        Flood("warming up", "", 3.0),
        Flood("nothing", "", 5.0 if short else SECONDS),
        Flood("everything, as fast as it goes", ALL, SECONDS),
        Flood("small things, as fast as it goes", SMALL, SECONDS),
        Flood("small things, as many as are allowed", SMALL, SECONDS, ALLOWED_A_SECOND),
    ]
    return mixed if short else [*mixed, *(Flood(kind, kind, SECONDS) for kind in garbage.kinds())]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

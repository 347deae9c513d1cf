"""`python -m bench`, which `make bench` runs: measure, print, write results.json and chart.svg.

Exit codes: 0 everything ran, whatever the figures; 1 something did not; 2 bad arguments; 130 interrupted.
"""

import sys
from pathlib import Path

import uvloop

from bench import chart, options, results, terminal
from bench.session import Bench
from epp.demo.progress import Progress
from epp.errors import EppError


def main() -> int:
    """Returns the exit code."""
    wanted = options.parse(sys.argv[1:])
    progress = Progress()
    try:
        wanted.output.mkdir(parents=True, exist_ok=True)
        measured = uvloop.run(Bench(wanted, progress).run())
    except (EppError, OSError) as error:
        progress.clear()
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress.clear()
        print("interrupted; every process has ended", file=sys.stderr)
        return 130
    print(terminal.render(measured), end="")
    for name, content in (("results.json", results.encode(measured)), ("chart.svg", chart.render(measured).encode())):
        Path(wanted.output / name).write_bytes(content)
        print(f"wrote {wanted.output / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

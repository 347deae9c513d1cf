"""Writes envoy/*.yaml from epp.testing.bootstrap; with --check only says which of them differ (exit code 1).

Run by hand after a change of the bootstraps (`make envoy`); a test holds the files to what this would write.
"""

import io
import sys
from pathlib import Path

from ruamel.yaml import YAML

from epp.testing.bootstrap import SHIPPED, Json

FOLDER = Path(__file__).parents[1] / "envoy"
HEADER = "# {name}: see README.md for what it is for. Written by tools/envoy.py; change addresses and ports to yours.\n"


def text(name: str, bootstrap: Json) -> str:
    """The content of one file."""
    stream = io.StringIO()
    writer = YAML()
    writer.default_flow_style = False
    writer.width = 140
    # An alias would save lines and cost readers.
    writer.representer.ignore_aliases = lambda _: True
    writer.dump(bootstrap, stream)
    return HEADER.format(name=name) + stream.getvalue()


def main() -> int:
    stale = 0
    for name, bootstrap in SHIPPED.items():
        file, wanted = FOLDER / name, text(name, bootstrap)
        if file.exists() and file.read_text() == wanted:
            continue
        if "--check" in sys.argv[1:]:
            print(f"{file.relative_to(FOLDER.parent)} is not what tools/envoy.py writes: run `make envoy`", file=sys.stderr)
            stale = 1
        else:
            file.write_text(wanted)
    return stale


if __name__ == "__main__":
    sys.exit(main())

"""Writes epp/_proto from proto/, or checks with --check that it is what the definitions say.

`make proto` and `make check` call it. protoc comes from grpcio-tools; its version is pinned in constraints.txt, because
the generated files name it. The files of proto/ appear to protoc under the path epp/_proto, so that the generated
modules import each other as epp._proto.<name>_pb2.
"""

import argparse
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "proto"
PACKAGE = Path("epp") / "_proto"


def generate(root: Path) -> None:
    """Compile every file of proto/ into `root`/epp/_proto; stale generated files there are removed first."""
    (root / PACKAGE).mkdir(parents=True, exist_ok=True)
    for stale in (root / PACKAGE).glob("*_pb2.py*"):
        stale.unlink()
    arguments = [
        "protoc",
        f"--proto_path={PACKAGE.as_posix()}={SOURCES}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--python_out={root}",
        f"--pyi_out={root}",
        *sorted((PACKAGE / source.name).as_posix() for source in SOURCES.glob("*.proto")),
    ]
    if protoc.main(arguments) != 0:
        sys.exit("proto: protoc refused the files of proto/, see above")


def differences(left: Path, right: Path) -> list[str]:
    """Names of generated files that are missing on one side or not equal."""
    contents = [{path.name: path.read_bytes() for path in (side / PACKAGE).glob("*_pb2.py*")} for side in (left, right)]
    return sorted(name for name in contents[0].keys() | contents[1].keys() if contents[0].get(name) != contents[1].get(name))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="generate epp/_proto from proto/")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when epp/_proto is not what proto/ generates")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        if stale := differences(ROOT, Path(scratch)):
            sys.exit(f"proto: {PACKAGE} is not what proto/ generates ({', '.join(stale)}): run `make proto` and commit the result")


if __name__ == "__main__":
    main()

"""What the README shows works as it is shown, and what the documents name exists."""

import re
import shlex
from pathlib import Path

import pytest

from epp import config
from epp.config import flags
from epp.scheduling import registry
from epp.sources.file import parse_endpoints

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_configuration_of_the_readme_is_valid() -> None:
    """Both YAML files load as they stand there."""
    endpoints, picker = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)

    assert len(parse_endpoints(endpoints, "README").endpoints) == 2
    effective = config.load(picker, "README", registry.load())
    assert effective.file_discovery is not None
    assert effective.token_producers


def test_the_command_line_of_the_readme_is_accepted() -> None:
    """Every flag shown exists."""
    shown = re.findall(r"^epp (--.*)$", README, re.MULTILINE)

    assert shown
    for line in shown:
        flags.parse(shlex.split(line, comments=True))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "envoy/README.md"])
def test_targets_and_files_that_documents_name_exist(document: str) -> None:
    """`make X` is a target, and a path in backquotes is there."""
    text = (ROOT / document).read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"`make ([a-z-]+)`", text)) <= targets
    paths = re.findall(r"`((?:epp|tests|envoy|docs|tools|proto)/[\w./-]*)`", text)
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def test_every_room_has_its_row_in_the_architecture() -> None:
    """A new room is not finished before it is described."""
    rooms = {path.name for path in (ROOT / "epp").iterdir() if path.name.isidentifier() and not path.name.startswith("_")}

    assert {room for room in rooms if f"`epp/{room}/`" not in ARCHITECTURE} == set()

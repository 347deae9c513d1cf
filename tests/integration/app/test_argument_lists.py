"""Whoever swaps the image keeps the arguments: each list in the field starts a picker, given endpoints from a file."""

import json
from pathlib import Path

import pytest

from epp.testing.picker import PickerProcess
from tests.integration.app.rig import EXT_PROC, config, health
from tests.integration.tls.test_certificates import A, write

LISTS = sorted((Path(__file__).parents[2] / "data" / "args").glob("*.json"))
SECURE = "--secure-serving=true"  # the default; PickerProcess says otherwise
CONFIGURATIONS = ("--config-text", "--configText", "--config-file", "--configFile", "-configFile")


def arguments(path: Path, configuration: str, folder: Path) -> list[str]:
    """The list of a fixture with our configuration and certificates; its ports are overridden."""
    words: list[str] = json.loads(path.read_text())["arguments"]
    for flag in CONFIGURATIONS:
        if flag in words:
            words[words.index(flag) : words.index(flag) + 2] = []
    words = [word for word in words if not word.startswith("--config-file=")]
    for mounted in ("/var/run/kserve/tls", "/etc/ssl/certs"):
        words = [word.replace(mounted, str(folder)) for word in words]
    return [*words, f"--config-text={configuration}"]


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
async def test_it_starts(endpoints: Path, tmp_path: Path, path: Path) -> None:
    """Ready on its health port, and again on the other with or without TLS, as the arguments say."""
    write(tmp_path / "tls", A.certificate, A.key)
    plugins: tuple[dict[str, object], ...] = (
        {"type": "metrics-data-source"},
        {"type": "core-metrics-extractor"},
        {"type": "random-picker"},
    )
    words = arguments(path, config(endpoints, *plugins), tmp_path / "tls")
    async with PickerProcess([SECURE, *words]) as picker:
        tls = "--secure-serving=false" not in words
        assert await health(picker.grpc_port, EXT_PROC, tls=tls) == {EXT_PROC: "SERVING"}
        assert "Traceback" not in picker.log()

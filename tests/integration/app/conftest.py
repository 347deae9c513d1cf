"""What every test of the process starts from."""

from pathlib import Path

import pytest


@pytest.fixture
def endpoints(tmp_path: Path) -> Path:
    """An endpoints file with one endpoint nobody listens on."""
    file = tmp_path / "endpoints.yaml"
    file.write_text('endpoints: [{name: a, address: 127.0.0.1, port: "8000"}]')
    return file

"""The command line of the bench."""

from pathlib import Path

import pytest

from bench import options
from bench.records import Work


def test_a_peer_is_a_command_line_with_placeholders() -> None:
    """It joins the run with epp's configurations."""
    (peer,) = options.parse(["--peer", "go-epp --port={port} -c '{config}'", "--peer-name", "go"]).peers

    assert peer.name == "go"
    assert peer.command == ["go-epp", "--port={port}", "-c", "{config}"]
    assert all(peer.does(work) for work in Work)


def test_a_peer_with_configurations_of_its_own_does_only_that_work(tmp_path: Path) -> None:
    """What it has no configuration for is left out."""
    file = tmp_path / "config.yaml"
    file.write_text("plugins: []")
    (peer,) = options.parse(["--peer", "x {config}", "--peer-config", f"default={file}"]).peers

    assert [work for work in Work if peer.does(work)] == [Work.DEFAULT]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peer-port", "9002"], "there is no --peer"),
        (["--only", "requests,nonsense"], "'nonsense' is none of steps, index, requests"),
        (["--rounds", "0"], "from 1 on"),
        (["--seconds", "fast"], "expected seconds"),
        (["--peer", "x", "--peer-config", "warm=x.yaml"], "'warm' is none of transport, default, precise"),
        (["--peer", "x", "--peer-config", "default=/nonexistent"], "No such file"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With exit code 2 and the reason."""
    with pytest.raises(SystemExit) as exit_:
        options.parse(arguments)

    assert exit_.value.code == 2
    assert said in capsys.readouterr().err

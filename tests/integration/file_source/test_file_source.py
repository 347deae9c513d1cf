"""The endpoints file on a real disk: rewritten, renamed over, swapped by symlink, broken and mended while it is watched."""

import asyncio
import json
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from epp.domain import Endpoint
from epp.errors import ConfigError
from epp.sources.file import FileDiscovery
from epp.testing.waiting import eventually

POLL_S = 0.01


def text(port: int, count: int = 2) -> str:
    """A pool whose endpoints all have this port, as JSON: no part of it is valid but the whole."""
    return json.dumps({"endpoints": [{"name": f"n{i}", "address": "10.0.0.1", "port": port} for i in range(count)]})


def rewrite(path: Path, content: str) -> None:
    """In place, as `echo >` does it."""
    path.write_text(content)


def move(old: Path, new: Path) -> None:
    """As `mv` does it."""
    old.rename(new)


class Seen:
    """The pools a discovery announced, as (port, number of endpoints)."""

    def __init__(self) -> None:
        self.pools: list[tuple[int, int]] = []

    def __call__(self, endpoints: Sequence[Endpoint]) -> None:
        ports = {endpoint.port for endpoint in endpoints}
        assert len(ports) <= 1, "a mixture of two files"
        self.pools.append((ports.pop() if ports else 0, len(endpoints)))

    async def reach(self, count: int) -> None:
        """Wait until so many pools were announced."""
        await eventually(lambda: len(self.pools) >= count)


@asynccontextmanager
async def watched(path: Path, seen: Seen) -> AsyncIterator[None]:
    """The file loaded, and followed until the end of the block."""
    discovery = FileDiscovery(path, watch=True, on_endpoints=seen, poll_interval_s=POLL_S)
    discovery.load()
    task = asyncio.create_task(discovery.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "endpoints.yaml"
    file.write_text(text(1))
    return file


async def test_a_rewrite_in_place_is_seen_whole(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Emptied, half written, cut in the middle: each long enough to be looked at, none becomes the pool."""
    seen = Seen()
    async with watched(path, seen):
        whole = text(2, 500)
        with path.open("w") as file:
            await eventually(lambda: "the file is empty" in caplog.text)
            for half in (whole[:5000], whole[5000:]):
                assert seen.pools == [(1, 2)]
                file.write(half)
                file.flush()
                if half is not whole[5000:]:
                    await eventually(lambda: "not valid YAML or JSON" in caplog.text)
        await seen.reach(2)
    assert seen.pools == [(1, 2), (2, 500)]


async def test_rewrites_without_pause_never_show_a_part(path: Path) -> None:
    """A writer that is at work all the time: whatever is announced is one of its files, and the last one always is."""
    seen, rounds = Seen(), 60
    finished = threading.Event()

    def write() -> None:
        for port in range(2, rounds + 1):
            with path.open("w") as file:
                whole = text(port, 50)
                for start in range(0, len(whole), 700):
                    file.write(whole[start : start + 700])
                    file.flush()
        finished.set()

    async with watched(path, seen):
        thread = threading.Thread(target=write)
        thread.start()
        await eventually(lambda: finished.is_set() and seen.pools[-1] == (rounds, 50))
        thread.join()
    assert seen.pools[0] == (1, 2)
    assert all(count == 50 for _, count in seen.pools[1:])
    ports = [port for port, _ in seen.pools]
    assert ports == sorted(set(ports))


async def test_a_rename_over_the_file_is_followed_again_and_again(path: Path) -> None:
    """The way careful programs write."""
    seen = Seen()
    async with watched(path, seen):
        for port in (2, 3):
            new = path.with_suffix(".new")
            new.write_text(text(port))
            new.replace(path)
            await seen.reach(port)
    assert seen.pools == [(1, 2), (2, 2), (3, 2)]


async def test_a_configmap_swap_is_followed_while_the_old_folder_is_still_there(tmp_path: Path) -> None:
    """Kubernetes points ..data to a new folder; the file's own link does not change."""
    for port in (1, 2):
        folder = tmp_path / f"..version{port}"
        folder.mkdir()
        (folder / "endpoints.yaml").write_text(text(port))
    data, path = tmp_path / "..data", tmp_path / "endpoints.yaml"
    data.symlink_to("..version1")
    path.symlink_to("..data/endpoints.yaml")
    seen = Seen()
    async with watched(path, seen):
        (tmp_path / "..data_tmp").symlink_to("..version2")
        (tmp_path / "..data_tmp").replace(data)
        await seen.reach(2)
    assert seen.pools == [(1, 2), (2, 2)]


async def test_a_mistake_changes_nothing_and_is_one_log_line(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It names file and line; the mended file counts again."""
    seen = Seen()
    async with watched(path, seen):
        rewrite(path, "endpoints:\n- {address: 10.0.0.1, port: 1}\n- {address: nowhere, port: 1}\n")
        await eventually(lambda: "nowhere" in caplog.text)
        rewrite(path, text(2, 3))
        await seen.reach(2)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].startswith(f"{path}: line 3: address `nowhere`")
    assert errors[0].endswith("The pool keeps its 2 endpoints.")
    assert seen.pools == [(1, 2), (2, 3)]


async def test_oddities_of_a_new_file_are_taken_with_a_warning_and_its_line(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A name given twice (the last counts) and a field nobody knows are no reason to keep the old pool."""
    seen = Seen()
    async with watched(path, seen):
        path.write_text(
            "endpoints:\n"
            "  - {name: n, address: 10.0.0.1, port: 5}\n"
            "  - {name: n, address: 10.0.0.2, port: 6}\n"
            "  - {name: o, address: 10.0.0.3, port: 6, wieght: 3}\n"
        )
        await seen.reach(2)

    assert seen.pools == [(1, 2), (6, 2)]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("line 3" in line and "n" in line for line in warnings)
    assert any("line 4" in line and "wieght" in line for line in warnings)


async def test_a_file_that_goes_and_comes_back(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No file is no order to empty the pool; an empty list is."""
    seen = Seen()
    async with watched(path, seen):
        move(path, path.with_suffix(".aside"))
        await eventually(lambda: "no such file" in caplog.text)
        move(path.with_suffix(".aside"), path)
        rewrite(path, text(2))
        await seen.reach(2)
        rewrite(path, '{"endpoints": []}')
        await seen.reach(3)
    assert seen.pools == [(1, 2), (2, 2), (0, 0)]


async def test_without_watching_the_file_is_read_once(path: Path) -> None:
    """`run` returns at once, so it may be a task like any other."""
    seen = Seen()
    discovery = FileDiscovery(path, watch=False, on_endpoints=seen)
    discovery.load()
    await discovery.run()
    assert seen.pools == [(1, 2)]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no such file or directory"),
        (lambda path: path.mkdir(), "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.write_text("endpoints: []\n#" + "x" * (1 << 20)), "larger than 1 MiB"),
        (lambda path: path.write_bytes(b"endpoints:\n- name: \xff\n"), "line 2: not UTF-8"),
        (lambda path: path.write_text("endpoints:\n- {address: x, port: 1}\n"), "line 2: address `x` is not an IP address"),
    ],
)
def test_what_cannot_be_read_at_start_is_fatal_and_said(tmp_path: Path, make: Callable[[Path], object], says: str) -> None:
    """File, reason and remedy in one sentence; nothing is announced."""
    path, seen = tmp_path / "bad.yaml", Seen()
    make(path)
    with pytest.raises(ConfigError) as caught:
        FileDiscovery(path, watch=False, on_endpoints=seen).load()
    assert str(caught.value).startswith(f"{path}: {says}")
    assert seen.pools == []


def test_a_byte_order_mark_is_no_mistake(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Editors write it; and what is likely a slip is said in the log."""
    path.write_bytes(b"\xef\xbb\xbfendpoints:\n- {address: 10.0.0.1, port: 7, weight: 3}\n")
    seen = Seen()
    FileDiscovery(path, watch=False, on_endpoints=seen).load()
    assert seen.pools == [(7, 1)]
    assert f"{path}: line 2: unknown field `weight`" in caplog.text

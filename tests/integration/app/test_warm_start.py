"""A picker that starts beside engines that are warm: it learns what they hold, says how far it got, and what it does not know."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from epp.testing.picker import PickerProcess
from tests.integration.app.rig import config
from tests.integration.kv_events.publisher import Publisher

PRODUCER: dict[str, object] = {"type": "precise-prefix-cache-producer"}


@pytest.fixture
async def pod() -> AsyncIterator[Publisher]:
    """An engine that has stored two prompts."""
    pod = Publisher()
    for prompt in (range(1, 17), range(101, 109)):
        await pod.store(prompt)
    yield pod
    await pod.stop()


def listed(file: Path, pod: Publisher, *, replay: bool) -> None:
    """The endpoints file names the pod, and where its past is to be had."""
    labels = f'epp.internal/kv-events-port: "{pod.port}"' + (f', epp.internal/kv-replay-port: "{pod.replay_port}"' if replay else "")
    file.write_text(f'endpoints: [{{name: a, address: 127.0.0.1, port: "8000", labels: {{{labels}}}}}]')


async def test_what_engines_hold_is_known_when_it_is_ready(endpoints: Path, pod: Publisher) -> None:
    """Replayed before the first request, with a line that says how much."""
    listed(endpoints, pod, replay=True)
    async with PickerProcess([f"--config-text={config(endpoints, PRODUCER)}"]) as picker:
        log = picker.log()
    assert "1 of 1 endpoints have told what they hold: 6 blocks" in log
    assert log.index("have told what they hold") < log.index("ready: 1 endpoints")
    assert "no replay socket" not in log


async def test_what_cannot_be_known_is_said(endpoints: Path, pod: Publisher) -> None:
    """No replay socket: nobody waits for it, and whose cache is unknown is named."""
    listed(endpoints, pod, replay=False)
    async with PickerProcess([f"--config-text={config(endpoints, PRODUCER)}"]) as picker:
        log = picker.log()
    assert "no replay socket: what default/a cached before now is not known until it is stored again" in log
    assert "0 of 1 endpoints have told what they hold: 0 blocks" in log

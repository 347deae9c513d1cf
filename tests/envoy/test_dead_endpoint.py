"""An engine that died while the file still lists it, behind a real Envoy: what Envoy's access log says of it is acted upon."""

import asyncio
import json
from pathlib import Path

import pytest

from epp.testing.waiting import eventually
from tests.envoy.rig import BODY, COMPLETIONS, MakeRig, Rig, config

pytestmark = pytest.mark.asyncio(loop_scope="session")

CLIENTS = 8
REQUESTS = 20
"""Of each client, answered."""


def hardly_polling(endpoints: Path) -> str:
    """/metrics is read, so that it is known who can be reached, but once an hour."""
    document = json.loads(config(endpoints))
    document["plugins"] += [{"type": "metrics-data-source", "parameters": {"interval": "1h"}}, {"type": "core-metrics-extractor"}]
    document["dataLayer"]["sources"] = [{"pluginRef": "metrics-data-source", "extractors": [{"pluginRef": "core-metrics-extractor"}]}]
    return json.dumps(document)


async def ready_endpoints(rig: Rig) -> float:
    return sum(value for name, value in (await rig.picker.metrics()).items() if name.startswith("llm_d_epp_ready_endpoints"))


@pytest.mark.parametrize("transport", ["fast", "grpc"])
async def test_a_dead_endpoint_costs_a_client_one_request(make_rig: MakeRig, tmp_path: Path, transport: str) -> None:
    """A refused connection in the log is enough, long before a poll would tell: who waits for it to be noticed fails no second time."""

    async def left() -> bool:
        return await ready_endpoints(rig) == len(rig.servers) - 1

    async def refused() -> int:
        """How often this client's requests met nobody."""
        times = answered = 0
        while answered < REQUESTS:
            async with rig.client.post(rig.url + COMPLETIONS, data=BODY) as answer:
                text = await answer.text()
            answered += answer.status == 200
            if "remote connection failure" in text:
                times += 1
                await eventually(left)
        return times

    async with make_rig(f"--config-text={hardly_polling(tmp_path / 'endpoints.json')}", f"--transport={transport}", servers=3) as rig:
        await rig.servers[0].die()
        each = await asyncio.gather(*(refused() for _ in range(CLIENTS)))
        assert max(each) == 1
        assert "endpoint default/pod-0 takes no connections" in rig.picker.log()

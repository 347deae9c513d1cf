"""How an answer ends, through a real Envoy: nothing stays in flight, and the picker's death cuts nobody's answer."""

import asyncio
import json

import aiohttp
import pytest

from epp.testing.bootstrap import Responses
from epp.testing.model_server import STREAM, ModelServer
from epp.testing.picker import free_ports
from epp.testing.waiting import eventually
from tests.envoy.rig import MakeRig, Rig

BODY = json.dumps({"model": "m", "prompt": "p", "stream": True}).encode()
EVENTS = 20
ANSWER = b"".join(map(ModelServer.event, range(EVENTS)))


async def start_stream(rig: Rig) -> aiohttp.ClientResponse:
    """A streamed answer of which the first event has arrived."""
    answer = await rig.client.post(f"{rig.url}/v1/completions", data=BODY, headers={STREAM: str(EVENTS)})
    assert answer.status == 200
    assert await answer.content.readexactly(len(ModelServer.event(0))) == ModelServer.event(0)
    return answer


async def rest_of(answer: aiohttp.ClientResponse) -> bytes:
    return ModelServer.event(0) + await answer.content.read()


async def in_flight(rig: Rig, requests: int) -> None:
    async def reached() -> bool:
        return await rig.running() == requests

    await eventually(reached)


async def test_in_flight_counts_answers_until_they_end(rig: Rig) -> None:
    """Up while they stream, balanced over the endpoints, down to zero when they are whole."""
    answers = [await start_stream(rig) for _ in range(6)]
    await in_flight(rig, 6)
    assert [server.requests for server in rig.servers] == [3, 3]

    for server in rig.servers:
        server.release.set()
    assert [await rest_of(answer) for answer in answers] == [ANSWER] * 6

    await in_flight(rig, 0)


async def test_an_aborted_request_is_given_back(rig: Rig) -> None:
    """A client that goes away in the middle of an answer leaves no load behind."""
    answers = [await start_stream(rig) for _ in range(4)]
    await in_flight(rig, 4)

    for answer in answers:
        answer.close()

    await in_flight(rig, 0)


async def test_a_refused_request_is_given_back(make_rig: MakeRig) -> None:
    """An endpoint that is down costs its requests, and does not stay loaded with them."""
    async with make_rig(servers=0, extra=[f"127.0.0.1:{free_ports(1)[0]}"]) as rig:
        async with rig.client.post(f"{rig.url}/v1/completions", data=BODY) as answer:
            assert answer.status == 503

        await in_flight(rig, 0)


async def test_the_pickers_death_touches_no_answer(rig: Rig) -> None:
    """kill -9 of epp while answers stream: every answer arrives whole (spec/protocol.md 10.1)."""
    answers = [await start_stream(rig) for _ in range(8)]

    await rig.picker.kill()
    for server in rig.servers:
        server.release.set()

    assert await asyncio.gather(*map(rest_of, answers)) == [ANSWER] * 8


@pytest.mark.parametrize("responses", Responses)
async def test_answers_pass_through_unchanged(make_rig: MakeRig, responses: Responses) -> None:
    """Chunk for chunk and byte for byte, whether they go through epp or not."""
    async with make_rig(responses=responses) as rig:
        stream = await start_stream(rig)
        async with rig.client.post(f"{rig.url}/v1/completions", data=BODY) as answer:
            seen = await answer.json()
        for server in rig.servers:
            server.release.set()

        assert seen["size"] == len(BODY)
        assert await rest_of(stream) == ANSWER
        await in_flight(rig, 0)

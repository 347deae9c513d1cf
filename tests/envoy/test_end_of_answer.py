"""How an answer ends, through a real Envoy: nothing stays in flight, and the picker's death cuts nobody's answer."""

import asyncio
import json

import aiohttp
import pytest

from epp import names
from epp.testing.bootstrap import Responses
from epp.testing.model_server import ECHO, STREAM, ModelServer
from epp.testing.picker import free_ports
from epp.testing.waiting import eventually
from tests.envoy.rig import ANSWER, BODY, COMPLETIONS, EVENTS, MakeRig, Rig

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def rest_of(answer: aiohttp.ClientResponse) -> bytes:
    return ModelServer.event(0) + await answer.content.read()


async def test_in_flight_counts_answers_until_they_end(rig: Rig) -> None:
    """Up while they stream, balanced over the endpoints, down to zero when they are whole."""
    answers = [await rig.start_stream() for _ in range(16)]
    await rig.in_flight(16)
    assert [server.requests for server in rig.servers] == [2] * len(rig.servers)

    await rig.allow(EVENTS)
    assert [await rest_of(answer) for answer in answers] == [ANSWER] * 16

    await rig.in_flight(0)


async def test_an_aborted_answer_is_given_back(rig: Rig) -> None:
    """A client that goes away in the middle of an answer leaves no load behind."""
    answers = [await rig.start_stream() for _ in range(4)]
    await rig.in_flight(4)

    for answer in answers:
        answer.close()

    await rig.in_flight(0)


async def test_a_request_aborted_in_its_body_leaves_nothing(rig: Rig) -> None:
    """A client that goes away before there was anything to pick: the exchange ends, no endpoint is asked, the next one is served."""

    async def exchanges() -> tuple[int, int]:
        stats = await rig.envoy.stats("http.inference.ext_proc.streams_")
        return stats["http.inference.ext_proc.streams_started"], stats["http.inference.ext_proc.streams_closed"]

    before, _ = await exchanges()
    _, writer = await asyncio.open_connection("127.0.0.1", rig.envoy.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: epp\r\ncontent-length: 1000\r\n\r\n" + BODY)

    async def begun() -> bool:
        return (await exchanges())[0] == before + 1

    await eventually(begun)
    writer.close()

    async def over() -> bool:
        return await exchanges() == (before + 1, before + 1)

    await eventually(over)
    await rig.in_flight(0)
    assert rig.arrived == 0
    async with rig.client.post(rig.url + COMPLETIONS, data=BODY) as answer:
        assert answer.status == 200


async def test_a_refused_request_is_given_back(make_rig: MakeRig) -> None:
    """An endpoint that is down costs its requests, and does not stay loaded with them."""
    async with make_rig(servers=0, extra=[f"127.0.0.1:{free_ports(1)[0]}"]) as rig:
        async with rig.client.post(rig.url + COMPLETIONS, data=BODY) as answer:
            assert answer.status == 503

        await rig.in_flight(0)


async def test_the_pickers_death_touches_no_answer(make_rig: MakeRig) -> None:
    """kill -9 of epp: answers that stream, and those an engine has not begun, arrive whole (spec/protocol.md 10.1); new requests get 500."""

    async def whole_answer(rig: Rig) -> bytes:
        async with rig.client.post(rig.url + COMPLETIONS, data=BODY, headers={STREAM: str(EVENTS)}) as answer:
            return await answer.read()

    async with make_rig() as rig:
        streaming = [await rig.start_stream() for _ in range(8)]
        await rig.allow(0)
        waiting = [asyncio.create_task(whole_answer(rig)) for _ in range(8)]
        await eventually(lambda: rig.arrived == 16)

        await rig.picker.kill()
        for headers in ({}, {names.DESTINATION_ENDPOINT: rig.servers[0].host_port}):
            async with rig.client.post(rig.url + COMPLETIONS, data=BODY, headers=headers) as refused:
                assert refused.status == 500
        await rig.allow(EVENTS)

        assert await asyncio.gather(*map(rest_of, streaming)) == [ANSWER] * 8
        assert await asyncio.gather(*waiting) == [ANSWER] * 8
        assert rig.arrived == 16


async def check_answers_pass_through(rig: Rig) -> None:
    """No event waits for the next one, and bodies of all sizes come back as they were sent."""
    stream = await rig.start_stream()
    for number in range(1, EVENTS):
        await rig.allow(number + 1)
        assert await stream.content.readexactly(len(ModelServer.event(number))) == ModelServer.event(number)
    assert await stream.content.read() == b""

    for size in (60, 62_001, 65_537, 1_000_000):
        body = json.dumps({"model": "m", "prompt": "word " * (size // 5)}).encode()
        async with rig.client.post(rig.url + COMPLETIONS, data=body, headers={ECHO: "1"}) as answer:
            assert (size, answer.status, await answer.read() == body) == (size, 200, True)
    await rig.in_flight(0)


async def test_answers_pass_through_unchanged(rig: Rig) -> None:
    """Chunk for chunk and byte for byte, past epp."""
    await check_answers_pass_through(rig)


async def test_answers_pass_through_epp_unchanged(make_rig: MakeRig) -> None:
    """Chunk for chunk and byte for byte, where a gateway sends answers through epp."""
    async with make_rig(responses=Responses.FULL_DUPLEX) as rig:
        await check_answers_pass_through(rig)

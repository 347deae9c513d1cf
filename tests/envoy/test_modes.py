"""Every way to configure Envoy's filter, through a real Envoy: bodies and answers stay what they are, nothing stays in flight."""

import asyncio
import hashlib
import json
import random
from contextlib import AbstractAsyncContextManager

import pytest

from epp import names
from epp.testing.bootstrap import Responses
from epp.testing.model_server import ECHO, STREAM, ModelServer
from epp.testing.waiting import eventually
from tests.envoy.rig import BODY, COMPLETIONS, EVENTS, MakeRig, Rig

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Request body mode, response modes, transport, TLS: each transport sees each kind of conversation, TLS both.
MODES = {
    "our default, fast, TLS": ("FULL_DUPLEX_STREAMED", Responses.ACCESS_LOG, "fast", True),
    "our default, grpc, TLS": ("FULL_DUPLEX_STREAMED", Responses.ACCESS_LOG, "grpc", True),
    "full duplex, fast": ("FULL_DUPLEX_STREAMED", Responses.FULL_DUPLEX, "fast", False),
    "full duplex, grpc": ("FULL_DUPLEX_STREAMED", Responses.FULL_DUPLEX, "grpc", False),
    "response headers, fast": ("FULL_DUPLEX_STREAMED", Responses.HEADERS, "fast", False),
    "buffered, fast": ("BUFFERED", Responses.ACCESS_LOG, "fast", False),
    "buffered, grpc": ("BUFFERED", Responses.FULL_DUPLEX, "grpc", False),
    "streamed, fast": ("STREAMED", Responses.ACCESS_LOG, "fast", False),
    "streamed, grpc": ("STREAMED", Responses.HEADERS, "grpc", False),
    "no request body, fast": ("NONE", Responses.ACCESS_LOG, "fast", False),
    "buffered partial, fast": ("BUFFERED_PARTIAL", Responses.ACCESS_LOG, "fast", False),
}
PICKS_ON_THE_BODY = ("FULL_DUPLEX_STREAMED", "BUFFERED")
# Envoy buffers no more than the listener's limit in these modes; a larger body is its own 413.
BUFFERING = ("BUFFERED", "BUFFERED_PARTIAL")
LARGE = 300_000


@pytest.fixture(params=MODES)
def rig_in_mode(request: pytest.FixtureRequest, make_rig: MakeRig) -> tuple[str, AbstractAsyncContextManager[Rig]]:
    """The request body mode, and a rig in it."""
    body, responses, transport, tls = MODES[request.param]
    return body, make_rig(f"--transport={transport}", responses=responses, request_body=body, tls=tls)


async def check_bodies(rig: Rig, mode: str) -> None:
    """They arrive at the endpoint of the header as they were sent, also when many are under way."""

    async def post(number: int) -> None:
        size = 10 + (number * 1999 if mode in BUFFERING else number * LARGE // 12)
        body = json.dumps({"model": "m", "prompt": random.Random(number).randbytes(size // 2).hex()}).encode()
        async with rig.client.post(rig.url + COMPLETIONS, data=body) as answer:
            assert answer.status == 200
            seen = await answer.json()
        assert seen["sha256"] == hashlib.sha256(body).hexdigest()
        assert seen["headers"][names.DESTINATION_ENDPOINT] == seen["server"]

    await asyncio.gather(*map(post, range(12)))
    async with rig.client.get(f"{rig.url}/v1/models") as answer:
        seen = await answer.json()
    assert (answer.status, seen["method"]) == (200, "GET")
    assert seen["headers"][names.DESTINATION_ENDPOINT] == seen["server"]


async def check_answers(rig: Rig) -> None:
    """Event by event, and JSON as it was sent."""
    await rig.allow(1)
    stream = await rig.start_stream()
    for number in range(1, EVENTS):
        await rig.allow(number + 1)
        assert await stream.content.readexactly(len(ModelServer.event(number))) == ModelServer.event(number)
    assert await stream.content.read() == b""
    body = json.dumps({"model": "m", "prompt": "word " * 4000}).encode()
    async with rig.client.post(rig.url + COMPLETIONS, data=body, headers={ECHO: "1"}) as answer:
        assert (answer.status, await answer.read()) == (200, body)


async def check_aborts(rig: Rig) -> None:
    """Clients that leave in the middle of an answer, and before it, leave nothing behind."""
    await rig.allow(1)
    for answer in [await rig.start_stream() for _ in range(4)]:
        answer.close()
    await rig.allow(0)
    arrived = rig.arrived
    waiting = [asyncio.create_task(rig.client.post(rig.url + COMPLETIONS, data=BODY, headers={STREAM: "1"})) for _ in range(4)]
    await eventually(lambda: rig.arrived == arrived + 4)
    for task in waiting:
        task.cancel()
    await rig.in_flight(0)


async def test_requests_and_answers_in_every_mode(rig_in_mode: tuple[str, AbstractAsyncContextManager[Rig]]) -> None:
    """Bodies, answers, refusals and aborts; in-flight is exact in each."""
    mode, made = rig_in_mode
    async with made as rig:
        await check_bodies(rig, mode)
        await check_answers(rig)
        await rig.in_flight(0)
        await check_aborts(rig)
        async with rig.client.post(rig.url + COMPLETIONS, data=b"no json") as refused:
            assert refused.status == (400 if mode in PICKS_ON_THE_BODY else 200)
        without = (await rig.picker.metrics()).get('epp_requests_without_tokens_total{model="",reason="body_not_sent"}', 0)
        assert (without == 0) is (mode in PICKS_ON_THE_BODY)
        await rig.in_flight(0)


async def test_a_body_too_large_to_be_buffered(make_rig: MakeRig) -> None:
    """In BUFFERED Envoy refuses it itself, and the picker is none the worse (spec/protocol.md 10.2)."""
    async with make_rig("--transport=fast", request_body="BUFFERED") as rig:
        async with rig.client.post(rig.url + COMPLETIONS, data=b"x" * LARGE) as answer:
            assert answer.status == 413
        async with rig.client.post(rig.url + COMPLETIONS, data=BODY) as answer:
            assert answer.status == 200
        await rig.in_flight(0)


@pytest.mark.parametrize(("body_mode", "responses"), [("FULL_DUPLEX_STREAMED", Responses.FULL_DUPLEX), ("BUFFERED", Responses.ACCESS_LOG)])
async def test_a_model_name_is_rewritten_and_turned_back(make_rig: MakeRig, body_mode: str, responses: Responses) -> None:
    """The endpoint reads the other name and every other byte of the client's; the client reads its own, where answers come by."""
    body = b'{"seed": 9007199254740993, "model":"nick", "prompt": "p"}'
    rewrite = {names.MODEL_REWRITE_HEADERS[0]: "org/the-model-it-stands-for"}
    arrived = body.replace(b'"nick"', b'"org/the-model-it-stands-for"')
    async with make_rig("--transport=fast", request_body=body_mode, responses=responses) as rig:
        async with rig.client.post(rig.url + COMPLETIONS, data=body, headers=rewrite) as answer:
            seen = await answer.json()
        assert (answer.status, seen["size"], seen["sha256"]) == (200, len(arrived), hashlib.sha256(arrived).hexdigest())
        async with rig.client.post(rig.url + COMPLETIONS, data=body, headers={**rewrite, ECHO: "1"}) as answer:
            assert await answer.read() == (body if responses is Responses.FULL_DUPLEX else arrived)


async def test_scores_are_told_where_asked_for(make_rig: MakeRig) -> None:
    """--emit-endpoint-scores is accepted by a real Envoy, and the request goes where it should."""
    async with make_rig("--transport=fast", "--emit-endpoint-scores") as rig, rig.client.post(rig.url + COMPLETIONS, data=BODY) as answer:
        seen = await answer.json()
    assert seen["headers"][names.DESTINATION_ENDPOINT] == seen["server"]


async def test_no_client_can_leave_load_behind(make_rig: MakeRig) -> None:
    """Clients that leave at any moment of a request: in-flight is zero a few seconds later, not after the bounded age."""
    async with make_rig("--transport=fast") as rig:
        await rig.allow(0)
        rng = random.Random(4)

        async def leave_after(delay: float) -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(delay), rig.client.post(rig.url + COMPLETIONS, data=BODY, headers={STREAM: "1"}) as answer:
                    await answer.read()

        for _ in range(20):
            await asyncio.gather(*(leave_after(rng.uniform(0.0, 0.02)) for _ in range(20)))
        await rig.in_flight(0)

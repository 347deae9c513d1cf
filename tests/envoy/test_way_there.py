"""Requests through a real Envoy: they reach the endpoint that was picked, unchanged, and are refused as documented."""

import asyncio
import hashlib
import io
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from epp import names
from epp.testing.model_server import ModelServer
from epp.testing.waiting import eventually
from tests.envoy.h2_client import post_with_trailers
from tests.envoy.rig import BODY, COMPLETIONS, MakeRig, Rig, config, write_endpoints

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Around one chunk of ours (62,000), around 64 KiB, around Envoy's buffers, and large.
SIZES = [60, 5_000, 61_999, 62_000, 62_001, 65_535, 65_537, 1_000_000, 1_048_577, 10_000_000]


def completion(size: int) -> bytes:
    """A completions body of exactly this many bytes."""
    empty = len(json.dumps({"model": "m", "prompt": ""}))
    rng = random.Random(size)
    return json.dumps({"model": "m", "prompt": "".join(rng.choices("abcdefgh ", k=size - empty))}).encode()


async def post(rig: Rig, path: str, body: bytes, **headers: str) -> tuple[int, Mapping[str, str], Any]:
    async with rig.client.post(rig.url + path, data=io.BytesIO(body), headers=headers) as answer:
        text = await answer.text()
        return answer.status, answer.headers, json.loads(text) if answer.status == 200 else text


async def test_a_json_body_arrives_byte_for_byte_at_the_endpoint_of_the_header(rig: Rig) -> None:
    """The endpoint that was picked is the one that served, and it saw the client's bytes, whatever the size."""
    for size in SIZES:
        body = completion(size)

        status, _, seen = await post(rig, COMPLETIONS, body)

        assert (size, status) == (size, 200)
        assert (seen["size"], seen["sha256"]) == (size, hashlib.sha256(body).hexdigest())
        assert seen["headers"][names.DESTINATION_ENDPOINT] == seen["server"]


async def test_bytes_on_a_pass_through_path_arrive_unchanged(rig: Rig) -> None:
    """What no parser reads is routed and forwarded as it is."""
    for size in (1, 62_000, 65_536, 2_000_001, 10_000_000):
        body = random.Random(size).randbytes(size)

        status, _, seen = await post(rig, "/upload?x=1", body)

        assert (size, status) == (size, 200)
        assert (seen["path"], seen["size"], seen["sha256"]) == ("/upload?x=1", size, hashlib.sha256(body).hexdigest())
        assert seen["headers"][names.DESTINATION_ENDPOINT] == seen["server"]


async def test_concurrent_streams_do_not_mix(rig: Rig) -> None:
    """64 bodies of mixed sizes at once over eight endpoints: each answer is about its own request."""
    bodies = [completion(60 + i * i * 97) for i in range(64)]

    answers = await asyncio.gather(*(post(rig, f"{COMPLETIONS}?n={i}", body) for i, body in enumerate(bodies)))

    for i, (body, (status, _, seen)) in enumerate(zip(bodies, answers, strict=True)):
        assert status == 200
        assert (seen["path"], seen["sha256"]) == (f"{COMPLETIONS}?n={i}", hashlib.sha256(body).hexdigest())
        assert seen["headers"][names.DESTINATION_ENDPOINT] == seen["server"]
    assert all(server.requests for server in rig.servers)


async def test_a_client_cannot_choose_its_endpoint(rig: Rig) -> None:
    """A destination header that a client brings is overwritten, whatever kind of request carries it."""
    async with ModelServer("not in the pool") as other:
        forged = {names.DESTINATION_ENDPOINT: other.host_port}
        for method, path, body in (("POST", COMPLETIONS, BODY), ("POST", "/upload", b"x"), ("GET", "/v1/models", None)):
            async with rig.client.request(method, rig.url + path, data=body, headers=forged) as answer:
                seen = await answer.json()

            assert seen["headers"][names.DESTINATION_ENDPOINT] == seen["server"]
        assert (other.requests, rig.arrived) == (0, 3)


async def test_a_body_that_ends_with_trailers_arrives_unchanged(rig: Rig) -> None:
    """HTTP/2 trailers end a body like any other end (spec/protocol.md 2.4, S16), read by a parser or not."""
    for path in (COMPLETIONS, "/upload"):
        for size in (60, 62_000, 200_000):
            body = completion(size)

            status, answer = await post_with_trailers(rig.envoy.port, path, body, [("x-checksum", "1")])

            assert (path, size, status) == (path, size, 200)
            seen = json.loads(answer)
            assert (seen["size"], seen["sha256"]) == (size, hashlib.sha256(body).hexdigest())


async def test_a_get_without_a_body_reaches_some_endpoint(rig: Rig) -> None:
    """Header-only requests are answered with an endpoint and nothing else."""
    async with rig.client.get(f"{rig.url}/v1/models") as answer:
        seen = await answer.json()

    assert (answer.status, seen["method"], seen["path"]) == (200, "GET", "/v1/models")
    assert seen["headers"][names.DESTINATION_ENDPOINT] == seen["server"]


async def test_a_request_id_is_kept_or_made(rig: Rig) -> None:
    """The client's id reaches the endpoint; a request without one gets one."""
    _, _, kept = await post(rig, COMPLETIONS, completion(60), **{names.REQUEST_ID: "mine"})
    _, _, made = await post(rig, COMPLETIONS, completion(60))

    assert kept["headers"][names.REQUEST_ID] == "mine"
    assert made["headers"][names.REQUEST_ID]


REFUSED = [
    (COMPLETIONS, b"no json", "error unmarshaling request bodyMap: "),
    (COMPLETIONS, b'{"model": "m"}', "invalid completions request: must have prompt field"),
    ("/v1/chat/completions", b'{"model": "m"}', "invalid chat completions request: must have valid messages field"),
    (COMPLETIONS, b'{"prompt": "p", "model": 7}', "model not found in request body"),
]


async def test_a_request_nobody_could_serve_is_refused_at_once(rig: Rig) -> None:
    """400 with llm-d's sentence, and no endpoint is bothered."""
    for path, body, sentence in REFUSED:
        refused, _, said = await post(rig, path, body)

        assert refused == 400
        assert said.startswith(f"inference error: BadRequest - {sentence}")
    assert rig.arrived == 0


async def test_a_body_over_the_limit_is_413_before_its_end(make_rig: MakeRig) -> None:
    """The client is told while it is still sending."""
    async with make_rig("--max-request-body=1MiB") as rig:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.envoy.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: epp\r\ncontent-length: 10000000\r\n\r\n" + b"x" * 1_200_000)
        await writer.drain()

        assert b" 413 " in await reader.readline()

        writer.close()


async def test_a_pool_scaled_to_zero_is_503_with_a_body_and_500_without(make_rig: MakeRig) -> None:
    """And endpoints that come back are used again, without a restart."""
    async with make_rig() as rig:
        write_endpoints(rig.endpoints_file, [])
        await eventually(lambda: "the pool has 0 endpoints" in rig.picker.log())

        with_body, headers, _ = await post(rig, COMPLETIONS, completion(60))
        async with rig.client.get(f"{rig.url}/v1/models") as answer:
            without_body = answer.status

        assert (with_body, headers[names.DROPPED_REASON], without_body) == (503, "rejected-no-endpoints", 500)
        write_endpoints(rig.endpoints_file, [rig.servers[0].host_port])

        async def served() -> bool:
            return (await post(rig, COMPLETIONS, completion(60)))[0] == 200

        await eventually(served)


async def test_an_unknown_model_is_routed_without_tokens_and_counted(make_rig: MakeRig, tmp_path: Path) -> None:
    """The model server decides whether it knows the name; the picker only says that it cannot look its prefix up."""
    with_tokens = json.loads(config(tmp_path / "endpoints.json"))
    with_tokens["plugins"].append({"type": "token-producer", "parameters": {"modelName": "known", "estimate": {}}})
    async with make_rig(f"--config-text={json.dumps(with_tokens)}") as rig:
        status, _, seen = await post(rig, COMPLETIONS, completion(60))

        assert (status, seen["size"]) == (200, 60)
        counted = await rig.picker.metrics()
        assert counted['epp_requests_without_tokens_total{model="m",reason="unknown_model"}'] == 1
        assert "no tokens for model 'm': unknown_model" in rig.picker.log()

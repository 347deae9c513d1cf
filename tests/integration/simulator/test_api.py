"""The pods over HTTP: answers, streams, errors, and clients that leave."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from epp import names
from epp.simulator.fleet import Fleet
from epp.testing.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="package")

Body = dict[str, Any]


def a_chat(text: str, **fields: object) -> Body:
    """A chat with one message of a hundred-odd tokens."""
    return {"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": f"{text} counts sheep. " * 30}], **fields}


async def events(answer: aiohttp.ClientResponse) -> list[Any]:
    """The events of a stream, the last of which must be [DONE]."""
    lines = [line.removeprefix("data: ") for line in (await answer.text()).split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def metric(client: aiohttp.ClientSession, url: str, name: str, **labels: str) -> float:
    """One sample of a pod's metrics page."""
    async with client.get(f"{url}/metrics") as answer:
        page = await answer.text()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    raise LookupError(name)


async def until_metric(client: aiohttp.ClientSession, url: str, name: str, holds: Callable[[float], bool]) -> None:
    """Wait until a metric says so."""

    async def reached() -> bool:
        return holds(await metric(client, url, name))

    await eventually(reached)


async def test_the_same_prompt_again_is_cached_on_this_pod_only(fleet: Fleet, client: aiohttp.ClientSession) -> None:
    """Usage tells the hit; the pods share nothing, yet give the same answer; the pod and the request id are in the headers."""
    answers = []
    for endpoint in (fleet.endpoints[0], fleet.endpoints[0], fleet.endpoints[1]):
        headers = {names.REQUEST_ID: "abc"}
        async with client.post(f"{endpoint.url}/v1/chat/completions", json=a_chat("Ada"), headers=headers) as answer:
            assert answer.headers[names.INFERENCE_POD] == endpoint.name
            assert answer.headers[names.REQUEST_ID] == "abc"
            answers.append(await answer.json())
    usages = [answer["usage"] for answer in answers]
    expected = (usages[0]["prompt_tokens"] - 1) // 16 * 16
    assert [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages] == [0, expected, 0]
    assert usages[0]["completion_tokens"] == 5
    assert usages[0]["total_tokens"] == usages[0]["prompt_tokens"] + 5
    assert answers[0]["choices"] == answers[1]["choices"] == answers[2]["choices"]
    assert answers[0]["choices"][0]["finish_reason"] == "length"


async def test_a_streamed_chat(fleet: Fleet, client: aiohttp.ClientSession) -> None:
    """One event with the role, one a token, the reason with the last, usage if asked for; together the same answer."""
    url = f"{fleet.endpoints[0].url}/v1/chat/completions"
    async with client.post(url, json=a_chat("Bob")) as answer:
        whole = (await answer.json())["choices"][0]["message"]["content"]
    body = a_chat("Bob", stream=True, stream_options={"include_usage": True})
    async with client.post(url, json=body) as answer:
        assert answer.content_type == "text/event-stream"
        chunks = await events(answer)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    tokens = chunks[1:-1]
    assert len(tokens) == 5
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in tokens) == whole
    assert [chunk["choices"][0]["finish_reason"] for chunk in tokens] == [None] * 4 + ["length"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


async def test_a_streamed_batch_of_completions(fleet: Fleet, client: aiohttp.ClientSession) -> None:
    """Each prompt, text or ids, is a choice of its own."""
    body = {"model": "tiny", "prompt": [[1, 2, 3], [4, 5]], "max_tokens": 3, "stream": True}
    async with client.post(f"{fleet.endpoints[0].url}/v1/completions", json=body) as answer:
        chunks = await events(answer)
    counts = [sum(chunk["choices"][0]["index"] == index for chunk in chunks) for index in (0, 1)]
    assert counts == [3, 3]


async def test_an_answer_ends_by_itself(fleet: Fleet, client: aiohttp.ClientSession) -> None:
    """Without a limit a chat stops where the model would."""
    async with client.post(f"{fleet.endpoints[0].url}/v1/chat/completions", json=a_chat("Cleo", max_tokens=None)) as answer:
        (choice,) = (await answer.json())["choices"]
    assert choice["finish_reason"] == "stop"


async def test_an_adapter_has_a_cache_of_its_own(fleet: Fleet, client: aiohttp.ClientSession) -> None:
    """The same prompt to the adapter is no hit."""
    url = f"{fleet.endpoints[0].url}/v1/chat/completions"
    cached = []
    for model in ("tiny", "adapter-a", "adapter-a"):
        async with client.post(url, json=a_chat("Dora", model=model)) as answer:
            body = await answer.json()
            assert body["model"] == model
            cached.append(body["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[:2] == [0, 0]
    assert cached[2] > 0


async def test_chunked_bodies(fleet: Fleet, client: aiohttp.ClientSession) -> None:
    """A body without Content-Length, as Envoy sends it, is read to its end."""

    async def parts() -> AsyncIterator[bytes]:
        encoded = json.dumps(a_chat("Emil")).encode()
        for start in range(0, len(encoded), 100):
            yield encoded[start : start + 100]
            await asyncio.sleep(0)

    async with client.post(f"{fleet.endpoints[0].url}/v1/chat/completions", data=parts()) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"{", 400, "JSON"),
        (b"\xff", 400, "JSON"),
        (b"[1]", 400, "object"),
        (b'{"model": "tiny"}', 400, "messages"),
        (json.dumps(a_chat("x", model="no-such")).encode(), 404, "no-such"),
        (json.dumps(a_chat("x", max_tokens=20_000)).encode(), 400, "16384"),
        (json.dumps(a_chat("x y " * 300, max_tokens=1)).encode(), 400, "16384"),
    ],
)
async def test_errors(fleet: Fleet, client: aiohttp.ClientSession, body: bytes, status: int, word: str) -> None:
    """Bad requests get OpenAI's error object, and the pod still names itself."""
    async with client.post(f"{fleet.endpoints[0].url}/v1/chat/completions", data=body) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (status, status)
        assert word in error["message"]
        assert answer.headers[names.INFERENCE_POD] == "pod-0"


async def test_unknown_paths(fleet: Fleet, client: aiohttp.ClientSession) -> None:
    """They are 404 in the same form."""
    async with client.get(f"{fleet.endpoints[0].url}/v2") as answer:
        assert (await answer.json())["error"]["code"] == answer.status == 404


async def test_token_ids_outside_the_vocabulary(fleet: Fleet, client: aiohttp.ClientSession) -> None:
    """They are refused before they reach the engine."""
    body = {"model": "tiny", "prompt": [10**9]}
    async with client.post(f"{fleet.endpoints[0].url}/v1/completions", json=body) as answer:
        assert answer.status == 400


async def test_models_and_health(fleet: Fleet, client: aiohttp.ClientSession) -> None:
    """Base model and adapters are listed."""
    async with client.get(f"{fleet.endpoints[0].url}/v1/models") as answer:
        assert [model["id"] for model in (await answer.json())["data"]] == ["tiny", "adapter-a"]
    async with client.get(f"{fleet.endpoints[0].url}/health") as answer:
        assert answer.status == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_blocks(fleet: Fleet, client: aiohttp.ClientSession, *, stream: bool) -> None:
    """Whether it read a stream or waited for the whole: its request is aborted and nothing stays in use."""
    url = fleet.endpoints[1].url
    before = await metric(client, url, "vllm:request_success_total", finished_reason="abort")
    body = a_chat("Finn", stream=stream, max_tokens=10_000, ignore_eos=True)
    asking = asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=body).__aenter__())
    await until_metric(client, url, "vllm:num_requests_running", lambda running: running > 0)
    assert await metric(client, url, "vllm:kv_cache_usage_perc") > 0
    if stream:
        (await asking).close()
    else:
        asking.cancel()
    await until_metric(client, url, "vllm:num_requests_running", lambda running: running == 0)
    assert await metric(client, url, "vllm:kv_cache_usage_perc") == 0
    assert await metric(client, url, "vllm:request_success_total", finished_reason="abort") == before + 1

"""Every recorded request gives the token ids vLLM 0.32 rendered, through the parts that serve it."""

import json
from typing import Any

import pytest

from epp.domain import TokenState
from epp.testing.waiting import awaited
from epp.tokenization import Tokenization
from tests.integration.tokenization.conftest import RECORDING, request_of

RECORDS: list[dict[str, Any]] = json.loads((RECORDING / "requests" / "requests.json").read_text())


def test_the_recording_is_complete() -> None:
    """A lost record must not pass unnoticed."""
    paths = [record["path"] for record in RECORDS]
    assert {path: paths.count(path) for path in paths} == {
        "/v1/completions": 6,
        "/v1/chat/completions": 18,
        "/v1/responses": 2,
        "/v1/messages": 1,
        "/inference/v1/generate": 1,
    }


def rendered(record: dict[str, Any]) -> list[list[int]]:
    """What the engine computed; token-in requests have no rendering, they say it themselves."""
    render = record.get("render")
    if render is None:
        return [record["body"]["token_ids"]]
    return [prompt["token_ids"] for prompt in (render if isinstance(render, list) else [render])]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["name"])
async def test_token_ids_equal_the_engine_s(recorded: Tokenization, record: dict[str, Any]) -> None:
    """Token for token, prompt for prompt, with the adapter and salt that enter the engine's block hashes."""
    body, usage = record["body"], record["usage"]
    tokens = await awaited(recorded.tokenize(request_of(record["path"], body)))
    assert (tokens.state, tokens.reason) == (TokenState.EXACT, None)
    assert [list(prompt) for prompt in tokens.prompts] == rendered(record)
    assert tokens.token_count == usage.get("prompt_tokens", usage.get("input_tokens"))
    assert tokens.lora == (body["model"] if body["model"] != "tiny" else None)
    assert tokens.cache_salt == body.get("cache_salt")

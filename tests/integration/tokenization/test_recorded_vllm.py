"""Every recorded completions and chat request gives the token ids vLLM 0.32 rendered, through the parts that serve it."""

import json
from typing import Any

import pytest

from epp.domain import TokenState
from epp.requests import RequestParsers
from epp.testing.waiting import awaited
from epp.tokenization import Tokenization
from tests.integration.tokenization.conftest import RECORDING

PATHS = ("/v1/completions", "/v1/chat/completions")
RECORDS: list[dict[str, Any]] = [
    record for record in json.loads((RECORDING / "requests" / "requests.json").read_text()) if record["path"] in PATHS
]


def test_the_recording_is_complete() -> None:
    """Six completions and eighteen chats: a lost record must not pass unnoticed."""
    assert [sum(record["path"] == path for record in RECORDS) for path in PATHS] == [6, 18]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["name"])
async def test_token_ids_equal_the_engine_s(recorded: Tokenization, record: dict[str, Any]) -> None:
    """Token for token, prompt for prompt, with the adapter and salt that enter the engine's block hashes."""
    body = record["body"]
    request = RequestParsers().parse({":path": record["path"]}, json.dumps(body).encode())
    tokens = await awaited(recorded.tokenize(request))
    rendered = record["render"] if isinstance(record["render"], list) else [record["render"]]
    assert tokens.state is TokenState.EXACT
    assert [list(prompt) for prompt in tokens.prompts] == [prompt["token_ids"] for prompt in rendered]
    assert tokens.token_count == record["usage"]["prompt_tokens"]
    assert tokens.lora == (body["model"] if body["model"] != "tiny" else None)
    assert tokens.cache_salt == body.get("cache_salt")

"""Token ids from a live engine: what /render and /tokenize give in each mode, and where the second says that it cannot (spec/kv.md 4.8, 4.9)."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import pytest

from epp.domain import TokenizedRequest, TokenState
from epp.tokenization import RenderBackend, Tokenization
from epp.tokenization.render import Mode
from tests.vllm.conftest import Pair
from tests.vllm.generated import Body, requests
from tests.vllm.launch import MODEL
from tests.vllm.test_generated import ids_of, tokenized

COUNT: Final = 200
_BEYOND_TOKENIZE: Final = ("unsupported", "multimodal")


def asked(pair: Pair, mode: Mode, bodies: Sequence[tuple[str, Body]]) -> list[TokenizedRequest]:
    """What epp makes of the requests by asking the engine."""

    async def all_of_them() -> list[TokenizedRequest]:
        tokenization = Tokenization(MODEL, RenderBackend(pair.server.url, MODEL, mode=mode))
        await tokenization.start()
        try:
            return [await tokenized(tokenization, path, body) for path, body in bodies]
        finally:
            await tokenization.close()

    return asyncio.run(all_of_them())


def rendered(pair: Pair, path: str, body: Body) -> list[list[int]] | None:
    """The ids the engine itself computes with; None: it refuses the request."""
    status, answer = pair.server.post(f"{path}/render", body)
    return ids_of(answer) if status == 200 else None


@pytest.mark.parametrize("mode", ["render", "auto"])
def test_an_engine_that_renders_is_asked_to(pair: Pair, mode: Mode) -> None:
    """Its ids are the request's, and what it refuses is refused."""
    bodies = requests(seed=7, count=COUNT)
    wrong = []
    for (path, body), ours in zip(bodies, asked(pair, mode, bodies), strict=True):
        theirs = rendered(pair, path, body)
        if (theirs is None) != (ours.state is TokenState.ABSENT) or (theirs is not None and [list(ids) for ids in ours.prompts] != theirs):
            wrong.append((path, body, theirs, ours))
    assert wrong == []


def test_tokenize_is_exact_or_says_why_not(pair: Pair) -> None:
    """Whatever has ids has the engine's; a request beyond what /tokenize knows has a reason."""
    bodies = requests(seed=8, count=COUNT)
    wrong: list[Any] = []
    outcomes = Counter[str]()
    for (path, body), ours in zip(bodies, asked(pair, "tokenize", bodies), strict=True):
        theirs = rendered(pair, path, body)
        outcomes[f"{path} {ours.reason or 'exact'}"] += 1
        if theirs is None:  # some of what is refused has ids all the same
            continue
        fits = [list(ids) for ids in ours.prompts] == theirs if ours.state is TokenState.EXACT else ours.reason in _BEYOND_TOKENIZE
        if not fits:
            wrong.append((path, body, theirs, ours))
    assert wrong == [], dict(outcomes)
    assert outcomes["/v1/chat/completions exact"] > COUNT // 5, dict(outcomes)
    assert outcomes["/v1/completions exact"] > 0

"""Generated requests: epp's token ids are those vLLM renders, and epp calls refused only what vLLM refuses."""

import asyncio
import json
from collections import Counter
from typing import Any, Final

from epp.domain import TokenizedRequest, TokenState
from epp.errors import BadRequestError
from epp.requests import RequestParsers
from epp.testing.waiting import awaited
from epp.tokenization import Tokenization
from tests.vllm.conftest import Pair
from tests.vllm.generated import Body, requests

COUNT: Final = 600


async def tokenized(tokenization: Tokenization, path: str, body: Body) -> TokenizedRequest:
    """What epp makes of a request, from the bytes on; what it answers with 400 itself is refused as well."""
    try:
        request = RequestParsers().parse({":path": path}, json.dumps(body).encode())
    except BadRequestError as error:
        return TokenizedRequest(TokenState.ABSENT, reason="engine_refuses", detail=str(error))
    return await awaited(tokenization.tokenize(request))


def tokens_of(tokenization: Tokenization, path: str, body: Body) -> TokenizedRequest:
    """The same where nothing has to be asked."""
    return asyncio.run(tokenized(tokenization, path, body))


def ids_of(rendered: Any) -> list[list[int]]:
    """The token ids in the answer of a render endpoint: one object, or a list of them."""
    return [prompt["token_ids"] for prompt in (rendered if isinstance(rendered, list) else [rendered])]


def test_ids_equal_the_engine_s(pair: Pair) -> None:
    """No difference in hundreds of requests; what is refused is refused by both."""
    differences, outcomes = [], Counter[str]()
    for path, body in requests(seed=20261123, count=COUNT):
        status, rendered = pair.server.post(f"{path}/render", body)
        ours = tokens_of(pair.tokenization, path, body)
        outcomes[f"{status} {ours.state.value} {ours.reason or ''}"] += 1
        if status == 200:
            agree = ours.state is TokenState.EXACT and [list(prompt) for prompt in ours.prompts] == ids_of(rendered)
        else:
            agree = ours.state is TokenState.ABSENT
        if not agree:
            differences.append((path, body, status, rendered, ours))
    assert differences == [], f"{len(differences)} of {dict(outcomes)}"

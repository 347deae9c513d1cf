"""epp names a request the engine refuses, and calls none refused that the engine takes."""

import pytest

from epp.domain import TokenState
from tests.vllm.conftest import Pair
from tests.vllm.generated import Body
from tests.vllm.launch import MODEL
from tests.vllm.table import PLAIN, REFUSED, TAKEN
from tests.vllm.test_generated import ids_of, tokens_of


def _names(rows: tuple[tuple[str, Body], ...]) -> list[str]:
    return [f"{path.rsplit('/', 1)[-1]} {str(change)[:70]}" for path, change in rows]


@pytest.mark.parametrize(("path", "change"), REFUSED, ids=_names(REFUSED))
def test_what_the_engine_refuses_is_named(pair: Pair, path: str, change: Body) -> None:
    """400 there, and here the reason, so that nobody looks for blocks that will never be."""
    body = {"model": MODEL, **PLAIN[path], **change}
    status, _ = pair.server.post(f"{path}/render", body)
    if status == 200:  # the renderer does not look at everything the engine looks at
        status, _ = pair.server.post(path, body)
    tokens = tokens_of(pair.tokenization, path, body)
    assert (status, tokens.state, tokens.reason) == (400, TokenState.ABSENT, "engine_refuses")
    assert tokens.detail


@pytest.mark.parametrize(("path", "change"), TAKEN, ids=_names(TAKEN))
def test_what_the_engine_takes_is_not_called_refused(pair: Pair, path: str, change: Body) -> None:
    """Token for token, unless the template of this very engine complains."""
    body = {"model": MODEL, **PLAIN[path], **change}
    status, rendered = pair.server.post(f"{path}/render", body)
    tokens = tokens_of(pair.tokenization, path, body)
    if status == 200:
        assert tokens.state is TokenState.EXACT
        assert [list(prompt) for prompt in tokens.prompts] == ids_of(rendered)
    else:
        assert (status, tokens.reason) == (400, "template_error")

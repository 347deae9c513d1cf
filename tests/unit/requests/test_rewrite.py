"""Another model name in a body: spliced, never decoded and encoded again."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.errors import BadRequestError
from epp.requests.rewrite import with_model


@pytest.mark.parametrize(
    ("body", "spliced"),
    [
        (b'{"model":"a","seed":9007199254740993}', b'{"model":"org/b","seed":9007199254740993}'),
        (b'{ "seed" : 1e2 , "model" :\n"a" }', b'{ "seed" : 1e2 , "model" :\n"org/b" }'),
        (b'{"metadata":{"model":"a"},"model":"a"}', b'{"metadata":{"model":"a"},"model":"org/b"}'),
        (b'{"model":"a","metadata":{"model":"a"}}', b'{"model":"org/b","metadata":{"model":"a"}}'),
        (b'{"model":"first","model":"last"}', b'{"model":"first","model":"org/b"}'),
        (b'{"prompt":"\\"model\\":\\"a\\"","model":"a"}', b'{"prompt":"\\"model\\":\\"a\\"","model":"org/b"}'),
        (b'{"prompt":"x"}\n', b'{"prompt":"x","model":"org/b"}\n'),
        (b"{ }", b'{ "model":"org/b"}'),
        (b'{"model":null}', b'{"model":"org/b"}'),
        (b'{"\\u006dodel":"a"}', b'{"\\u006dodel":"a","model":"org/b"}'),
        (b'{"model":"a","x":NaN}', b'{"model":"org/b","x":NaN}'),
        (b'{"model":"a","x":"\xff"}', b'{"model":"org/b","x":"\xff"}'),
    ],
)
def test_only_the_name_changes(body: bytes, spliced: bytes) -> None:
    """Every byte but the name's stays: key order, big integers, white space, and what only lax readers accept."""
    assert with_model(body, "org/b") == spliced


def test_a_body_in_another_encoding_is_refused() -> None:
    """Bytes of UTF-16 cannot be spliced; the client is told."""
    with pytest.raises(BadRequestError, match="UTF-8"):
        with_model('{"model":"a"}'.encode("utf-16"), "b")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("model"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.just("model"), inner, max_size=3),
    max_leaves=12,
)


@given(
    fields=st.dictionaries(st.text(max_size=4) | st.just("model"), values, max_size=5), target=st.text(min_size=1), ascii_only=st.booleans()
)
def test_a_model_server_reads_the_target_and_everything_else_as_it_was(fields: dict[str, object], target: str, *, ascii_only: bool) -> None:
    """Whatever the body, JSON readers find the target and the other fields in their order."""
    spliced = json.loads(with_model(json.dumps(fields, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"), target))
    assert spliced.pop("model") == target
    fields.pop("model", None)
    assert list(spliced.items()) == list(fields.items())

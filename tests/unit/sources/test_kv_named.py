"""What engines say that connect to us before anybody has listed them."""

from epp.domain import EngineHash
from epp.kvcache.events import Batch, BlockStored
from epp.kvcache.sequence import Apply, Clear
from epp.sources.kv_messages import Named
from epp.sources.kv_named import MAX_WAITING_BYTES, NamedPods
from epp.testing.builders import make_endpoint

ONE, OTHER = make_endpoint(1), make_endpoint(2)
MANY_TOKENS = 1 << 18


def said(pod: str, tokens: int = 16) -> Named:
    return Named(pod, 0, Apply(Batch(None, events=[BlockStored([EngineHash(1)], None, bytes(4 * tokens), 16)])))


def test_what_unknown_pods_say_waits_within_bounds_of_memory() -> None:
    """Who spoke first is forgotten when others say more than there is room for; what it says later waits again."""
    pods = NamedPods()
    assert pods.keep(said(ONE.address, MANY_TOKENS))
    kept = 0
    while pods.keep(said(OTHER.address, MANY_TOKENS)):
        kept += 1
    assert kept == (MAX_WAITING_BYTES >> 20) - 2
    assert pods.sync([ONE]) == []
    assert pods.keep(said(ONE.address))
    assert len(pods.sync([ONE, OTHER])) == 1 + kept + 1


def test_what_a_pod_cleared_waits_no_longer() -> None:
    """An engine that begins anew again and again takes no room."""
    pods = NamedPods()
    for _ in range(3 * MAX_WAITING_BYTES >> 20):
        assert pods.keep(said(ONE.address, MANY_TOKENS))
        assert pods.keep(Named(ONE.address, 0, Clear()))

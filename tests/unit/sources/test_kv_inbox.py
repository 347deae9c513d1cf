"""The way of deliveries from the stream thread to the event loop; the thread's part is played on the loop, at its worst moments."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterator

import pytest

from epp.sources.kv_inbox import SLICE_S, Inbox
from epp.sources.kv_messages import Delivery, Failed


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def handled_a_turn(loop: asyncio.AbstractEventLoop, handled: Callable[[], int]) -> list[int]:
    """How many more are handled in each of a hundred turns of the loop."""
    totals = [0]

    def turn() -> None:
        totals.append(handled())
        if len(totals) <= 100:
            loop.call_soon(turn)
        else:
            loop.stop()

    loop.call_soon(turn)
    loop.run_forever()
    return [after - before for before, after in itertools.pairwise(totals)]


def test_what_comes_while_others_are_handled_takes_no_more_of_a_turn(loop: asyncio.AbstractEventLoop) -> None:
    """Each turn of the loop has one slice for deliveries, however long they keep coming: requests get their turn between."""
    ticks = itertools.count()
    handled = 0

    def handle(_token: int, _delivery: Delivery) -> None:
        nonlocal handled
        handled += 1
        if handled < 1000:
            inbox.put(1, Failed("more"))
            inbox.put(1, Failed("more"))

    inbox = Inbox(handle, clock=lambda: next(ticks) * SLICE_S / 4)
    inbox.open(loop)
    inbox.put(1, Failed("first"))
    a_turn = handled_a_turn(loop, lambda: handled)
    assert max(a_turn) <= 5
    assert sum(a_turn[-10:]) > 10


class Interrupted(deque[tuple[int, Delivery, int, object]]):
    """At one look whether anything waits, the thread's `put` comes in between."""

    def __init__(self, looks: int, put: Callable[[], None]) -> None:
        super().__init__()
        self._looks, self._put = looks, put

    def __bool__(self) -> bool:
        self._looks -= 1
        if not self._looks:
            self._put()
        return len(self) > 0


@pytest.mark.parametrize("look", range(1, 6))
def test_a_ring_at_whatever_moment_begins_no_second_drain(loop: asyncio.AbstractEventLoop, look: int) -> None:
    """A turn of the loop has one slice for deliveries, and what was put at that moment is handled, whichever it was."""
    ticks = itertools.count()
    handled = 0

    def handle(_token: int, _delivery: Delivery) -> None:
        nonlocal handled
        handled += 1

    inbox = Inbox(handle, clock=lambda: next(ticks) * SLICE_S / 4)

    def put() -> None:
        for _ in range(100):
            inbox.put(1, Failed("meanwhile"))

    inbox._waiting = Interrupted(look, put)  # type: ignore[assignment]  # nothing else of it tells when the loop looks
    inbox.open(loop)
    for _ in range(3):
        inbox.put(1, Failed("first"))

    a_turn = handled_a_turn(loop, lambda: handled)
    assert max(a_turn) <= 5
    assert handled == 103
    assert not inbox.has_enough_of(1)


def test_nothing_that_was_put_is_left_lying(loop: asyncio.AbstractEventLoop) -> None:
    """Whenever it comes: before the first is handled, during the last, or after all were."""
    handled: list[Delivery] = []

    def handle(_token: int, delivery: Delivery) -> None:
        handled.append(delivery)
        if len(handled) in (1, 2):
            inbox.put(1, Failed("during"))

    inbox = Inbox(handle, clock=lambda: 0.0)
    inbox.open(loop)
    for expected in (3, 4, 5):
        inbox.put(1, Failed("again"))
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(asyncio.sleep(0))
        assert len(handled) == expected
    assert not inbox.has_enough_of(1)


def test_a_delivery_that_cannot_be_handled_costs_itself(loop: asyncio.AbstractEventLoop) -> None:
    """Those behind it are handled, and those that come later."""
    handled: list[str] = []
    failures: list[object] = []
    loop.set_exception_handler(lambda _loop, context: failures.append(context["exception"]))

    def handle(_token: int, delivery: Delivery) -> None:
        assert isinstance(delivery, Failed)
        if delivery.reason == "bad":
            raise ValueError("of ours")
        handled.append(delivery.reason)

    inbox = Inbox(handle, clock=lambda: 0.0)
    inbox.open(loop)
    for reason in ("bad", "good"):
        inbox.put(1, Failed(reason))
    for _ in range(3):
        loop.run_until_complete(asyncio.sleep(0))
    inbox.put(1, Failed("later"))
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    assert handled == ["good", "later"]
    assert len(failures) == 1

"""What every pod stored and evicted during a run, asked for after it: the replay socket holds it all (spec/kv.md 1.5).

Asking afterwards loses nothing and costs the run nothing. The evidence for `explain`; the picker is not asked, because it is
the one whose predictions are on trial. One coroutine a pod on the caller's event loop.
"""

import asyncio
from array import array
from collections.abc import Sequence

import zmq
import zmq.asyncio

from epp.demo.blocks import BlockNames
from epp.demo.processes import DemoError
from epp.demo.records import Announcement
from epp.kvcache import events

REPLAY_TIMEOUT_S = 10.0
_END = (-1).to_bytes(8, "big", signed=True)


async def payloads(context: zmq.asyncio.Context, address: str) -> list[bytes]:
    """All batches of a pod since its start, from its replay socket at "host:port". Raises DemoError where it does not answer."""
    batches: list[bytes] = []
    with context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.connect(f"tcp://{address}")
        try:
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                while not await _continue(socket, batches):
                    pass
        except TimeoutError:
            raise DemoError(f"the pod's replay socket at {address} did not answer within {REPLAY_TIMEOUT_S:.0f} s") from None
    return batches


async def _continue(socket: zmq.asyncio.Socket, batches: list[bytes]) -> bool:
    """Ask for what follows `batches` and append it; whether that was all. An engine drops silently what its socket cannot hold."""
    await socket.send_multipart([b"", len(batches).to_bytes(8, "big")])
    complete = True
    while True:
        *_, sequence, payload = await socket.recv_multipart()
        if sequence == _END:
            return complete
        if int.from_bytes(sequence, "big") == len(batches):
            batches.append(payload)
        else:
            complete = False


def announcements(pod: str, batches: Sequence[bytes], names: BlockNames) -> list[Announcement]:
    """The batches of one pod since its cache was last cleared, with blocks named by their tokens."""
    known: dict[int, int] = {}
    history: list[Announcement] = []
    for payload in batches:
        batch = events.decode(payload)
        removed: list[int] = []
        stored: list[int] = []
        for event in batch.events:
            if isinstance(event, events.AllCleared):
                history.clear()
                removed.clear()
                stored.clear()
            elif isinstance(event, events.BlockRemoved):
                removed.extend(known[block] for block in event.hashes if block in known)
            elif isinstance(event, events.BlockStored) and (event.parent is None or event.parent in known):
                parent = 0 if event.parent is None else known[event.parent]
                chain = names.chain(array("I", event.tokens), parent)
                known.update(zip(event.hashes, chain, strict=True))
                stored.extend(chain)
        history.append(Announcement(pod, batch.ts or 0.0, tuple(removed), tuple(stored)))
    return history

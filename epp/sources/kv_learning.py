"""What a new process knows of the fleet's caches, and says about it: replays are waited for, and what they cannot tell is named.

Called once by the composition root, on the event loop, before it is ready.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

from epp.domain import EndpointId
from epp.sources.kv_events import KvEventSource

logger = logging.getLogger(__name__)

# Between two lines about how far the caches are known.
PROGRESS_S: Final = 2.0
_NAMED: Final = 5


async def learn_caches(source: KvEventSource, *, limit_s: float) -> None:
    """Return when every endpoint has told what it holds, or cannot, and at the latest after `limit_s`; a line now and then, one at least."""
    loop = asyncio.get_running_loop()
    settled, left, deadline = False, limit_s, loop.time() + limit_s
    while not settled and left > 0:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(source.settled.wait(), min(left, PROGRESS_S))
        settled, left = source.settled.is_set(), deadline - loop.time()
        learnt = source.learnt()
        logger.info("%d of %d endpoints have told what they hold: %d blocks", learnt.told, learnt.endpoints, learnt.blocks)
    if not settled:
        logger.warning("some endpoints have not told what they hold within %g s: ready without them", limit_s)
    learnt = source.learnt()
    if learnt.unheard:
        logger.warning("no KV events yet from %s: what they hold is not known", _listed(learnt.unheard))
    if learnt.without_replay:
        logger.warning("no replay socket: what %s cached before now is not known until it is stored again", _listed(learnt.without_replay))


def _listed(endpoints: Sequence[EndpointId]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(endpoints) - _NAMED} more" if len(endpoints) > _NAMED else ""
    return ", ".join(endpoints[:_NAMED]) + more

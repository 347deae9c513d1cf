"""What the picker's parity monitor says after a run: how many prompts filled the blocks they were expected to fill.

Read from its metrics page, once the last predictions have settled.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from epp.kvcache.predictions import SETTLE_S

_FAMILY: Final = "epp_parity_predictions"
# The picker looks every second for what is due.
_WAIT_S: Final = SETTLE_S + 1.5


async def settled(metrics: str) -> Mapping[str, int]:
    """Requests by result; waits some seconds for the last ones."""
    await asyncio.sleep(_WAIT_S)
    async with aiohttp.ClientSession() as session, session.get(metrics) as answer:
        return parse(await answer.text())


def parse(page: str) -> Mapping[str, int]:
    """The counts of a metrics page, over all models and pods."""
    counts: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        if family.name == _FAMILY:
            for sample in family.samples:
                counts[sample.labels["result"]] += int(sample.value)
    return counts

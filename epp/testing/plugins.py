"""What every scorer must hold to, whatever its opinion: `check_scorer` is for our plugins and for anybody's.

A failed check is an AssertionError with a sentence. Deterministic; imported by tests only.
"""

import copy
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

from epp.domain import Endpoint, PrefixMatch
from epp.scheduling.interfaces import Consumer, Cycle, DataKey, InFlight, Scorer
from epp.testing.builders import make_cycle, make_endpoint, make_tokens

SIZES = (0, 1, 2, 17)
PROMPT_BLOCKS = 12
BLOCK_SIZE = 16


def check_scorer(factory: Callable[[], Scorer]) -> None:
    """One score in [0, 1] a candidate, for any number of candidates, of all endpoints or some, with and without producer data.

    Same input, same scores; candidates, endpoints and the data of producers stay as they were. `factory` makes a fresh scorer.
    """
    for size, with_data, step in itertools.product(SIZES, (True, False), (1, 2)):
        cycle, again = (_cycle(factory(), size, with_data=with_data) for _ in range(2))
        _check(factory, cycle, again, step)


def _check(factory: Callable[[], Scorer], cycle: Cycle, again: Cycle, step: int) -> None:
    candidates = cycle.endpoints if step == 1 else cycle.endpoints[::step]
    before, data = list(candidates), _data(cycle)
    scorer = factory()
    scores = scorer.score(cycle, candidates)
    case = f"{scorer.name}, {len(candidates)} of {len(cycle.endpoints)} endpoints"
    assert isinstance(scores, list), f"{case}: scores are a list, not {type(scores).__name__}"
    assert len(scores) == len(candidates), f"{case}: {len(scores)} scores"
    assert all(0.0 <= score <= 1.0 for score in scores), f"{case}: a score is outside [0, 1]: {scores}"
    assert list(candidates) == before, f"{case}: the candidates were changed"
    after = _data(cycle)
    assert all(after[key] == value for key, value in data.items()), f"{case}: data of a producer was changed"
    others = again.endpoints if step == 1 else again.endpoints[::step]
    assert factory().score(again, others) == scores, f"{case}: the same cycle got other scores the second time"


def _data(cycle: Cycle) -> dict[DataKey[Any], object]:
    return copy.deepcopy(cycle._data)


def _cycle(scorer: Scorer, size: int, *, with_data: bool) -> Cycle:
    """Endpoints of all sorts, and plausible data under every key the scorer reads."""
    dice = random.Random(size)  # noqa: S311  # a test's dice
    endpoints: Sequence[Endpoint] = [
        make_endpoint(i, waiting=dice.randrange(20), running=dice.randrange(20), kv_cache_usage=dice.random()) for i in range(size)
    ]
    cycle = make_cycle(endpoints, tokens=make_tokens(PROMPT_BLOCKS * BLOCK_SIZE))
    if with_data and isinstance(scorer, Consumer):
        for key in scorer.consumes():
            _put(cycle, key, dice)
    return cycle


def _put(cycle: Cycle, key: DataKey[Any], dice: random.Random) -> None:
    if key.data == "PrefixCacheMatchInfo":
        blocks = [dice.randint(0, PROMPT_BLOCKS) for _ in cycle.endpoints]
        tokens = [held * BLOCK_SIZE for held in blocks]
        cycle.put(key, PrefixMatch(BLOCK_SIZE, PROMPT_BLOCKS, blocks, PROMPT_BLOCKS * BLOCK_SIZE, tokens))
    elif key.data == "InFlightLoad":
        requests = [dice.randrange(8) for _ in cycle.endpoints]
        cycle.put(key, InFlight(requests, [count * 100 for count in requests]))

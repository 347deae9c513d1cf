"""The demo's chats: a few tenants with long shared instructions, and conversations that grow. Pure and seeded.

What it imitates (spec/field-experience.md 2.1, 6): every request of a tenant begins with the tenant's system prompt, every
turn of a conversation repeats the turns before it, conversations begin in bursts, and people think before they answer. So
nearly all of a prompt has been computed before, by one endpoint.

The sizes make placement matter. All conversations that are open at one time need about twice the KV cache of one endpoint
and half of the fleet's: whoever spreads them blindly recomputes, whoever follows the prefix does not.

The same seed gives the same workload; `client` plays it in every mode.
"""

import random
from dataclasses import dataclass

from epp.demo import texts


@dataclass(frozen=True, slots=True)
class Size:
    """How much is played. Times in seconds, lengths in words (1.2 to 1.4 tokens each)."""

    conversations: int = 60
    span_s: float = 9.0
    """Conversations begin within this time."""
    turns: tuple[int, int] = (4, 6)
    system_words: tuple[int, int] = (300, 1100)
    message_words: tuple[int, int] = (60, 240)
    answer_tokens: tuple[int, int] = (10, 24)
    think_s: float = 0.5
    """Mean of the pause between an answer and the next message."""
    tenants: int = len(texts.TRADES)
    at_once: int = 1000
    """Conversations that are open at one time, at most; further ones wait for one to end."""


FULL = Size()
QUICK = Size(conversations=18, span_s=3.0, turns=(3, 4))

# The tenant used most gets this much more than the one used least: 1 / (rank + 1) ** SKEW.
SKEW = 0.4
# Share of a tenant's conversations that begin in a burst (a newsletter went out), its size, and how close together they begin.
BURST_SHARE = 0.4
BURST_SIZE = (2, 4)
BURST_SPACING_S = 0.12
SHORTEST_THINK_S = 0.3


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who shares a system prompt."""

    name: str
    system_prompt: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the user."""

    text: str
    think_s: float
    """Pause before it is sent, after the answer before (0 for the first)."""
    answer_tokens: int
    """`max_tokens` of the request."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One user who talks with one tenant's assistant."""

    name: str
    tenant: Tenant
    start_s: float
    """Since the workload began."""
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Workload:
    """Conversations by start time."""

    seed: int
    tenants: tuple[Tenant, ...]
    conversations: tuple[Conversation, ...]
    at_once: int
    """As in `Size`."""

    @property
    def requests(self) -> int:
        """How many requests it makes."""
        return sum(len(conversation.turns) for conversation in self.conversations)


def generate(seed: int, size: Size = FULL) -> Workload:
    """The workload of this seed."""
    rng = random.Random(seed)  # noqa: S311  # a workload, no secret
    low, high = size.system_words
    trades = texts.TRADES[: size.tenants]
    step = (high - low) / (len(trades) - 1)
    # Spread evenly, so that no seed has only short prompts or only long ones; who has which is drawn.
    lengths = [round(low + i * step) for i in range(len(trades))]
    rng.shuffle(lengths)
    tenants = tuple(Tenant(trade.name, texts.system_prompt(rng, trade, words)) for trade, words in zip(trades, lengths, strict=True))
    conversations: list[Conversation] = []
    counts = [0] * len(tenants)
    for start_s, i in _arrivals(rng, size, len(tenants)):
        counts[i] += 1
        name = f"{tenants[i].name}-{counts[i]:02d}"
        conversations.append(Conversation(name, tenants[i], start_s, _turns(rng, size, trades[i])))
    return Workload(seed, tenants, tuple(conversations), size.at_once)


def _arrivals(rng: random.Random, size: Size, tenants: int) -> list[tuple[float, int]]:
    """(start, tenant) of each conversation, by start: groups of one tenant, alone or in a burst, at times uniform over the span.

    Uniform times of a fixed count are a Poisson process that is known to bring that many, so that seeds differ in shape, not in load.
    """
    arrivals: list[tuple[float, int]] = []
    for tenant, conversations in zip(rng.sample(range(tenants), tenants), _shares(size.conversations, tenants), strict=True):
        left = conversations
        while left > 0:
            count = min(left, rng.randint(*BURST_SIZE)) if rng.random() < BURST_SHARE else 1
            start = rng.uniform(0.0, size.span_s)
            arrivals.extend((start + i * BURST_SPACING_S, tenant) for i in range(count))
            left -= count
    arrivals.sort()
    first = arrivals[0][0]
    return [(start - first, tenant) for start, tenant in arrivals]


def _shares(total: int, tenants: int) -> list[int]:
    """`total` divided by falling popularity."""
    weights = [(rank + 1) ** -SKEW for rank in range(tenants)]
    shares = [int(total * weight / sum(weights)) for weight in weights]
    for rank in range(total - sum(shares)):
        shares[rank] += 1
    return shares


def _turns(rng: random.Random, size: Size, trade: texts.Trade) -> tuple[Turn, ...]:
    return tuple(
        Turn(
            text=texts.user_message(rng, trade, rng.randint(*size.message_words)),
            think_s=max(SHORTEST_THINK_S, rng.expovariate(1.0 / size.think_s)) if i else 0.0,
            answer_tokens=rng.randint(*size.answer_tokens),
        )
        for i in range(rng.randint(*size.turns))
    )

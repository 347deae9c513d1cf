"""The workload is the same for a seed, and has the shape that makes placement matter."""

from collections import Counter

import pytest

from epp.demo import workload


def test_the_same_seed_gives_the_same_chats() -> None:
    """A printed seed is enough to repeat a run."""
    assert workload.generate(7) == workload.generate(7)


def test_another_seed_gives_other_chats() -> None:
    """No prompt of one seed is warm in the other."""
    first, second = workload.generate(1), workload.generate(2)
    assert not {tenant.system_prompt for tenant in first.tenants} & {tenant.system_prompt for tenant in second.tenants}


@pytest.mark.parametrize("seed", range(20))
def test_every_seed_has_the_same_amount_of_work(seed: int) -> None:
    """Seeds differ in shape, not in load: conversations by the size, each within its bounds, every tenant in use."""
    size = workload.FULL
    chats = workload.generate(seed, size)
    assert len(chats.conversations) == size.conversations
    assert all(size.turns[0] <= len(conversation.turns) <= size.turns[1] for conversation in chats.conversations)
    assert set(Counter(conversation.tenant.name for conversation in chats.conversations)) == {tenant.name for tenant in chats.tenants}
    assert all(size.system_words[0] <= len(tenant.system_prompt.split()) <= size.system_words[1] + 40 for tenant in chats.tenants)


def test_conversations_come_in_order_and_under_different_names() -> None:
    """Names identify a conversation in the results, and the first one begins at once."""
    conversations = workload.generate(3).conversations
    starts = [conversation.start_s for conversation in conversations]
    assert starts == sorted(starts)
    assert starts[0] == 0.0
    assert len({conversation.name for conversation in conversations}) == len(conversations)


def test_people_think_between_turns_but_not_before_the_first() -> None:
    """The first message of a conversation waits for nothing."""
    turns = [conversation.turns for conversation in workload.generate(3).conversations]
    assert all(first.think_s == 0.0 for first, *_ in turns)
    assert all(turn.think_s >= workload.SHORTEST_THINK_S for _, *rest in turns for turn in rest)

"""Who holds what, case by case; the random streams are in test_index_stateful.py, the real ones in test_recordings.py."""

import pytest

from epp.domain import DecisionId, EndpointId, TokenizedRequest, TokenState
from epp.kvcache.events import AllCleared, BlockStored
from epp.kvcache.index import PrefixIndex
from epp.kvcache.predictions import Answered, Predictions, Settled, Verdict
from tests.unit.kvcache.feeding import PROMPT, A, B, C, Recorder, feed, hit_tokens, removed, request, stored


def test_each_endpoint_is_credited_with_its_own_contiguous_prefix(index: PrefixIndex) -> None:
    """All of it, a part of it, and a part that lacks the first block."""
    feed(index, A, stored([1, 2, 3], PROMPT))
    feed(index, B, stored([91, 92], PROMPT[:8]))
    feed(index, C, stored([71, 72, 73], PROMPT), removed(71))

    assert hit_tokens(index, PROMPT) == [12, 8, 0]
    assert [index.blocks(endpoint) for endpoint in (A, B, C)] == [3, 2, 2]


def test_the_last_token_of_a_prompt_is_never_a_hit(index: PrefixIndex) -> None:
    """vLLM computes it again, and with it its whole block."""
    feed(index, A, stored([1, 2, 3], PROMPT))

    hits = index.match(request(PROMPT), [A], 0.0)
    assert (hits.tokens, hits.blocks, hits.block_sizes) == ([8], [3], [4])


def test_prompts_of_one_request_are_summed(index: PrefixIndex) -> None:
    """A batch of prompts goes to one endpoint; short and empty ones count nothing."""
    feed(index, A, stored([1, 2, 3], PROMPT), stored([4], [9, 9, 9, 9]))

    assert hit_tokens(index, PROMPT, [9, 9, 9, 9], [1, 2], []) == [16, 0, 0]


def test_a_request_without_tokens_matches_nothing(index: PrefixIndex) -> None:
    """So does a prompt with ids that are no token ids, which the engine will refuse."""
    feed(index, A, stored([1], PROMPT[:4]))

    assert index.match(TokenizedRequest(TokenState.ABSENT), [A], 0.0).tokens == [0]
    assert hit_tokens(index, [1, 2, 3, 1 << 40]) == [0, 0, 0]


def test_endpoints_with_different_block_sizes(index: PrefixIndex) -> None:
    """Each is matched in its own blocks, learnt from its events."""
    feed(index, A, stored([1, 2, 3], PROMPT))
    feed(index, B, stored([1, 2, 3, 4, 5], PROMPT[:10], size=2))
    index.set_block_size(C, 6)
    index.speculate(index.match(request(PROMPT), [C], 0.0), C, until=1.0)

    assert [index.block_size(endpoint) for endpoint in (A, B, C)] == [4, 2, 6]
    assert hit_tokens(index, PROMPT) == [12, 10, 12]
    assert hit_tokens(index, PROMPT[:11]) == [8, 10, 6]


def test_events_know_the_block_size_better_than_metrics(index: PrefixIndex) -> None:
    """An engine that shards its context publishes larger blocks than its cache_config_info says."""
    index.set_block_size(A, 2)
    feed(index, A, stored([1], PROMPT[:4]))
    index.set_block_size(A, 2)

    assert hit_tokens(index, PROMPT[:4]) == [4, 0, 0]


@pytest.mark.parametrize("lora", [None, "adapter"])
def test_lora_and_base_model_do_not_share(index: PrefixIndex, lora: str | None) -> None:
    """The same tokens under another adapter are other blocks."""
    feed(index, A, stored([1, 2, 3], PROMPT, lora=lora))

    assert hit_tokens(index, PROMPT, lora=lora) == [12, 0, 0]
    assert hit_tokens(index, PROMPT, lora="adapter" if lora is None else None) == [0, 0, 0]


def test_multimodal_blocks_are_not_taken_for_text(index: PrefixIndex) -> None:
    """Placeholder tokens are alike for all images: only the image tells the block."""
    feed(index, A, stored([1, 2, 3], PROMPT, extras=[(), (("mm", "image", 1),), ()]))

    assert hit_tokens(index, PROMPT) == [4, 0, 0]


def test_every_physical_copy_counts(index: PrefixIndex) -> None:
    """A block stored twice is held until both copies are gone, and one removal too many does no harm."""
    feed(index, A, stored([1], PROMPT[:4]), stored([1], PROMPT[:4]), stored([1], PROMPT[:4]))
    feed(index, A, removed(1), removed(1))
    assert hit_tokens(index, PROMPT[:4]) == [4, 0, 0]

    feed(index, A, removed(1), removed(1))
    assert hit_tokens(index, PROMPT[:4]) == [0, 0, 0]

    feed(index, A, stored([1], PROMPT[:4]))
    assert hit_tokens(index, PROMPT[:4]) == [4, 0, 0]


def test_two_engine_hashes_can_mean_one_block(index: PrefixIndex) -> None:
    """A LoRA loaded from another path has other hashes and the same name: the block goes with the last of them."""
    feed(index, A, stored([1], PROMPT[:4], lora="a"), stored([2], PROMPT[:4], lora="a"), removed(1))
    assert hit_tokens(index, PROMPT[:4], lora="a") == [4, 0, 0]

    feed(index, A, removed(2))
    assert hit_tokens(index, PROMPT[:4], lora="a") == [0, 0, 0]


class Said:
    """Keeps how predictions came out."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []

    def settled(self, settled: Settled) -> None:
        self.verdicts.append(settled.verdict)

    def answered(self, answered: Answered) -> None: ...

    def unusable(self, endpoint: EndpointId, reason: str) -> None: ...

    def forgotten(self, endpoint: EndpointId) -> None: ...


@pytest.mark.parametrize(("dropped", "verdict"), [((2,), Verdict.CONTRADICTED), ((2, 4), Verdict.CONFIRMED)])
def test_a_block_that_another_hash_still_means_is_not_taken_for_evicted(
    reporter: Recorder, dropped: tuple[int, ...], verdict: Verdict
) -> None:
    """An engine that computes it again although it holds it has lost its cache; one that dropped all of its hashes has not."""
    said = Said()
    index = PrefixIndex(reporter, default_block_size=4, predictions=Predictions(lambda: 0.0, outcomes=said, prefill_ended=lambda _: None))
    feed(index, A, stored([1, 2], PROMPT[:8], lora="a"), stored([3, 4], PROMPT[:8], lora="a"))
    index.predict(index.match(request(PROMPT[:9], lora="a"), [A], 0.0), A, DecisionId("1"), "m", 0.0, 0.0)
    feed(index, A, removed(*dropped), stored([5, 6], PROMPT[:8], lora="a"))
    index.answer_ended(DecisionId("1"))
    index.sweep(100.0)

    assert said.verdicts == [verdict]


def test_a_chain_that_is_stored_again_from_its_middle_is_no_stranger_to_those_that_wait(reporter: Recorder) -> None:
    """A block that one request was to find was evicted: it stores that too, and goes on as expected; another with the same beginning is unseen."""
    said = Said()
    index = PrefixIndex(reporter, default_block_size=4, predictions=Predictions(lambda: 0.0, outcomes=said, prefill_ended=lambda _: None))
    feed(index, A, stored([1, 2], PROMPT[:8]))
    for decision, prompt in (DecisionId("1"), [*PROMPT, 0]), (DecisionId("2"), [*PROMPT[:4], *range(50, 60)]):
        index.predict(index.match(request(prompt), [A], 0.0), A, decision, "m", 0.0, 0.0)
    feed(index, A, removed(2), stored([2, 3], PROMPT[4:], parent=1))
    for number in "12":
        index.answer_ended(DecisionId(number))
    index.sweep(100.0)

    assert said.verdicts == [Verdict.CONFIRMED, Verdict.UNSEEN]


def test_all_blocks_cleared(index: PrefixIndex) -> None:
    """What comes after it in the same batch is held again; other endpoints are not touched."""
    feed(index, A, stored([1, 2, 3], PROMPT))
    feed(index, B, stored([1, 2, 3], PROMPT))
    feed(index, A, AllCleared(), stored([1], PROMPT[:4]))

    assert hit_tokens(index, PROMPT) == [4, 12, 0]
    assert index.blocks(A) == 1


def test_a_cleared_or_removed_endpoint_is_forgotten_and_can_come_back(index: PrefixIndex) -> None:
    """A restarted engine may have another block size; endpoints that come later are not mistaken for earlier ones."""
    feed(index, A, stored([1, 2, 3], PROMPT))
    feed(index, B, stored([1, 2, 3], PROMPT))
    index.clear(A)
    index.remove(B)
    feed(index, C, stored([1], PROMPT[:4]))
    assert hit_tokens(index, PROMPT) == [0, 0, 4]
    assert [index.blocks(endpoint) for endpoint in (A, B, C)] == [0, 0, 1]

    while index.sweep(0.0, limit=1):
        assert hit_tokens(index, PROMPT) == [0, 0, 4]
    feed(index, A, stored([1, 2], PROMPT[:4], size=2))
    feed(index, B, stored([1, 2], PROMPT[:8]))
    assert hit_tokens(index, PROMPT) == [4, 8, 4]


def test_ranks_of_one_endpoint_do_not_add_up(index: PrefixIndex) -> None:
    """A request runs on one rank, so the best rank counts, and one that restarts takes only its own blocks along."""
    feed(index, A, stored([1], PROMPT[:4]), rank=0)
    feed(index, A, stored([2, 3], PROMPT[:8]), rank=1)
    assert hit_tokens(index, PROMPT) == [8, 0, 0]

    index.clear(A, 1)
    assert hit_tokens(index, PROMPT) == [4, 0, 0]


@pytest.mark.parametrize("kind", [None, "full_attention", "mla_attention", "sink_full_attention"])
def test_full_attention_is_indexed(index: PrefixIndex, kind: str | None) -> None:
    """Engines that do not say count as full attention."""
    feed(index, A, stored([1], PROMPT[:4], kind=kind))

    assert hit_tokens(index, PROMPT) == [4, 0, 0]


@pytest.mark.parametrize("kind", ["sliding_window", "mamba", "chunked_local_attention", "kind-to-come"])
def test_other_groups_are_passed_over(index: PrefixIndex, reporter: Recorder, kind: str) -> None:
    """Groups share hashes: what another group stores or removes leaves the full-attention group's blocks alone."""
    feed(index, A, stored([1], PROMPT[:4], kind=kind, group=1))
    assert hit_tokens(index, PROMPT) == [0, 0, 0]

    feed(index, A, stored([1], PROMPT[:4]), stored([], PROMPT[:4], kind=kind, group=1), removed(1, group=1))
    assert hit_tokens(index, PROMPT) == [4, 0, 0]
    assert reporter.problems == []


def test_a_second_full_attention_group_does_not_count_twice(index: PrefixIndex) -> None:
    """Several groups announce the same block; it is gone when the counted one drops it."""
    feed(index, A, stored([1], PROMPT[:4], group=0), stored([1], PROMPT[:4], group=2), removed(1, group=0))

    assert hit_tokens(index, PROMPT) == [0, 0, 0]


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (stored([2], PROMPT[:3]), "not_dense"),
        (stored([2], PROMPT[:8]), "not_dense"),
        (stored([2], [], size=0), "not_dense"),
        (stored([2, 3], PROMPT[:4], size=2), "block_size"),
        (stored([2], PROMPT[:4], parent=77), "orphan"),
    ],
)
def test_what_cannot_be_placed_is_reported(index: PrefixIndex, reporter: Recorder, event: BlockStored, reason: str) -> None:
    """The rest of the batch is applied, and the decoder's own findings are passed on."""
    feed(index, A, stored([1], PROMPT[:4]), event, stored([9], PROMPT[4:8], parent=1), errors=("token_ids",))

    assert reporter.problems == [(A, "token_ids"), (A, reason)]
    assert hit_tokens(index, PROMPT) == [8, 0, 0]


def test_blocks_that_wait_for_their_parent(index: PrefixIndex) -> None:
    """Whatever the order in which a lost head comes back, all that is still held is found; what was removed meanwhile is not."""
    feed(index, A, stored([3, 4, 5], [*PROMPT[8:], *range(20, 28)], parent=2), removed(5))
    feed(index, A, stored([2], PROMPT[4:8], parent=1))
    assert hit_tokens(index, PROMPT) == [0, 0, 0]

    feed(index, A, stored([1], PROMPT[:4]))
    assert hit_tokens(index, [*PROMPT, *range(20, 28)]) == [16, 0, 0]
    assert index.blocks(A) == 4


def test_waiting_copies_are_counted(index: PrefixIndex) -> None:
    """A block stored twice before its parent showed up leaves with its second removal."""
    feed(index, A, stored([2], PROMPT[4:8], parent=1), stored([2], PROMPT[4:8], parent=1), stored([1], PROMPT[:4]), removed(2))
    assert hit_tokens(index, PROMPT) == [8, 0, 0]

    feed(index, A, removed(2))
    assert hit_tokens(index, PROMPT) == [4, 0, 0]


def test_a_span_whose_parent_is_unknown_can_still_meet_known_blocks(index: PrefixIndex) -> None:
    """From the first block known from another copy on, the span is placed."""
    feed(index, A, stored([1, 2], PROMPT[:8]), removed(1))
    feed(index, A, stored([2, 3], PROMPT[4:], parent=1), stored([1], PROMPT[:4]))

    assert hit_tokens(index, PROMPT) == [12, 0, 0]

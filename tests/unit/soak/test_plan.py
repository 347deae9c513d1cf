"""The requests of a soak: reproducible, of every kind, and as large as the picker accepts."""

from collections import Counter

from tests.soak.plan import MAX_BODY, Kind, Plans

MANY = 5_000


def test_the_same_seed_plays_the_same_requests() -> None:
    """A failure can be played again, and a request does the same whichever went before it."""
    assert list(Plans(1)(0, 50))[40:] == list(Plans(1)(40, 10))
    assert list(Plans(1)(0, 50)) != list(Plans(2)(0, 50))


def test_every_kind_comes_up_over_both_versions_of_http() -> None:
    """Fewer than half break off, or Envoy takes the client for an attacker."""
    plans = list(Plans(1)(0, MANY))

    kinds = Counter((plan.kind, plan.http2) for plan in plans)

    assert {kind for kind, http2 in kinds if http2} == set(Kind)
    assert {kind for kind, http2 in kinds if not http2} == set(Kind) - {Kind.CONNECTION}
    whole = kinds[Kind.JSON, True] + kinds[Kind.STREAM, True]
    assert whole > sum(count for (_, http2), count in kinds.items() if http2) / 2


def test_only_bodies_that_are_to_be_refused_are_too_large() -> None:
    """The others are what the picker was told to accept; pieces make up the body."""
    for plan in Plans(1)(0, MANY):
        assert (len(plan.body.data) > MAX_BODY) == (plan.kind is Kind.TOO_LARGE)
        assert plan.pieces[-1] == len(plan.body.data)
        assert list(plan.pieces) == sorted(set(plan.pieces))

"""Reading what the parity monitor counted."""

from epp.demo import parity

PAGE = """# HELP epp_parity_predictions_total x
# TYPE epp_parity_predictions_total counter
epp_parity_predictions_total{model="m",endpoint="a",result="confirmed"} 3.0
epp_parity_predictions_total{model="m",endpoint="b",result="confirmed"} 2.0
epp_parity_predictions_total{model="m",endpoint="b",result="unseen"} 1.0
# TYPE other_total counter
other_total 7.0
"""


def test_counts_are_summed_over_pods() -> None:
    """By result; other families say nothing."""
    assert parity.parse(PAGE) == {"confirmed": 5, "unseen": 1}
    assert parity.parse("") == {}

"""Whether we are right about engines, as metrics: counts that end with an endpoint, and one gauge for the alarm."""

from prometheus_client import CollectorRegistry

from epp.domain import EndpointId, ParityLoss
from epp.observability.prometheus import PrometheusReporter


def test_parity(registry: CollectorRegistry, reporter: PrometheusReporter) -> None:
    """Counted by model, endpoint and result; the alarm is a gauge; what is counted for an endpoint goes with it."""
    value, endpoint = registry.get_sample_value, EndpointId("team/a")
    for verdict in ("confirmed", "confirmed", "contradicted"):
        reporter.parity_settled(endpoint, "tiny", verdict)
    assert value("epp_parity_predictions_total", {"model": "tiny", "endpoint": "team/a", "result": "confirmed"}) == 2
    reporter.parity_lost(ParityLoss("tiny", [endpoint], "bos", "store other blocks", "beginning-of-sequence token", 8, 10))
    assert value("epp_parity_lost", {"model": "tiny", "cause": "bos"}) == 1
    reporter.parity_restored("tiny")
    assert value("epp_parity_lost", {"model": "tiny", "cause": "bos"}) == 0
    reporter.prompt_tokens_compared(endpoint, "tiny", 1)
    assert value("epp_parity_prompt_tokens_total", {"model": "tiny", "endpoint": "team/a", "result": "different"}) == 1
    reporter.hits_counted(endpoint, 1_000, 900)
    assert value("epp_parity_counted_hit_tokens_total", {"endpoint": "team/a", "said": "expected"}) == 1_000
    assert value("epp_parity_counted_hit_tokens_total", {"endpoint": "team/a", "said": "counted"}) == 900
    reporter.prefill_ended(endpoint, "tiny", 0.3)
    assert value("epp_prefill_seconds_bucket", {"model": "tiny", "le": "0.4"}) == 1
    reporter.endpoint_removed(endpoint)
    assert value("epp_parity_predictions_total", {"model": "tiny", "endpoint": "team/a", "result": "confirmed"}) is None


def test_an_alarm_that_names_another_cause_ends_the_series_of_the_first(registry: CollectorRegistry, reporter: PrometheusReporter) -> None:
    """One model, one alarm."""
    for cause in ("bos", "silent"):
        reporter.parity_lost(ParityLoss("tiny", [EndpointId("team/a")], cause, "store other blocks", "something", 8, 10))
    assert registry.get_sample_value("epp_parity_lost", {"model": "tiny", "cause": "bos"}) == 0
    assert registry.get_sample_value("epp_parity_lost", {"model": "tiny", "cause": "silent"}) == 1


def test_models_that_share_a_series_share_its_alarm(registry: CollectorRegistry, reporter: PrometheusReporter) -> None:
    """Beyond the label limit it is up while any of them has one: none hides another's, and none ends another's."""
    for number in range(1_000):
        reporter.prefill_ended(EndpointId("team/a"), f"model-{number}", 0.1)

    def other() -> float | None:
        return registry.get_sample_value("epp_parity_lost", {"model": "other", "cause": "bos"})

    for model in ("late", "later"):
        reporter.parity_lost(ParityLoss(model, [EndpointId("team/a")], "bos", "store other blocks", "something", 8, 10))
    assert other() == 1
    reporter.parity_restored("late")
    assert other() == 1
    reporter.parity_forgotten("later")
    assert other() == 0

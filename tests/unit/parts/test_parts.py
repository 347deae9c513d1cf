"""Flags of older pickers take effect on the parts they were about; the configuration stands above them."""

from dataclasses import replace

import pytest

from epp import parts
from epp.config.flags import ServeOptions
from epp.errors import ConfigError
from epp.plugins.datalayer.core_metrics_extractor import CoreMetricsParams, EngineConfig
from epp.plugins.datalayer.metrics_data_source import MetricsSourceParams
from epp.scheduling.params import Duration
from epp.sources.engine_metrics import VLLM


@pytest.mark.parametrize(
    ("options", "field", "name"),
    [
        (ServeOptions(total_queued_requests_metric="q"), "queued", "q"),
        (ServeOptions(total_running_requests_metric="r"), "running", "r"),
        (ServeOptions(kv_cache_usage_percentage_metric="k"), "kv_usage", "k"),
        (ServeOptions(lora_info_metric="l"), "lora", "l"),
        (ServeOptions(cache_info_metric="c"), "cache_info", "c"),
    ],
)
def test_metric_flags_rename_families_of_vllm(options: ServeOptions, field: str, name: str) -> None:
    """KServe 0.17 passes one of them; the others keep their names (spec/deploy.md 0, 4)."""
    assert parts.extraction(CoreMetricsParams(), options).engines["vllm"] == replace(VLLM, **{field: name})


def test_a_flag_that_is_no_metric_is_named() -> None:
    """The flag, what it said and what was expected."""
    with pytest.raises(ConfigError, match=r"^--lora-info-metric: metric spec 'nv\{a': expected"):
        parts.extraction(CoreMetricsParams(), ServeOptions(lora_info_metric="nv{a"))


def test_a_configured_engine_stands_above_the_flags() -> None:
    """Who writes an extractor for vLLM means that one."""
    engine = EngineConfig(name="vllm", queued_requests_spec="a", running_requests_spec="b")
    extraction = parts.extraction(CoreMetricsParams(engine_configs=(engine,)), ServeOptions(total_queued_requests_metric="q"))
    assert extraction.engines["vllm"].queued == "a"


FLAGS = ServeOptions(
    model_server_metrics_scheme="https",
    model_server_metrics_path="/m",
    model_server_metrics_port=9,
    model_server_metrics_https_insecure_skip_verify=False,
    refresh_metrics_interval=0.2,
)


def test_source_flags_fill_in_what_the_configuration_leaves_open() -> None:
    """Scheme, path, port, verification and interval."""
    settings = parts.scrape_settings(MetricsSourceParams(), FLAGS)
    assert (settings.scheme, settings.path, settings.port, settings.verify_tls, settings.interval_s) == ("https", "/m", 9, True, 0.2)
    settings = parts.scrape_settings(MetricsSourceParams(path="/own", port=7, interval=Duration(1.0)), FLAGS)
    assert (settings.scheme, settings.path, settings.port, settings.interval_s) == ("https", "/own", 7, 1.0)
    settings = parts.scrape_settings(MetricsSourceParams(), ServeOptions())
    assert (settings.scheme, settings.path, settings.port, settings.verify_tls) == ("http", "/metrics", None, False)


def test_instances() -> None:
    """A given id, else one that is the same after a restart and differs between pickers of one host."""
    assert parts.instance(ServeOptions(instance_id="epp-0")) == "epp-0"
    first, second = parts.instance(ServeOptions(grpc_port=9002)), parts.instance(ServeOptions(grpc_port=9102))
    assert first != second
    assert first == parts.instance(ServeOptions(grpc_port=9002))

"""Flags and configuration to the settings of each part: pure translation, so that epp.app only builds and runs.

Where a flag of older pickers and the configuration name the same thing, the configuration wins (spec/deploy.md 0, 4).
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from epp import config
from epp.config.flags import ServeOptions
from epp.errors import ConfigError
from epp.observability.log_format import LogSettings
from epp.plugins.datalayer.core_metrics_extractor import CoreMetricsParams
from epp.plugins.datalayer.metrics_data_source import MetricsSourceParams
from epp.plugins.producers.token import TokenProducerParams
from epp.scheduling import registry
from epp.server.certificates import TlsSettings
from epp.sources.engine_metrics import ENGINES, EngineMetrics, parse_spec
from epp.sources.metrics import Extraction, ScrapeSettings
from epp.tokenization import EstimateBackend, LocalTokenizer, LocalTokenizerConfig, RenderBackend
from epp.tokenization.backend import Backend

# The engine whose names the metric flags change: they are from a time when there was no other.
FLAGGED_ENGINE: Final = "vllm"
DEFAULT_POOL: Final = "epp"


def configuration(options: ServeOptions) -> config.EffectiveConfig:
    """The EndpointPickerConfig, of the file or of the flag. Raises ConfigError."""
    if options.config_file:
        return config.load_file(Path(options.config_file))
    return config.load(options.config_text, "--config-text", registry.load())


def log_settings(options: ServeOptions) -> LogSettings:
    """How to log."""
    return LogSettings(options.v, options.zap_log_level, options.zap_encoder, options.zap_time_encoding, options.zap_stacktrace_level)


def tls_settings(options: ServeOptions) -> TlsSettings:
    """How the gRPC port does TLS, if it does."""
    return TlsSettings(
        Path(options.cert_path) if options.cert_path else None,
        options.enable_cert_reload,
        options.tls_min_version,
        options.tls_cipher_suites,
    )


def instance(options: ServeOptions) -> str:
    """What tells this picker from others behind the same Envoy; the same after a restart, so that old log entries find it."""
    return options.instance_id or f"{socket.gethostname()}:{options.grpc_port or os.getpid()}"


def own_names() -> tuple[str, ...]:
    """The names a generated certificate is for; gateways do not verify it (spec/protocol.md 7.1)."""
    return ("localhost", socket.gethostname())


def backend(params: TokenProducerParams) -> Backend:
    """What the token-producer declares; exactly one of its backends is set."""
    if params.vllm is not None:
        return RenderBackend(params.vllm.url, params.model_name, params.vllm.timeout, params.vllm.mm_timeout, params.vllm.mode)
    if params.local is None:
        return EstimateBackend()
    local = params.local
    return LocalTokenizer(
        LocalTokenizerConfig(
            path=local.path or (None if local.package else params.model_name),
            package=local.package,
            chat_template=local.chat_template,
            content_format=local.content_format,
            default_chat_template_kwargs=local.default_chat_template_kwargs,
            exclude_tools_when_tool_choice_none=local.exclude_tools_when_tool_choice_none,
            enable_auto_tool_choice=local.enable_auto_tool_choice,
            trust_request_chat_template=local.trust_request_chat_template,
            max_model_len=local.max_model_len,
            add_generation_prompt=local.add_generation_prompt,
            lora_modules=local.lora_modules,
        )
    )


def scrape_settings(params: MetricsSourceParams, options: ServeOptions) -> ScrapeSettings:
    """Where /metrics of the endpoints is; the flags fill in what the configuration leaves at its default."""
    default = MetricsSourceParams()
    return ScrapeSettings(
        scheme=params.scheme if params.scheme != default.scheme else options.model_server_metrics_scheme or default.scheme,
        path=params.path if params.path != default.path else options.model_server_metrics_path or default.path,
        port=params.port or options.model_server_metrics_port or None,
        interval_s=params.interval or options.refresh_metrics_interval,
        verify_tls=not (params.insecure_skip_verify and options.model_server_metrics_https_insecure_skip_verify),
        ca_cert_path=params.ca_cert_path or None,
        client_cert_path=params.client_cert_path or None,
        client_key_path=params.client_key_path or None,
    )


def extraction(params: CoreMetricsParams, options: ServeOptions) -> Extraction:
    """The built-in engines, what the metric flags call their families, and the configured ones. Raises ConfigError."""
    configured = {
        engine.name: EngineMetrics(
            queued=engine.queued_requests_spec,
            running=engine.running_requests_spec,
            kv_usage=engine.kv_usage_spec or None,
            lora=engine.lora_spec or None,
            cache_info=engine.cache_info_spec or None,
            block_size_label=engine.cache_block_size_label_name,
            num_blocks_label=engine.cache_num_blocks_label_name,
            block_size=engine.cache_block_size_spec or None,
            num_blocks=engine.cache_num_blocks_spec or None,
        )
        for engine in params.engine_configs
    }
    flagged = {FLAGGED_ENGINE: replace(ENGINES[FLAGGED_ENGINE], **_renamed(options))}
    return Extraction({**ENGINES, **flagged, **configured}, params.default_engine, params.engine_label_key)


def _renamed(options: ServeOptions) -> Mapping[str, str]:
    flags = {
        "queued": "total_queued_requests_metric",
        "running": "total_running_requests_metric",
        "kv_usage": "kv_cache_usage_percentage_metric",
        "lora": "lora_info_metric",
        "cache_info": "cache_info_metric",
    }
    named = {}
    for field, flag in flags.items():
        if spec := getattr(options, flag):
            try:
                parse_spec(spec)
            except ConfigError as error:
                raise ConfigError(f"--{flag.replace('_', '-')}: {error}") from None
            named[field] = spec
    return named

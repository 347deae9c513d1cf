"""metrics-data-source: how /metrics of the endpoints is read (spec/plugins.md 12.1). epp.app builds the scraper from it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from epp.plugins.declared import Declared
from epp.scheduling.params import PORT, Duration
from epp.scheduling.registry import PluginType, Role

TYPE = "metrics-data-source"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSourceParams:
    """Parameters of metrics-data-source."""

    scheme: Literal["http", "https"] = "http"
    path: str = "/metrics"
    port: Annotated[int | None, PORT] = None
    """None: the port that serves requests."""
    insecure_skip_verify: bool = True
    ca_cert_path: str = ""
    client_cert_path: str = ""
    client_key_path: str = ""
    interval: Duration | None = None
    """None: --refresh-metrics-interval."""

    def __post_init__(self) -> None:
        if not self.path.startswith("/"):
            raise ValueError(f"path: {self.path!r} must begin with /")
        if self.interval is not None and self.interval <= 0:
            raise ValueError("interval: must be above 0s")


PLUGIN = PluginType(TYPE, MetricsSourceParams, Declared, frozenset((Role.METRICS_SOURCE,)), reads_bodies=False)

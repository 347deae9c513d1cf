"""What to simulate, and where it is then reached. Plain records; made by `command` and tests, read by `fleet` and `process`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from epp import names
from epp.simulator import faults
from epp.simulator.engine import EngineConfig
from epp.simulator.errors import SimulatorError
from epp.simulator.faults import Faults
from epp.simulator.hashing import DEFAULT_SEED, HashForm
from epp.simulator.publisher import PublisherConfig

NAMESPACE = "default"

# With --base-port B pod i has B+i for HTTP, B+100+i for KV events and B+200+i for replay.
MAX_PODS = 100
EVENTS_PORT_OFFSET = 100
REPLAY_PORT_OFFSET = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """What to simulate."""

    model_path: Path
    """Folder with tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    model: str
    """Served model name."""
    loras: Sequence[str] = ()
    pods: int = 4
    pod_name: str = "pod"
    """Pods are named this, a dash and their number."""
    host: str = "127.0.0.1"
    """IPv4 address to listen on; pickers connect to the same."""
    base_port: int = 0
    """0: the OS chooses every port."""
    max_model_len: int = 16384
    seed: int = 0
    """Of the answers, and of faults that strike at random."""
    hash_seed: str = DEFAULT_SEED
    """vLLM's PYTHONHASHSEED."""
    hash_form: HashForm = HashForm.INT
    engine: EngineConfig = field(default_factory=EngineConfig)
    publisher: PublisherConfig = field(default_factory=PublisherConfig)
    faults: Faults = faults.NONE
    """What goes wrong at every pod from the start."""
    dev_mode: bool = False
    """Serve `dev_api` too."""

    def check(self) -> None:
        """Raise SimulatorError for values that cannot work together."""
        if not 1 <= self.pods <= MAX_PODS:
            raise SimulatorError(f"--pods must be 1 to {MAX_PODS}, not {self.pods}")
        if self.max_model_len > self.engine.capacity_tokens:
            raise SimulatorError(
                f"--max-model-len {self.max_model_len} does not fit into the cache: {self.engine.num_blocks} blocks of "
                f"{self.engine.block_size} hold {self.engine.capacity_tokens} tokens; raise --num-blocks or lower --max-model-len"
            )
        if self.faults.silence is not None and not self.dev_mode:
            raise SimulatorError("--faults: silence from the start is for nobody to end; add --dev-mode, or leave the pods out")


@dataclass(frozen=True, slots=True)
class PodEndpoint:
    """Where one pod is reached."""

    name: str
    host: str
    port: int
    events_port: int
    """0: it connects to a picker that binds."""
    replay_port: int

    @property
    def url(self) -> str:
        """Base URL of the pod's API."""
        return f"http://{self.host}:{self.port}"

    def entry(self) -> dict[str, object]:
        """The entry of an endpoints file (spec/protocol.md 3.7)."""
        ports = {names.KV_EVENTS_PORT_LABEL: self.events_port, names.KV_REPLAY_PORT_LABEL: self.replay_port} if self.events_port else {}
        labels = {name: str(port) for name, port in ports.items()}
        return {"name": self.name, "namespace": NAMESPACE, "address": self.host, "port": str(self.port), "labels": labels}

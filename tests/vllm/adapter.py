"""A LoRA adapter, written byte by byte: random weights of rank 8 for the tiny model's attention, as safetensors and PEFT have them."""

import json
import random
import struct
from pathlib import Path

from tests.vllm.launch import RECORDED

RANK = 8


def write_adapter(folder: Path, seed: int) -> Path:
    """Returns the folder, which vLLM takes for `--lora-modules name=folder`."""
    config = json.loads((RECORDED / "config.json").read_text())
    hidden, head = config["hidden_size"], config["hidden_size"] // config["num_attention_heads"]
    outputs = {"q_proj": hidden, "v_proj": head * config["num_key_value_heads"]}
    rng, header, data = random.Random(seed), {}, bytearray()
    for layer in range(config["num_hidden_layers"]):
        for module, output in outputs.items():
            for part, shape in (("lora_A", [RANK, hidden]), ("lora_B", [output, RANK])):
                weights = [rng.uniform(-0.1, 0.1) for _ in range(shape[0] * shape[1])]
                begin = len(data)
                data += struct.pack(f"<{len(weights)}f", *weights)
                name = f"base_model.model.model.layers.{layer}.self_attn.{module}.{part}.weight"
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": list(outputs), "base_model_name_or_path": "tiny"})
    )
    return folder

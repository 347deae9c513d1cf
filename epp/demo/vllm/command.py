"""`epp demo-vllm`: the demo with real engines, and a check that fails where epp does not know what they hold.

Called by epp.cli. Needs a checkout's tools/vllm; `make demo-vllm` installs vLLM and makes the model first. Exit codes as
those of `epp demo`; 1 also where vLLM's own counters and epp's predictions are further apart than one block a request.
"""

import argparse
from pathlib import Path

from epp.demo import command
from epp.demo.vllm import session
from epp.demo.vllm.engines import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `epp demo-vllm`."""
    parser.description = (
        "Play multi-tenant chats on real vLLM engines behind a real Envoy, without and with epp, and compare with vLLM's counters."
    )
    parser.add_argument("--seed", type=int, default=command.DEFAULT_SEED, help="the chats to play; the same seed plays the same chats")
    parser.add_argument("--output", type=Path, default=Path("build/demo-vllm"), help="folder for results.json and logs")
    parser.add_argument("--port", type=command.port, default=0, help="port of Envoy's listener; 0: a free one")
    parser.add_argument("--vllm", type=Path, default=Path(".tools/vllm"), help="virtual environment that holds vLLM")
    parser.add_argument("--model", type=Path, default=Path("build/vllm-model"), help="folder of the model to serve")
    parser.add_argument("--serve", type=Path, default=Path("tools/vllm/serve.sh"), help="script that starts one engine")


def run(args: argparse.Namespace) -> int:
    """Play; returns the exit code."""
    options = session.Options(args.seed, args.output, Recipe(args.serve, args.vllm, args.model), args.port)
    print(f"epp demo-vllm, seed {options.seed}", flush=True)
    return command.conclude(lambda progress: session.play(options, progress))

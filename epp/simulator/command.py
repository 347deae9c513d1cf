"""`epp simulate`: model servers that behave like vLLM, on this machine, until they are told to stop.

Called by epp.cli. Prints one line a pod, then one that begins with "ready". Exit codes: 0 stopped by SIGINT or SIGTERM,
1 could not run (a taken port, an unreadable model).
"""

import argparse
import asyncio
import ipaddress
import signal
import sys
from pathlib import Path

import uvloop

from epp.simulator import faults
from epp.simulator.config import FleetConfig
from epp.simulator.engine import EngineConfig, LatencyProfile
from epp.simulator.errors import ApiError, SimulatorError
from epp.simulator.events import EventFormat
from epp.simulator.faults import Faults
from epp.simulator.fleet import Fleet
from epp.simulator.hashing import HashForm
from epp.simulator.publisher import PublisherConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `epp simulate`."""
    defaults = FleetConfig(model_path=Path(), model="")
    engine, latency = defaults.engine, defaults.engine.latency
    parser.formatter_class = _Help
    parser.description = "Run simulated vLLM pods: OpenAI API, real token ids and block hashes, KV events, metrics."
    fleet = parser.add_argument_group("fleet")
    fleet.add_argument("--pods", type=_positive, default=defaults.pods, help="number of pods")
    fleet.add_argument("--pod-name", default=defaults.pod_name, help="pods are named this, a dash and their number")
    fleet.add_argument("--host", type=_ipv4, default=defaults.host, help="IPv4 address to listen on")
    fleet.add_argument(
        "--base-port", type=_port, default=0, help="pod i: HTTP on this + i, KV events + 100 + i, replay + 200 + i; 0: chosen by the OS"
    )
    fleet.add_argument("--endpoints-file", type=Path, help="write an endpoints file for file-discovery here when all pods are ready")
    model = parser.add_argument_group("model")
    model.add_argument("--model-path", type=Path, required=True, help="folder with tokenizer.json and chat_template.jinja")
    model.add_argument("--model", required=True, help="model name in requests")
    model.add_argument("--lora", nargs="+", default=[], metavar="NAME", help="adapter names served beside the model")
    model.add_argument("--max-model-len", type=_positive, default=defaults.max_model_len, help="tokens of prompt and answer together")
    model.add_argument("--seed", type=int, default=defaults.seed, help="seed of the answers")
    model.add_argument("--hash-seed", default=defaults.hash_seed, help="seed of the block hashes, vLLM's PYTHONHASHSEED")
    size = parser.add_argument_group("engine")
    size.add_argument("--block-size", type=_positive, default=engine.block_size, help="tokens a KV block")
    size.add_argument("--num-blocks", type=_at_least_2, default=engine.num_blocks, help="KV blocks a pod, one of them the null block")
    size.add_argument("--max-num-seqs", type=_positive, default=engine.max_num_seqs, help="requests in a batch; the others wait")
    size.add_argument("--max-num-batched-tokens", type=_positive, default=engine.max_num_batched_tokens, help="tokens a step")
    events = parser.add_argument_group("KV events")
    events.add_argument("--buffer-steps", type=_positive, default=defaults.publisher.buffer_steps, help="batches kept for replay")
    events.add_argument(
        "--replay-frames",
        type=int,
        choices=(3, 4),
        default=defaults.publisher.replay_frames,
        help="frames of a reply to a replay; 3: without the topic, as vLLM before 0.26 and SGLang",
    )
    events.add_argument(
        "--events-format",
        choices=[form.value for form in EventFormat],
        default=defaults.publisher.form.value,
        help="maps-in-array: vLLM 0.24 to 0.32; maps: shortly before; arrays: 0.17 to 0.23; first-arrays: 0.8.5",
    )
    events.add_argument(
        "--block-hashes",
        choices=[form.value for form in HashForm],
        default=defaults.hash_form.value,
        help="int: vLLM's default; signed: SGLang; bytes: whole digests, VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0",
    )
    events.add_argument(
        "--events-topic",
        default=defaults.publisher.topic,
        metavar="TOPIC",
        help="{pod}, {host}, {port} and {model} are filled in; an empty one is vLLM's default (default: %(default)s)",
    )
    events.add_argument(
        "--first-sequence",
        type=_at_least_0,
        default=defaults.publisher.first_sequence,
        help="number of the first batch; llm-d-inference-sim begins with 1",
    )
    events.add_argument(
        "--connect-events",
        default=defaults.publisher.connect,
        metavar="ADDRESS",
        help="publish to this address of a picker that binds (kvEventsConfig.zmqEndpoint), instead of binding a port a pod",
    )
    wrong = parser.add_argument_group("what goes wrong")
    wrong.add_argument(
        "--faults",
        type=_faults,
        default="{}",
        metavar="JSON",
        help='at every pod from the start, as POST /faults takes it; for example {"drop": {"share": 0.01}, "tokens": {"skip": 1}}',
    )
    wrong.add_argument(
        "--dev-mode",
        action="store_true",
        help="serve /faults, /restart and /disconnect too, and what vLLM serves with VLLM_SERVER_DEV_MODE=1: /reset_prefix_cache, "
        "/sleep, /wake_up, /is_sleeping; anybody who reaches a pod can then stop it",
    )
    times = parser.add_argument_group("latency: a step takes max(step, prefill) + decode")
    times.add_argument("--step-ms", type=_duration, default=latency.step_ms, help="shortest step, milliseconds")
    times.add_argument(
        "--prefill-us-per-token", type=_duration, default=latency.prefill_us_per_token, help="each uncached prompt token, microseconds"
    )
    times.add_argument(
        "--decode-us-per-request", type=_duration, default=latency.decode_us_per_request, help="each answer continued, microseconds"
    )


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Names a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


def run(args: argparse.Namespace) -> int:
    """Run the fleet until a signal; returns the exit code."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(_config(args), args.endpoints_file))
    except SimulatorError as error:
        sys.stderr.write(f"epp simulate: {error}\n")
        return 1
    return 0


async def _run(config: FleetConfig, endpoints_file: Path | None) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    fleet = Fleet(config)
    starting = asyncio.create_task(fleet.start())
    stopping = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return
        starting.result()
        _announce(fleet, endpoints_file)
        running = asyncio.create_task(fleet.run())
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await fleet.stop()


def _announce(fleet: Fleet, endpoints_file: Path | None) -> None:
    if endpoints_file is not None:
        try:
            fleet.write_endpoints(endpoints_file)
        except OSError as error:
            raise SimulatorError(f"cannot write --endpoints-file {endpoints_file}: {error.strerror}") from error
    for endpoint in fleet.endpoints:
        events = endpoint.events_port or f"to {fleet.config.publisher.connect}"
        ports = f"kv-events {events}, replay {endpoint.replay_port}"
        sys.stdout.write(f"{endpoint.name}  {endpoint.url}  {ports}\n")
    where = f", endpoints in {endpoints_file}" if endpoints_file else ""
    sys.stdout.write(f"ready: {len(fleet.endpoints)} pods serve {fleet.config.model}{where}\n")
    sys.stdout.flush()


def _config(args: argparse.Namespace) -> FleetConfig:
    latency = LatencyProfile(
        step_ms=args.step_ms, prefill_us_per_token=args.prefill_us_per_token, decode_us_per_request=args.decode_us_per_request
    )
    engine = EngineConfig(
        block_size=args.block_size,
        num_blocks=args.num_blocks,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        latency=latency,
    )
    publisher = PublisherConfig(
        form=EventFormat(args.events_format),
        connect=args.connect_events,
        topic=args.events_topic,
        first_sequence=args.first_sequence,
        buffer_steps=args.buffer_steps,
        replay_frames=args.replay_frames,
    )
    return FleetConfig(
        model_path=args.model_path,
        model=args.model,
        loras=args.lora,
        pods=args.pods,
        host=args.host,
        base_port=args.base_port,
        max_model_len=args.max_model_len,
        seed=args.seed,
        hash_seed=args.hash_seed,
        engine=engine,
        publisher=publisher,
        hash_form=HashForm(args.block_hashes),
        pod_name=args.pod_name,
        faults=args.faults,
        dev_mode=args.dev_mode,
    )


def _faults(text: str) -> Faults:
    try:
        return faults.decode(text)
    except ApiError as error:
        raise argparse.ArgumentTypeError(error.message) from error


def _positive(text: str) -> int:
    return _bounded(text, 1)


def _at_least_0(text: str) -> int:
    return _bounded(text, 0)


def _at_least_2(text: str) -> int:
    return _bounded(text, 2)


def _bounded(text: str, minimum: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = minimum - 1
    if value < minimum:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {minimum}")
    return value


def _port(text: str) -> int:
    value = _bounded(text, 0)
    # Room for the KV ports of the last pod.
    if value > 65_000:
        raise argparse.ArgumentTypeError(f"{text} leaves no room for the pods' ports; at most 65000")
    return value


def _duration(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration of 0 or more")
    return value


def _ipv4(text: str) -> str:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IPv4 address") from error
    if address.is_unspecified:
        raise argparse.ArgumentTypeError("name one address that the picker can connect to, not 0.0.0.0")
    return str(address)

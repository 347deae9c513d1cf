"""`epp demo`: real Envoy, epp and simulated pods, the same chats routed three ways, and a picture of the difference.

Called by epp.cli. Exit codes: 0 every request of every mode had its answer, 1 something failed or could not start,
2 bad arguments, 130 interrupted (Ctrl-C), 143 told to end. In each case every process it started has ended.
"""

import argparse
import asyncio
import io
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path

from epp.demo import session, workload
from epp.demo.progress import Progress
from epp.demo.records import Mode

DEFAULT_SEED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `epp demo`."""
    parser.description = "Play the same multi-tenant chats through a real Envoy, routed in three ways, and compare."
    modes = ",".join(mode.value for mode in Mode)
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="the chats to play; the same seed plays the same chats")
    parser.add_argument("--modes", type=_modes, default=modes, metavar="MODE,...", help=f"what to play, in this order: {modes}")
    parser.add_argument("--output", type=Path, default=Path("build/demo"), help="folder for report.html, results.json and logs")
    parser.add_argument("--pods", type=_pods, default=4, help="simulated pods")
    parser.add_argument("--port", type=port, default=0, help="port of Envoy's listener; 0: a free one")
    parser.add_argument("--quick", action="store_true", help="a third of the chats: to see that everything works")


def run(args: argparse.Namespace) -> int:
    """Play; returns the exit code."""
    options = session.Options(
        seed=args.seed,
        modes=args.modes,
        output=args.output,
        size=workload.QUICK if args.quick else workload.FULL,
        pods=args.pods,
        port=args.port,
    )
    print(f"epp demo, seed {options.seed}", flush=True)
    return conclude(lambda progress: session.play(options, progress))


def conclude(play: Callable[[Progress], Coroutine[None, None, session.Outcome]]) -> int:
    """Play, and print what came of it; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without these bars must not end the demo
    progress = Progress()
    received: list[signal.Signals] = []
    try:
        outcome = asyncio.run(_interruptible(play(progress), progress, received))
    except asyncio.CancelledError:
        progress.clear()
        print("interrupted; every process has ended", file=sys.stderr)
        return 128 + received[0]
    finally:
        progress.clear()
    print(outcome.text, end="")
    if outcome.failures is not None:
        print(outcome.failures, file=sys.stderr)
        return 1
    return 0


async def _interruptible(
    play: Coroutine[None, None, session.Outcome], progress: Progress, received: list[signal.Signals]
) -> session.Outcome:
    """Play until done or a signal; raises CancelledError after the signal in `received`."""
    playing = asyncio.current_task()
    assert playing is not None

    def interrupt(number: signal.Signals) -> None:
        if not received:
            progress.clear()
            print("stopping ...", file=sys.stderr)
        received.append(number)
        playing.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt, number)
    return await play


def _modes(text: str) -> tuple[Mode, ...]:
    known = {mode.value: mode for mode in Mode}
    words = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in known]
    if unknown or not words or len(set(words)) < len(words):
        problem = f"{unknown[0]!r} is no mode" if unknown else "each mode once, at least one"
        raise argparse.ArgumentTypeError(f"{problem}; modes are {', '.join(known)}")
    return tuple(known[word] for word in words)


def _pods(text: str) -> int:
    return _number(text, 2, 64, "2 to 64 pods, so that there is something to choose")


def port(text: str) -> int:
    return _number(text, 0, 65535, "a port, 0 to 65535")


def _number(text: str, lowest: int, highest: int, expected: str) -> int:
    if text.isascii() and text.isdigit() and lowest <= int(text) <= highest:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")

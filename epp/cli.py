"""The commands. No first argument, or one that begins with "-", serves; otherwise the first argument names a command.

Imports are inside the commands: `epp simulate` must not pay for what serving needs, nor the other way round.
Exit codes: 0 done, 2 what the operator has to mend (arguments, configuration, files, a taken port), 1 anything else.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from epp import BUILD, __version__
from epp.config import flags
from epp.errors import ConfigError, EppError

USAGE = f"""\
epp {__version__} ({BUILD}): an endpoint picker for fleets of LLM inference servers, behind Envoy's External Processing.

usage: epp [flags]                 serve
       epp simulate [...]          model servers that behave like vLLM, on this machine
       epp demo [...]              real Envoy, epp and simulated pods: three ways of routing the same chats
       epp demo-vllm [...]         the same with real vLLM engines, held against their own counters
       epp config check FILE       say what is wrong with an EndpointPickerConfig, or that nothing is
       epp config show FILE        print the effective configuration, defaults and wiring included

Flags have Go's syntax: -x or --x, booleans as --x=false.

{flags.usage()}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command, rest = (words[0], words[1:]) if words and words[0].strip() and not words[0].startswith("-") else ("serve", words)
    if command == "serve" and not {"-h", "-help", "--help"}.isdisjoint(words):
        print(USAGE, end="")
        return 0
    if command not in COMMANDS:
        print(f"epp: unknown command {command!r}; one of: {', '.join(sorted(COMMANDS))} (see epp --help)", file=sys.stderr)
        return 2
    try:
        return COMMANDS[command](rest)
    except ConfigError as error:
        print(f"epp: {error}", file=sys.stderr)
        return 2
    except EppError as error:
        print(f"epp: {error}", file=sys.stderr)
        return 1


def _serve(arguments: Sequence[str]) -> int:
    options = flags.parse(arguments, os.environ)
    # The tokenizer is proven in a child process; gRPC's own fork handlers would only complain about it.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    from epp import app  # noqa: PLC0415  # serving's imports only when serving

    return app.run(options)


def _simulate(arguments: Sequence[str]) -> int:
    import epp.simulator.command as simulate  # noqa: PLC0415  # see above

    parser = argparse.ArgumentParser(prog="epp simulate")
    simulate.add_arguments(parser)
    return simulate.run(parser.parse_args(arguments))


def _demo(arguments: Sequence[str]) -> int:
    import epp.demo.command as demo  # noqa: PLC0415  # see above

    parser = argparse.ArgumentParser(prog="epp demo", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    demo.add_arguments(parser)
    return demo.run(parser.parse_args(arguments))


def _demo_vllm(arguments: Sequence[str]) -> int:
    import epp.demo.vllm.command as demo  # noqa: PLC0415  # see above

    parser = argparse.ArgumentParser(prog="epp demo-vllm", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    demo.add_arguments(parser)
    return demo.run(parser.parse_args(arguments))


def _config(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="epp config", description="Check or show an EndpointPickerConfig.")
    parser.add_argument("action", choices=["check", "show"])
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    from epp import config  # noqa: PLC0415  # see above

    effective = config.load_file(options.file)
    for warning in effective.warnings:
        print(f"epp: {warning}", file=sys.stderr)
    print(config.show(effective) if options.action == "show" else f"{options.file}: valid")
    return 0


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "serve": _serve,
    "simulate": _simulate,
    "demo": _demo,
    "demo-vllm": _demo_vllm,
    "config": _config,
}

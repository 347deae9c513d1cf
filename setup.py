"""The compiled build: `EPP_COMPILE=1 pip install --no-build-isolation .` makes C of the modules that every request goes through.

The same sources, types and behaviour for less CPU (`make bench` measures both); needs a C compiler and mypy beside pip.
Without EPP_COMPILE nothing here has any effect: epp is pure Python, and pyproject.toml says all there is to say.
"""

import os

from setuptools import setup

# Of a dataclass CPython makes an instance faster than mypyc's C does, so records are compiled only with an __init__ of their own. What
# plugins read once an endpoint stays interpreted, and so do the interfaces that plugins and reporters of others implement, which an
# interpreted class could not inherit from if they were compiled.
COMPILED = [
    "epp/domain/kinds.py",
    "epp/domain/records.py",
    "epp/extproc/access_log.py",
    "epp/extproc/answer.py",
    "epp/extproc/codec.py",
    "epp/extproc/end_causes.py",
    "epp/extproc/events.py",
    "epp/extproc/exchange.py",
    "epp/extproc/gathering.py",
    "epp/extproc/log_wire.py",
    "epp/extproc/wire.py",
    "epp/names.py",
    "epp/observability/instruments.py",
    "epp/observability/logs.py",
    "epp/observability/prometheus.py",
    "epp/observability/request_metrics.py",
    "epp/picking/answer_seen.py",
    "epp/picking/director.py",
    "epp/picking/open_decisions.py",
    "epp/plugins/pickers/max_score.py",
    "epp/plugins/pickers/random.py",
    "epp/plugins/profile_handlers/single.py",
    "epp/requests/body.py",
    "epp/requests/chat.py",
    "epp/requests/parsers.py",
    "epp/requests/shape.py",
    "epp/scheduling/cycle.py",
    "epp/scheduling/profile.py",
    "epp/scheduling/scheduler.py",
    "epp/server/conversation.py",
    "epp/server/fast_connection.py",
    "epp/server/fast_outbox.py",
    "epp/server/fast_stream.py",
    "epp/server/grpc_framing.py",
    "epp/server/grpc_headers.py",
    "epp/server/limits.py",
    "epp/server/live.py",
    "epp/server/service.py",
]

if os.environ.get("EPP_COMPILE"):
    from mypyc.build import mypycify

    modules = mypycify(COMPILED, opt_level="3", debug_level="0")
    for module in modules:
        # Calls within the module and to Python take no detour: 4 % less CPU a request.
        module.extra_compile_args += ["-fno-semantic-interposition", "-fno-plt"]
    setup(ext_modules=modules)
else:
    setup()

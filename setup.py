"""What is compiled, and how: with EPP_COMPILE=1 mypyc makes C of the modules that every request goes through.

The same sources, types and behaviour for less CPU (`make bench` measures both). Whether a wheel is compiled is decided by
tools/build_backend.py; without EPP_COMPILE=1 nothing here has any effect, and pyproject.toml says all there is to say.
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

# Types of other packages are not looked at: they make nothing faster, and so the C is the same wherever it is made, with mypy alone.
# Whether the types are right is a question for `make check`.
MYPY_OPTIONS = ["--config-file=", "--no-site-packages", "--ignore-missing-imports", "--follow-imports=silent"]

if os.environ.get("EPP_COMPILE") == "1":
    from mypyc.build import mypycify

    modules = mypycify([*MYPY_OPTIONS, *COMPILED], opt_level="3", debug_level="0")
    for module in modules:
        # Calls within the module and to Python take no detour: 4 % less CPU a request. A compiler's new warning is no error for who installs epp.
        module.extra_compile_args += ["-fno-semantic-interposition", "-fno-plt", "-Wno-error"]
    setup(ext_modules=modules)
else:
    setup()

"""How a wheel of epp is built: compiled (setup.py) where that is possible, else in pure Python, and never half of each.

EPP_COMPILE=1: compiled, or it is an error. EPP_COMPILE=0: pure Python, and nothing is tried. Editable installs are always pure Python.
Build frontends (pip, `python -m build`) call these hooks (PEP 517, PEP 660) in the project's folder, each in a process of its own.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

_Settings = Mapping[str, str | list[str] | None] | None

# The release that `make test-compiled` runs with: C of a later one would be code that nobody has tested.
MYPY = "mypy>=2.4.1,<2.5"

# Taken away, because setup.py would compile at every hook.
_ASKED = os.environ.pop("EPP_COMPILE", "")
if _ASKED not in ("", "0", "1"):
    sys.exit(f"epp: EPP_COMPILE={_ASKED}: 1 (compile, or fail), 0 (pure Python), or leave it out (compile where possible)")


def get_requires_for_build_wheel(config_settings: _Settings = None) -> list[str]:
    """mypy too, where something can be compiled at all."""
    requires: list[str] = build_meta.get_requires_for_build_wheel(config_settings)
    return requires if _ASKED == "0" or (_ASKED == "" and _obstacle()) else [*requires, MYPY]


def build_wheel(wheel_directory: str, config_settings: _Settings = None, metadata_directory: str | None = None) -> str:
    """Returns the file's name. The second try starts from nothing, so it has none of the modules that the first compiled."""
    if _ASKED != "0":
        try:
            if obstacle := _obstacle():
                sys.exit(f"epp: {obstacle}; on Debian: apt-get install gcc python3-dev")
            return _wheel("1", wheel_directory, config_settings, metadata_directory)
        except (Exception, SystemExit) as error:  # mypyc and setuptools exit
            if _ASKED == "1":
                raise
            reason = "mypyc says why above" if error.args == (1,) else error
            print(
                f"epp: WARNING: NOT COMPILED: {reason}\nThis wheel is pure Python: the same behaviour at more than twice the CPU a request. "
                "EPP_COMPILE=1 makes it an error, EPP_COMPILE=0 silences this.",
                file=sys.stderr,
            )
    return _wheel("0", wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory: str, config_settings: _Settings = None, metadata_directory: str | None = None) -> str:
    """Returns the file's name."""
    if _ASKED == "1":
        sys.exit("epp: EPP_COMPILE=1, but an editable install is pure Python, since its sources change; leave out one of the two")
    name: str = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    return name


def _wheel(compiled: str, *arguments: object) -> str:
    for left in (*Path("build").glob("lib*"), *Path("build").glob("bdist.*")):  # setuptools packs whatever an earlier build left there
        shutil.rmtree(left)
    os.environ["EPP_COMPILE"] = compiled
    name: str = build_meta.build_wheel(*arguments)
    return name


def _obstacle() -> str:
    """Why C cannot be compiled here; "": it can. What the compiler says goes to stderr."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    headers = {f"-I{sysconfig.get_path(kind)}" for kind in ("include", "platinclude")}
    try:
        tried = subprocess.run([*compiler, *headers, "-fsyntax-only", "-x", "c", "-"], input=b"#include <Python.h>\n", check=False)
    except OSError as error:
        return f"no C compiler: {error}"
    return f"{shlex.join(compiler)} compiles nothing that needs Python.h" if tried.returncode else ""

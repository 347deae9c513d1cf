"""What `pip install .` makes of a checkout, in an isolated build as users have it: compiled where C compiles, else pure Python, never half of each.

`make test-wheel` runs this; it needs a package index, a C compiler and Python's headers.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from epp import __version__
from epp.testing.picker import PickerProcess
from tests.integration.app.rig import REST, config, half_a_request, routed
from tests.integration.server.h2_peer import connect
from tools.build_backend import MYPY

ROOT = Path(__file__).parents[2]
NO_COMPILER = {
    "a compiler that fails": "false",
    "no compiler": "no-such-compiler",
    "no Python.h": "cc -nostdinc",
}


@dataclass(frozen=True)
class Wheel:
    """A wheel that was built, and what was said meanwhile."""

    file: Path
    said: str

    @property
    def tag(self) -> str:
        return self.file.stem.removeprefix(f"epp-{__version__}-")

    @property
    def modules(self) -> set[str]:
        """The modules that are in it as machine code, as setup.py writes them; mypyc's own, with all the code, is `the code`."""
        found = (re.fullmatch(r"(.*)\.cpython-\w+-[\w-]+\.so", name) for name in self.names)
        return {"the code" if name[1].endswith("__mypyc") else f"{name[1]}.py" for name in found if name}

    @property
    def names(self) -> list[str]:
        return zipfile.ZipFile(self.file).namelist()


def listed_modules() -> set[str]:
    """COMPILED of setup.py."""
    assigned = (node for node in ast.parse((ROOT / "setup.py").read_text()).body if isinstance(node, ast.Assign))
    [modules] = [ast.literal_eval(node.value) for node in assigned if ast.unparse(node.targets[0]) == "COMPILED"]
    return set(modules)


def pip(
    *arguments: str | Path, python: Path | str = sys.executable, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """pip, asked for what it does."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    inherited = {name: value for name, value in os.environ.items() if name not in ("CC", "EPP_COMPILE")}
    return subprocess.run(
        command, cwd=cwd, env=inherited | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def build(checkout: Path, folder: Path, **environment: str) -> Wheel:
    """`pip wheel`, which has to succeed."""
    done = pip("wheel", "-v", "--no-deps", "-w", folder, ".", cwd=checkout, **environment)
    assert done.returncode == 0, done.stdout
    [file] = folder.glob("*.whl")
    return Wheel(file, done.stdout)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout without what was built in it; all wheels are built here, so each finds what the earlier ones left."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    folder = tmp_path_factory.mktemp("checkout")
    for name in filter(lambda name: (ROOT / name).exists(), listed.stdout.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    """What somebody gets who asks for nothing in particular."""
    return build(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel: Wheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has this wheel and what it says it needs."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    done = pip("install", "--no-compile", "-c", ROOT / "constraints.txt", wheel.file, python=folder / "bin/python")
    assert done.returncode == 0, done.stdout
    return folder / "bin"


def test_a_wheel_is_compiled(wheel: Wheel) -> None:
    """Every module that setup.py lists, under the tag of this platform; nobody has to ask for it."""
    assert wheel.modules == {"the code", *listed_modules()}, wheel.said
    assert wheel.tag.startswith(f"cp3{sys.version_info.minor}-cp3{sys.version_info.minor}-")
    assert "NOT COMPILED" not in wheel.said


def test_a_wheel_is_whole(wheel: Wheel, checkout: Path) -> None:
    """It has all that the checkout has in epp/: sources beside the machine code, stubs, templates, pages."""
    sources = {str(file.relative_to(checkout)) for file in (checkout / "epp").rglob("*") if file.is_file()}
    assert sources - set(wheel.names) == set()
    assert {name for name in wheel.names if name.startswith("epp/")} - sources == {
        name for name in wheel.names if name.endswith(".so") and "/" in name
    }


def test_what_is_installed_is_compiled(installed: Path, tmp_path: Path) -> None:
    """The command and the module say so, wherever they are started."""
    for command in ([installed / "epp"], [installed / "python", "-m", "epp"]):
        done = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"epp {__version__} (compiled)")


async def test_an_installed_picker_routes(installed: Path, tmp_path: Path) -> None:
    """Envoy asks it over ext_proc and is told where to."""
    endpoints = tmp_path / "endpoints.yaml"
    endpoints.write_text('endpoints: [{name: a, address: 127.0.0.1, port: "8000"}]')
    async with (
        PickerProcess([f"--config-text={config(endpoints)}"], command=[str(installed / "epp")]) as picker,
        connect(picker.grpc_port) as peer,
    ):
        stream = half_a_request(peer)
        stream.send(REST)
        assert await routed(stream) == "127.0.0.1:8000"
        assert f"epp {__version__} (compiled) serves" in picker.log()


@pytest.mark.parametrize("compiler", NO_COMPILER.values(), ids=NO_COMPILER)
def test_where_nothing_compiles(wheel: Wheel, checkout: Path, tmp_path: Path, compiler: str) -> None:
    """A wheel in pure Python, for every platform, and what to do about it; it has nothing of the compiled one built here before."""
    pure = build(checkout, tmp_path, CC=compiler)
    assert (pure.tag, pure.modules) == ("py3-none-any", set())
    assert set(pure.names) < set(wheel.names)
    [reason] = re.findall("epp: WARNING: NOT COMPILED: (.*)", pure.said)
    assert reason.endswith("on Debian: apt-get install gcc python3-dev")


def test_a_compiler_that_gives_up_half_way(checkout: Path, tmp_path: Path) -> None:
    """None of the modules that it did compile is in the wheel; two modules stand for all, for speed."""
    small = shutil.copytree(checkout, tmp_path / "checkout")
    listed = (small / "setup.py").read_text()
    (small / "setup.py").write_text(
        re.sub(r"COMPILED = \[.*?\]", 'COMPILED = ["epp/names.py", "epp/server/limits.py"]', listed, flags=re.DOTALL)
    )
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\ncase "$*" in *build/epp/server/limits*) echo out of memory; exit 1;; esac\nexec cc "$@"\n')
    compiler.chmod(0o755)
    pure = build(small, tmp_path, CC=str(compiler))
    assert (pure.tag, pure.modules) == ("py3-none-any", set())
    assert list(small.glob("build/temp*/**/names*.o")) != []
    assert "out of memory" in pure.said
    assert "NOT COMPILED" in pure.said


def test_sources_that_mypyc_refuses(checkout: Path, tmp_path: Path) -> None:
    """Also a wheel in pure Python, which says why."""
    broken = shutil.copytree(checkout, tmp_path / "checkout")
    with (broken / "epp/names.py").open("a") as names:
        names.write("\nNUMBER: int = 'no number'\n")
    pure = build(broken, tmp_path)
    assert (pure.tag, pure.modules) == ("py3-none-any", set())
    assert "Incompatible types in assignment" in pure.said
    assert "NOT COMPILED" in pure.said


def test_asked_to_compile(checkout: Path, tmp_path: Path) -> None:
    """EPP_COMPILE=1: where nothing compiles that is an error with its remedy, and there is no wheel."""
    done = pip("wheel", "--no-deps", "-w", tmp_path, ".", cwd=checkout, EPP_COMPILE="1", CC="false")
    assert done.returncode != 0
    assert "epp: false compiles nothing that needs Python.h; on Debian: apt-get install gcc python3-dev" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_asked_not_to_compile(checkout: Path, tmp_path: Path) -> None:
    """EPP_COMPILE=0: pure Python without a try or a warning, and without mypy."""
    pure = build(checkout, tmp_path, EPP_COMPILE="0")
    assert (pure.tag, pure.modules) == ("py3-none-any", set())
    assert "NOT COMPILED" not in pure.said
    assert "mypy" not in pure.said


@pytest.mark.parametrize(
    ("arguments", "asked", "answer"),
    [
        (("wheel", "--no-deps", "."), "yes", "EPP_COMPILE=yes: 1 (compile, or fail), 0 (pure Python)"),
        (("install", "--no-deps", "--target=here", "-e", "."), "1", "an editable install is pure Python"),
    ],
)
def test_asked_for_what_there_is_not(checkout: Path, arguments: tuple[str, ...], asked: str, answer: str) -> None:
    """An error that says what there is."""
    done = pip(*arguments, cwd=checkout, EPP_COMPILE=asked)
    assert done.returncode != 0
    assert answer in done.stdout


def test_wheels_are_compiled_by_what_was_tested() -> None:
    """The mypy of `make test-compiled` is one of those that compile wheels."""
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    assert pinned["mypy"] in Requirement(MYPY).specifier

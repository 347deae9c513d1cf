"""How engines are started, and how one that fails is understood."""

from pathlib import Path

import pytest

from epp.demo.processes import DemoError
from epp.demo.vllm.engines import Recipe, first_error


def installed(folder: Path) -> Recipe:
    """A recipe whose parts all exist."""
    recipe = Recipe(folder / "serve.sh", folder / "venv", folder / "model")
    for file in (recipe.script, recipe.environment / "bin" / "python", recipe.model / "tokenizer.json"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return recipe


def test_a_complete_recipe_is_accepted(tmp_path: Path) -> None:
    """Nothing is missing, so nothing is said."""
    installed(tmp_path).check()


@pytest.mark.parametrize(
    ("missing", "said"), [("serve.sh", "script"), ("venv/bin/python", "vLLM is not installed"), ("model/tokenizer.json", "model")]
)
def test_what_is_missing_is_named_with_the_remedy(tmp_path: Path, missing: str, said: str) -> None:
    """Before a minute is spent on starting anything."""
    recipe = installed(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(DemoError, match=rf"{said}.*{missing}.*make demo-vllm"):
        recipe.check()


def test_the_first_exception_of_an_engine_is_its_cause(tmp_path: Path) -> None:
    """vLLM's output ends with exceptions that only follow from it, and begins with warnings that quote harmless ones."""
    log = tmp_path / "vllm-0.log"
    log.write_text(
        "(APIServer pid=1) WARNING 11-23 15:31:04 can cause fd limit errors like `OSError: [Errno 24] Too many open files`\n"
        "(EngineCore pid=2) ERROR 11-23 15:31:32 [core.py:1510] ValueError: the model's max seq len is larger than the KV cache\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    assert first_error(log) == "ValueError: the model's max seq len is larger than the KV cache"


def test_an_engine_may_end_without_an_exception(tmp_path: Path) -> None:
    """Killed for want of memory, it says nothing."""
    log = tmp_path / "vllm-0.log"
    log.write_text("INFO:     Application startup complete.\n")
    assert first_error(log) is None

"""Run the examples in docstrings, in README.md and in docs/."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llama2py
from llama2py._data import builtin_model
from llama2py.checkpoint import open_checkpoint
from llama2py.checkpoint.meta import NAMES
from llama2py.model import beside
from tests.conftest import ROOT, run_python
from tests.support.foreign_files import torch_file, torch_state

# Without the cookbook: test_cookbook.py runs its programs, each in its own process.
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [
    page for page in PAGES if page.name != "cookbook.md" and "```python" in page.read_text("utf-8")
]


PACKAGE = Path(llama2py.__file__).parent
MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
    if re.search(r">>> (?!.*\+SKIP)", path.read_text("utf-8"))
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_print_what_they_show(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert failed == 0
    assert tried > 0


def test_the_front_doors_of_the_package_have_examples() -> None:
    """Also: the search above finds them."""
    assert {
        "llama2py",
        "llama2py.model",
        "llama2py.stories.teller",
    } <= {*MODULES}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the models that the pages name: the built-in one, in llama2.c's and in Meta's format."""
    folder = tmp_path_factory.mktemp("models")
    source = builtin_model()
    shutil.copy(source, folder / "stories15M.bin")
    shutil.copy(beside(source), folder / "stories15M.tokenizer.bin")
    meta = folder / "llama-2-7b"
    meta.mkdir()
    with open_checkpoint(source) as checkpoint:
        config = checkpoint.config
        weights = {
            NAMES[name].format(layer): tensor.dequantize()
            for name, layers in checkpoint.tensors.items()
            for layer, tensor in enumerate(layers)
        }
    weights[NAMES["wcls"]] = weights[NAMES["token_embedding_table"]]  # never tied
    torch_file(meta / "consolidated.00.pth", *torch_state(weights))
    params = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "hidden_dim": config.hidden_dim,
        "max_seq_len": config.seq_len,
    }
    (meta / "params.json").write_text(json.dumps(params), encoding="ascii")
    for place in (meta, folder):
        shutil.copy(beside(source), place / "tokenizer.model")  # formats are detected by content
    return folder


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_python_of_a_page_runs(
    page: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks share one namespace, in order."""
    monkeypatch.chdir(models)
    text = page.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "__main__"}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, block.start(1))
        code = block[1]
        if code.startswith(">>>"):
            example = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line)
            runner.run(example, clear_globs=False)
            names.update(example.globs)  # the runner works on a copy
        else:
            exec(compile("\n" * line + code, str(page), "exec"), names)
    assert runner.summarize(verbose=False).failed == 0


CONSOLE = re.compile(r"^```console\n\$ python (-m llama2py .*)\n((?:.+\n)*)```$", re.MULTILINE)


def test_the_readmes_command_prints_the_story_that_it_shows() -> None:
    ((command, shown),) = CONSOLE.findall((ROOT / "README.md").read_text("utf-8"))
    assert run_python(*command.split()).stdout == shown


def test_the_page_of_the_built_in_model_shows_the_stories_of_seeds_1_to_10() -> None:
    page = (ROOT / "docs" / "builtin-model.md").read_text("utf-8")
    blocks = re.findall(r"^\*\*Seed (\d+), grade [1-5]\*\*\n\n((?:>.*\n)+)", page, re.MULTILINE)
    shown = {
        int(seed): "\n".join(line[2:] for line in block.splitlines() if line != ">")
        for seed, block in blocks
    }
    with llama2py.StoryTeller() as tell:
        assert shown == {story.seed: story.text for story in tell.many(10, seed=1)}


def test_the_programs_of_the_pages_run(models: Path, tmp_path: Path) -> None:
    """Blocks of ``py`` are whole programs that start processes: each gets its own interpreter.

    Those of real-models.md run if there is a model for them.
    """
    model = os.environ.get("LLAMA2PY_TEST_CHAT_MODEL")
    if model:
        (models / "SmolLM2-135M-Instruct.Q4_1.gguf").symlink_to(Path(model).resolve())
    programs = {
        f"{page.stem}{number}": block
        for page in PAGES
        if model or page.stem != "real-models"
        for number, block in enumerate(
            re.findall(r"^```py\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
        )
    }
    assert programs
    for name, program in programs.items():
        path = tmp_path / f"{name}.py"
        path.write_text(program, encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
        done = subprocess.run(
            [sys.executable, str(path)],
            cwd=models,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), name
        assert done.stdout, name

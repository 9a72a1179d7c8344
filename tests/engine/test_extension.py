"""The compiled module: found in an installed package too; refused if of another version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llama2py.engine import extension

ROOT = Path(__file__).resolve().parents[2]
COMPILED = Path(sys.modules["llama2py.engine._engine"].__file__ or "")
STORY = "import llama2py; print(llama2py.load().generate(seed=4, max_tokens=9).text)"


def source_copy(folder: Path) -> Path:
    """Make a clone's tree without anything compiled."""
    clone = folder / "clone"
    built = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(ROOT / "llama2py", clone / "llama2py", ignore=built)
    shutil.copy(ROOT / "tokenizer.bin", clone)
    return clone


def install(folder: Path, module: Path) -> Path:
    """Make what `pip install --target` leaves of a wheel, as far as finding the module goes."""
    site = folder / "site"
    (site / "llama2py" / "engine").mkdir(parents=True)
    shutil.copy(module, site / "llama2py" / "engine" / COMPILED.name)
    record = site / "llama2py-9.9.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: llama2py\nVersion: 9.9\n")
    (record / "RECORD").write_text(f"llama2py/engine/{COMPILED.name},,\n")
    return site


def run(clone: Path, site: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a clone's folder; `site` is where packages are installed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if site is not None:
        environment["PYTHONPATH"] = str(site)
    return subprocess.run(
        [sys.executable, *arguments], cwd=clone, env=environment, capture_output=True, text=True
    )


def other_version(folder: Path) -> Path:
    """Compile a module as of another version of the header."""
    from cffi import FFI

    builder = FFI()
    builder.cdef("enum { L2P_API_VERSION = 1 };")
    builder.set_source("llama2py.engine._engine", "enum { L2P_API_VERSION = 1 };")
    return Path(builder.compile(tmpdir=str(folder / "old")))


def test_the_version_is_the_headers() -> None:
    header = (ROOT / "csrc" / "llama2py.h").read_text("utf-8")
    assert re.findall(r"L2P_API_VERSION = (\d+)", header) == [str(extension.API_VERSION)]
    assert extension.lib.L2P_API_VERSION == extension.API_VERSION


def test_a_clone_uses_the_installed_engine(tmp_path: Path) -> None:
    """The clone's package shadows the installed one."""
    clone, site = source_copy(tmp_path), install(tmp_path, COMPILED)
    done = run(clone, site, "-c", f"{STORY}; print(llama2py.__file__)")
    assert done.returncode == 0, done.stderr
    told, file = done.stdout.rstrip("\n").rsplit("\n", 1)
    assert Path(file).is_relative_to(clone)
    assert told == run(ROOT, None, "-c", STORY).stdout.rstrip("\n")
    done = run(clone, site, "-m", "llama2py", "run", "-s", "4", "-n", "9")
    assert done.returncode == 0, done.stderr


def test_a_clone_without_any_engine_says_what_to_do(tmp_path: Path) -> None:
    done = run(source_copy(tmp_path), None, "-m", "llama2py", "run")
    assert done.returncode == 1
    assert done.stderr.startswith("llama2py: the C engine is not built")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("where", ["in place", "installed"])
def test_an_engine_of_another_version_is_refused(tmp_path: Path, where: str) -> None:
    clone, old = source_copy(tmp_path), other_version(tmp_path)
    site = None
    if where == "installed":
        site = install(tmp_path, old)
    else:
        shutil.copy(old, clone / "llama2py" / "engine" / old.name)
    done = run(clone, site, "-m", "llama2py", "run")
    assert done.returncode == 1
    assert "was compiled from another version of llama2py (API version 1, not" in done.stderr
    assert "rebuild it" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_clone_runs_after_pip_install(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--target", str(site), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    if "No module named" in done.stderr:
        pytest.skip("no setuptools or pip here")
    assert done.returncode == 0, done.stderr
    clone = source_copy(tmp_path)
    done = run(clone, site, "-m", "llama2py", "run", "-s", "4", "-t", "0.7")
    assert done.returncode == 0, done.stderr
    assert done.stdout == run(ROOT, None, "-m", "llama2py", "run", "-s", "4", "-t", "0.7").stdout

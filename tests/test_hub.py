"""Names of models, and how they are found on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llama2py
from llama2py import CheckpointError, DownloadError, TokenizerError
from llama2py.cli import main
from llama2py.hub import HubModel, download, find_model, hub_model
from llama2py.tokenizers.export import export_tokenizer
from tests.support.fake_hub import COMMIT, TINYLLAMAS


def in_cache(cache: Path, repo: str, files: dict[str, bytes]) -> Path:
    """Put files where huggingface_hub puts them; return their snapshot."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    for file, content in files.items():
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file).write_bytes(content)
    return snapshot


# ---- names ----


@pytest.mark.parametrize(
    ("name", "repo", "files"),
    [
        ("stories15M", TINYLLAMAS, ("stories15M.bin",)),
        ("stories260K", TINYLLAMAS, ("stories260K/stories260K.bin", "stories260K/tok512.bin")),
        ("openlm-research/open_llama_3b", "openlm-research/open_llama_3b", ()),
        ("a/b.c:x y/d.gguf", "a/b.c", ("x y/d.gguf",)),
        (
            "a/b:m-00002-of-00003.gguf",
            "a/b",
            ("m-00002-of-00003.gguf", "m-00001-of-00003.gguf", "m-00003-of-00003.gguf"),
        ),
    ],
)
def test_a_name_stands_for_files_of_a_repository(
    name: str, repo: str, files: tuple[str, ...]
) -> None:
    assert hub_model(name) == HubModel(repo, files)


@pytest.mark.parametrize(
    "name",
    [
        *["", "stories1M", "a", "a/b/c", "/a/b", "a/", "../a", "a/..", "a\\b/c", "a/b\n"],
        *["a/b:", "a/b:../c", "a/b:/c", "a/b:c/./d", "a/b:c\\d", "a/b:c\0"],
        "https://huggingface.co/a/b",
    ],
)
def test_other_texts_are_not_names(name: str, hub_cache: Path) -> None:
    assert hub_model(name) is None
    with pytest.raises(DownloadError, match=r"(?s)not a model's name, expected .*stories15M"):
        download(name)


@given(st.text(alphabet="ab./:\\-\0~ ", max_size=12))
def test_every_name_stays_inside_the_cache(name: str) -> None:
    wanted = hub_model(name)
    if wanted is not None:
        owner, repo = wanted.repo.split("/")
        assert {owner, repo}.isdisjoint({"", ".", ".."})
        for file in wanted.files:
            assert not file.startswith("/")
            assert os.path.normpath(os.path.join("/in", file)).startswith("/in/")


# ---- finding ----


def test_downloaded_models_are_found(hub_cache: Path, hub_contents: dict[str, bytes]) -> None:
    """By `load` and every command, without the network and without huggingface_hub."""
    snapshot = in_cache(hub_cache, TINYLLAMAS, hub_contents)
    assert find_model("stories15M") == snapshot / "stories15M.bin"
    assert find_model(f"{TINYLLAMAS}:README.md") == snapshot / "README.md"
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "import llama2py\n"
        "print(llama2py.load('stories260K').generate('abc', seed=1).text)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, timeout=60, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(llama2py.__file__).parent.parent)},
    )  # fmt: skip
    local = llama2py.load(
        snapshot / "stories15M.bin", snapshot / "stories260K" / "tok512.bin"
    ).generate("abc", seed=1)
    assert done.stdout == f"{local.text}\n"


def test_every_command_takes_names(
    hub_cache: Path, hub_contents: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = in_cache(hub_cache, TINYLLAMAS, hub_contents)
    model = str(snapshot / "stories260K" / "stories260K.bin")
    assert main(["info", "--json", "stories260K"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == model
    assert main(["run", "stories260K", "-n", "4"]) == 0
    bench = ["bench", "stories260K", "--repeats", "1", "--tokens", "2", "--prompt-tokens", "2"]
    assert main([*bench, "--batch", "1", "--threads", "1"]) == 0
    Path("story.txt").write_text("abc\n")
    assert main(["score", "stories260K", "story.txt"]) == 0
    assert main(["convert", "stories260K", "-o", "out.gguf"]) == 0
    assert main(["quantize", "stories260K", "-o", "small.bin"]) == 0
    vocabulary = hub_contents["stories260K/tok512.bin"]
    in_cache(hub_cache, "a/b", {"config.json": b"{}", "tokenizer.bin": vocabulary})
    assert main(["export-tokenizer", "a/b", "-o", "out.bin"]) == 0
    assert Path("out.bin").read_bytes() == vocabulary
    with pytest.raises(TokenizerError, match="a/c: not found; python -m llama2py download a/c"):
        export_tokenizer(Path("a/c"), Path("out.bin"))


def test_every_command_takes_the_builtin_model(
    hub_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = find_model("builtin")
    assert find_model(None) == model
    assert main(["info", "--json", "builtin"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(model)
    Path("story.txt").write_text("One day\n")
    for command in (
        ["run", "builtin", "-n", "4"],
        ["score", "builtin", "story.txt"],
        ["convert", "builtin", "-o", "out.gguf"],
        ["quantize", "builtin", "-o", "small.bin"],
        ["export-tokenizer", "builtin", "-o", "vocabulary.json"],
    ):
        assert main(command) == 0, command
    Path("builtin").write_bytes(b"")  # a local file wins, as for every name
    assert find_model("builtin") == Path("builtin")


def test_a_directory_is_found_only_with_its_configuration(hub_cache: Path) -> None:
    snapshot = in_cache(hub_cache, "a/b", {"x.gguf": b"GGUF"})
    with pytest.raises(CheckpointError, match="a/b: not found"):
        find_model("a/b")
    (snapshot / "config.json").write_text("{}")
    assert find_model("a/b") == snapshot


def test_a_split_file_is_found_only_with_all_parts(hub_cache: Path) -> None:
    snapshot = in_cache(hub_cache, "a/b", {"m-00001-of-00002.gguf": b"GGUF"})
    with pytest.raises(CheckpointError, match=r"a/b:m-00001-of-00002\.gguf: not found"):
        find_model("a/b:m-00001-of-00002.gguf")
    (snapshot / "m-00002-of-00002.gguf").write_bytes(b"GGUF")
    assert find_model("a/b:m-00002-of-00002.gguf") == snapshot / "m-00002-of-00002.gguf"


def test_a_local_path_goes_before_a_name(hub_cache: Path, hub_contents: dict[str, bytes]) -> None:
    in_cache(hub_cache, TINYLLAMAS, hub_contents)
    Path("stories15M").mkdir()
    Path("stories260K").write_bytes(b"")
    assert find_model("stories15M") == Path("stories15M")
    with pytest.raises(CheckpointError, match="the file is empty"):
        llama2py.load("stories260K")


def test_the_environment_says_where_the_cache_is(
    hub_cache: Path, tmp_path: Path, hub_contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value, folder in (
        ("HUGGINGFACE_HUB_CACHE", "$HOME/c", "c"),
        ("HF_HOME", "~/h", "h/hub"),
        ("XDG_CACHE_HOME", str(tmp_path / "x"), "x/huggingface/hub"),
        ("HOME", str(tmp_path / "home"), "home/.cache/huggingface/hub"),
    ):
        with monkeypatch.context() as patch:
            patch.delenv("HF_HUB_CACHE")
            patch.delenv("XDG_CACHE_HOME", raising=False)
            patch.setenv("HOME", str(tmp_path))
            patch.setenv(name, value)
            snapshot = in_cache(tmp_path / folder, TINYLLAMAS, hub_contents)
            assert find_model("stories15M") == snapshot / "stories15M.bin"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stories15M", "stories15M: not found; python -m llama2py download stories15M gets it"),
        (
            "models/stories42M.bin",
            "models/stories42M.bin: no such file; python -m llama2py download stories42M gets this"
            " model, and stories42M is then its name",
        ),
        ("a/b", "a/b: not found; python -m llama2py download a/b gets it if the hub has it"),
        ("other.bin", "other.bin: no such file, expected a checkpoint"),
        ("here/b.bin", "here/b.bin: no such file, expected a checkpoint"),
    ],
)
def test_the_error_for_a_missing_model_says_how_to_get_it(
    name: str, message: str, hub_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("here").mkdir()
    with pytest.raises(CheckpointError) as raised:
        llama2py.load(name)
    assert str(raised.value) == message
    for command in (["run"], ["info"], ["bench"]):
        assert main([*command, name]) == 1
        assert capsys.readouterr().err == f"llama2py: {message}\n"


def test_a_vocabulary_may_be_named_for_its_size(
    tmp_path: Path, hub_contents: dict[str, bytes]
) -> None:
    (tmp_path / "a.bin").write_bytes(hub_contents["stories15M.bin"])
    (tmp_path / "tok512.bin").write_bytes(hub_contents["stories260K/tok512.bin"])
    assert llama2py.load(tmp_path / "a.bin").tokenizer.vocab_size == 512


@pytest.mark.parametrize("name", ["a" * 300 + "/b", "owner/" + "a" * 300, "owner/x:" + "a" * 300])
def test_names_that_are_too_long_are_errors(name: str, hub_cache: Path) -> None:
    folder = hub_cache / "models--owner--x"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    with pytest.raises(CheckpointError):
        llama2py.load(name)


def test_a_name_may_have_become_a_windows_path(hub_cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"download owner/name:a/b\.gguf gets it"):
        find_model(PureWindowsPath("owner/name:a/b.gguf"))

"""Models of the hub: names, the cache, and downloads from a server on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY, random_checkpoint, tiny_tokenizer
from fake_hub import COMMIT, FakeHub, serve
from hypothesis import given
from hypothesis import strategies as st

import llama2py
from llama2py import CheckpointError, DownloadError
from llama2py.checkpoint import write_checkpoint
from llama2py.cli import main
from llama2py.hub import HubModel, download, find_model, hub_model
from llama2py.tokenizer_files import write_tokenizer_bin

needs_huggingface_hub = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="needs llama2py[hub]"
)
REPO = "karpathy/tinyllamas"


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of karpathy/tinyllamas, with tiny models."""
    folder = tmp_path_factory.mktemp("contents")
    checkpoint = random_checkpoint(TINY)
    write_checkpoint(folder / "model.bin", TINY, dict(checkpoint.tensors))
    write_tokenizer_bin(tiny_tokenizer(), folder / "vocabulary.bin")
    model = (folder / "model.bin").read_bytes()
    return {
        "README.md": b"# tiny",
        "stories15M.bin": model,
        "stories260K/stories260K.bin": model,
        # A vocabulary of 300, so that the rule for it, tok{vocab_size}.bin, is not met by chance.
        "stories260K/tok512.bin": (folder / "vocabulary.bin").read_bytes(),
        "stories260K/tok300.bin": (folder / "vocabulary.bin").read_bytes(),
    }


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of huggingface_hub's, and a working directory without models."""
    for name in ("HF_HOME", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "cache"


@pytest.fixture
def hub(
    cache: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """A running server with karpathy/tinyllamas."""
    pytest.importorskip("huggingface_hub", reason="needs llama2py[hub]")
    # Its handler writes to the standard error of whichever test imported it.
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [logging.NullHandler()])
    hub = FakeHub({REPO: dict(contents)})
    with serve(hub) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield hub


def in_cache(cache: Path, repo: str, files: dict[str, bytes]) -> Path:
    """Put files where huggingface_hub would; returns their snapshot."""
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
        ("stories15M", REPO, ("stories15M.bin",)),
        ("stories260K", REPO, ("stories260K/stories260K.bin", "stories260K/tok512.bin")),
        ("openlm-research/open_llama_3b", "openlm-research/open_llama_3b", ()),
        ("a/b.c:x y/d.gguf", "a/b.c", ("x y/d.gguf",)),
        (
            "a/b:m-00002-of-00003.gguf",
            "a/b",
            ("m-00002-of-00003.gguf", "m-00001-of-00003.gguf", "m-00003-of-00003.gguf"),
        ),
    ],
)
def test_names(name: str, repo: str, files: tuple[str, ...]) -> None:
    assert hub_model(name) == HubModel(repo, files)


@pytest.mark.parametrize(
    "name",
    [
        *["", "stories1M", "a", "a/b/c", "/a/b", "a/", "../a", "a/..", "a\\b/c", "a/b\n"],
        *["a/b:", "a/b:../c", "a/b:/c", "a/b:c/./d", "a/b:c\\d", "a/b:c\0"],
        "https://huggingface.co/a/b",
    ],
)
def test_what_is_no_name(name: str, cache: Path) -> None:
    assert hub_model(name) is None
    with pytest.raises(DownloadError, match=r"(?s)this is no model's name, expected .*stories15M"):
        download(name)


@given(st.text(alphabet="ab./:\\-\0~ ", max_size=12))
def test_no_name_leads_out_of_the_cache(name: str) -> None:
    wanted = hub_model(name)
    if wanted is not None:
        owner, repo = wanted.repo.split("/")
        assert {owner, repo}.isdisjoint({"", ".", ".."})
        for file in wanted.files:
            assert not file.startswith("/")
            assert os.path.normpath(os.path.join("/in", file)).startswith("/in/")


# ---- finding ----


def test_what_was_downloaded_is_found(cache: Path, contents: dict[str, bytes]) -> None:
    """By `load` and every command; without the network, and without huggingface_hub."""
    snapshot = in_cache(cache, REPO, contents)
    assert find_model("stories15M") == snapshot / "stories15M.bin"
    assert find_model(f"{REPO}:README.md") == snapshot / "README.md"
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


def test_the_commands_take_names(
    cache: Path, contents: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = in_cache(cache, REPO, contents)
    model = str(snapshot / "stories260K" / "stories260K.bin")
    assert main(["info", "--json", "stories260K"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == model
    assert main(["run", "stories260K", "-n", "4"]) == 0
    bench = ["bench", "stories260K", "--repeats", "1", "--tokens", "2", "--prompt-tokens", "2"]
    assert main([*bench, "--batch", "1", "--threads", "1"]) == 0
    Path("story.txt").write_text("abc\n")
    assert main(["score", "stories260K", "story.txt"]) == 0


def test_a_directory_is_found_once_it_is_a_model(cache: Path) -> None:
    snapshot = in_cache(cache, "a/b", {"x.gguf": b"GGUF"})
    with pytest.raises(CheckpointError, match="a/b: not found"):
        find_model("a/b")
    (snapshot / "config.json").write_text("{}")
    assert find_model("a/b") == snapshot


def test_a_split_file_is_found_once_it_is_whole(cache: Path) -> None:
    snapshot = in_cache(cache, "a/b", {"m-00001-of-00002.gguf": b"GGUF"})
    with pytest.raises(CheckpointError, match=r"a/b:m-00001-of-00002\.gguf: not found"):
        find_model("a/b:m-00001-of-00002.gguf")
    (snapshot / "m-00002-of-00002.gguf").write_bytes(b"GGUF")
    assert find_model("a/b:m-00002-of-00002.gguf") == snapshot / "m-00002-of-00002.gguf"


def test_what_lies_here_wins(cache: Path, contents: dict[str, bytes]) -> None:
    in_cache(cache, REPO, contents)
    Path("stories15M").mkdir()
    Path("stories260K").write_bytes(b"")
    assert find_model("stories15M") == Path("stories15M")
    with pytest.raises(CheckpointError, match="the file is empty"):
        llama2py.load("stories260K")


def test_the_cache_is_where_the_environment_says(
    cache: Path, tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
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
            snapshot = in_cache(tmp_path / folder, REPO, contents)
            assert find_model("stories15M") == snapshot / "stories15M.bin"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stories15M", "stories15M: not found; python -m llama2py download stories15M gets it"),
        (
            "models/stories42M.bin",
            "models/stories42M.bin: no such file, expected a checkpoint;"
            " python -m llama2py download stories42M gets the one that is then called stories42M",
        ),
        ("a/b", "a/b: not found; python -m llama2py download a/b gets it if the hub has it"),
        ("other.bin", "other.bin: no such file, expected a checkpoint"),
        ("here/b.bin", "here/b.bin: no such file, expected a checkpoint"),
    ],
)
def test_what_is_missing(
    name: str, message: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("here").mkdir()
    with pytest.raises(CheckpointError) as raised:
        llama2py.load(name)
    assert str(raised.value) == message
    for command in (["run"], ["info"], ["bench"]):
        assert main([*command, name]) == 1
        assert capsys.readouterr().err == f"llama2py: {message}\n"


def test_a_vocabulary_named_for_its_size(tmp_path: Path, contents: dict[str, bytes]) -> None:
    (tmp_path / "a.bin").write_bytes(contents["stories15M.bin"])
    (tmp_path / "tok300.bin").write_bytes(contents["stories260K/tok512.bin"])
    assert llama2py.load(tmp_path / "a.bin").tokenizer.vocab_size == 300


# ---- downloading ----


def test_a_download(hub: FakeHub, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "stories260K"]) == 0
    out = capsys.readouterr().out
    path = Path(out.removesuffix("\n"))
    assert path.is_relative_to(cache)
    assert path.read_bytes() == hub.repos[REPO]["stories260K/stories260K.bin"]
    assert sorted(hub.fetched()) == [
        ("stories260K/stories260K.bin", ""),
        ("stories260K/tok512.bin", ""),
    ]
    assert find_model("stories260K") == path


def test_a_second_download_fetches_nothing(hub: FakeHub) -> None:
    first = download("stories15M")
    hub.requests.clear()
    assert download("stories15M") == first
    assert hub.requests
    assert hub.fetched() == []


def test_a_cut_download_is_resumed(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its next block of 10 MB; by an older huggingface_hub when called again."""
    content = bytes(range(256)) * 100_000
    hub.repos["a/b"] = {"x.gguf": content}
    hub.cut["x.gguf"] = 15_000_000
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with contextlib.suppress(DownloadError):
        download("a/b:x.gguf")
    assert download("a/b:x.gguf").read_bytes() == content
    (_, first), (_, second) = hub.fetched()
    assert first == ""
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 15_000_000


def test_a_damaged_file_is_refused_and_got_anew(hub: FakeHub, cache: Path) -> None:
    hub.damaged.add("stories15M.bin")
    with pytest.raises(DownloadError, match=r"tinyllamas:stories15M\.bin: it came damaged \(its"):
        download("stories15M")
    assert [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 999] == []
    with pytest.raises(CheckpointError, match="stories15M: not found"):
        find_model("stories15M")
    hub.damaged.clear()
    assert download("stories15M").read_bytes() == hub.repos[REPO]["stories15M.bin"]


def test_a_damaged_cache_is_found_out(hub: FakeHub) -> None:
    path = download("stories15M")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DownloadError, match="came damaged"):
        download("stories15M")
    assert download("stories15M").read_bytes() == data


def test_a_whole_repository(hub: FakeHub) -> None:
    """What a llama needs of it, and not its weights twice."""
    wanted = {
        name: name.encode()
        for name in (
            "config.json",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
        )
    }
    others = ("pytorch_model.bin", "README.md", "consolidated.safetensors", "onnx/config.json")
    hub.repos["a/b"] = wanted | dict.fromkeys(others, b"other")
    folder = download("a/b")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted
    assert find_model("a/b") == folder
    hub.requests.clear()
    assert download("a/b") == folder
    assert hub.fetched() == []


def test_half_a_repository_is_not_found(hub: FakeHub) -> None:
    names = ("config.json", "model.safetensors", "tokenizer.json")
    hub.repos["a/b"] = {name: name.encode() for name in names}
    hub.damaged.add("model.safetensors")
    with pytest.raises(DownloadError, match=r"a/b:model\.safetensors: it came damaged"):
        download("a/b")
    with pytest.raises(CheckpointError, match=r"a/b: not found; .* download a/b gets it"):
        find_model("a/b")
    hub.damaged.clear()
    assert download("a/b") == find_model("a/b")


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (
            ["config.json", "pytorch_model.bin", "tokenizer.model", "training_args.bin"],
            ["config.json", "pytorch_model.bin", "tokenizer.model"],
        ),
        (
            ["params.json", "consolidated.00.pth", "consolidated.01.pth", "tokenizer.model"],
            ["params.json", "consolidated.00.pth", "consolidated.01.pth", "tokenizer.model"],
        ),
    ],
)
def test_other_repositories(there: list[str], wanted: list[str], hub: FakeHub) -> None:
    hub.repos["a/b"] = {name: name.encode() for name in there}
    assert sorted(path.name for path in download("a/b").iterdir()) == sorted(wanted)


def test_a_repository_of_single_files(hub: FakeHub) -> None:
    hub.repos["a/b"] = {"README.md": b"", "q4.gguf": b"GGUF 4", "q8.gguf": b"GGUF 8"}
    with pytest.raises(DownloadError, match=r"one of its files behind a colon: q4\.gguf, q8\.gguf"):
        download("a/b")
    assert download("a/b:q8.gguf").read_bytes() == b"GGUF 8"
    hub.repos["a/c"] = {"README.md": b""}
    with pytest.raises(DownloadError, match="a/c: this repository has no model"):
        download("a/c")


def test_wrong_names(hub: FakeHub) -> None:
    with pytest.raises(DownloadError, match=r"a/none: http://.* has no such repository"):
        download("a/none")
    with pytest.raises(DownloadError, match=r"a/none:x\.gguf: http://.* has no such repository"):
        download("a/none:x.gguf")
    with pytest.raises(DownloadError, match=r"no such file in it, expected one of README\.md, "):
        download(f"{REPO}:stories15m.bin")
    hub.gated.add("meta-llama/Llama-2-7b")
    with pytest.raises(DownloadError, match=r"its owner asks who gets it: say so at http://"):
        download("meta-llama/Llama-2-7b")


def test_a_server_that_is_down(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is there already is enough."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    path = download("stories15M")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert download("stories15M") == path
    for name in ("stories42M", "a/b"):
        assert main(["download", name]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert err.startswith(f"llama2py: {name}: cannot be downloaded from http://127.0.0.1:9 (")


def test_without_the_extra(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match=r'missing \(.*\): pip install "llama2py\[hub\]"$'):
        download("stories15M")


@needs_huggingface_hub
def test_huggingface_hub_stays_out_of_other_commands(hub: FakeHub) -> None:
    """And a process of its own downloads, by HF_ENDPOINT, as users do."""
    root = str(Path(llama2py.__file__).parent.parent)
    code = "import sys, llama2py.cli; print('huggingface_hub' in sys.modules)"
    for command, output in (
        (["-c", code], "False\n"),
        (["-m", "llama2py", "download", f"{REPO}:README.md"], None),
    ):
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, check=True, timeout=60, text=True,
            env=os.environ | {"PYTHONPATH": root},
        )  # fmt: skip
        assert done.stdout == (output or f"{find_model(f'{REPO}:README.md')}\n")

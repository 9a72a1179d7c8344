"""Downloads from a server on this machine that speaks the hub's protocol."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llama2py
from llama2py import CheckpointError, DownloadError
from llama2py.cli import main
from llama2py.hub import download, find_model
from tests.support.fake_hub import TINYLLAMAS, FakeHub, serve


@pytest.fixture
def hub(
    hub_cache: Path, hub_contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """A running server with karpathy/tinyllamas."""
    pytest.importorskip("huggingface_hub", reason="needs llama2py[hub]")
    # Its handler writes to the standard error of whichever test imported it.
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [logging.NullHandler()])
    hub = FakeHub({TINYLLAMAS: dict(hub_contents)})
    with serve(hub) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield hub


def test_a_download(hub: FakeHub, hub_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "stories260K"]) == 0
    out = capsys.readouterr().out
    path = Path(out.removesuffix("\n"))
    assert path.is_relative_to(hub_cache)
    assert path.read_bytes() == hub.repos[TINYLLAMAS]["stories260K/stories260K.bin"]
    assert sorted(hub.fetched()) == [
        ("stories260K/stories260K.bin", ""),
        ("stories260K/tok512.bin", ""),
    ]
    assert find_model("stories260K") == path
    with llama2py.load("stories260K") as model:
        assert model.tokenizer.decode([400]) == "#400"  # its own vocabulary came along


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


def test_a_damaged_file_is_refused_and_got_anew(hub: FakeHub, hub_cache: Path) -> None:
    hub.damaged.add("stories15M.bin")
    with pytest.raises(DownloadError, match=r"tinyllamas:stories15M\.bin: it came damaged \(its"):
        download("stories15M")
    assert [
        path for path in hub_cache.rglob("*") if path.is_file() and path.stat().st_size > 999
    ] == []
    with pytest.raises(CheckpointError, match="stories15M: not found"):
        find_model("stories15M")
    hub.damaged.clear()
    assert download("stories15M").read_bytes() == hub.repos[TINYLLAMAS]["stories15M.bin"]


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
        download(f"{TINYLLAMAS}:stories15m.bin")
    hub.gated.add("meta-llama/Llama-2-7b")
    with pytest.raises(DownloadError, match=r"its owner asks who gets it: say so at http://"):
        download("meta-llama/Llama-2-7b")


def test_a_server_that_is_down(
    hub: FakeHub,
    hub_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
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


def test_a_whole_repository_without_the_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was got of it is enough, and is checked all the same."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    names = ("config.json", "model.safetensors", "tokenizer.json")
    hub.repos["a/b"] = {name: name.encode() for name in names}
    folder = download("a/b")
    hub.gated.add("a/b")  # since then
    assert download("a/b") == folder
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert download("a/b") == folder
    (folder / "model.safetensors").write_bytes(b"model,safetensors")
    with pytest.raises(DownloadError, match=r"a/b:model\.safetensors: it came damaged"):
        download("a/b")
    with pytest.raises(
        DownloadError, match=r"a/b: cannot be downloaded from http://127\.0\.0\.1:9"
    ):
        download("a/b")


@pytest.mark.parametrize(
    "there",
    [["tokenizer.json"], ["model-00001-of-00002.safetensors", "config.json"]],
    ids=["no weights", "a shard is missing"],
)
def test_half_a_repository_is_not_enough_without_the_hub(
    there: list[str], hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which another program may have left."""
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names = ("config.json", *shards, "model.safetensors.index.json", "tokenizer.json")
    hub.repos["a/b"] = {name: name.encode() for name in names}
    for name in there:
        download(f"a/b:{name}")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        DownloadError, match=r"a/b: cannot be downloaded from http://127\.0\.0\.1:9"
    ):
        download("a/b")


def test_offline_by_the_environment(hub: FakeHub) -> None:
    """Processes of their own, as huggingface_hub looks at HF_HUB_OFFLINE when it is imported."""
    hub.repos["a/b"] = {name: name.encode() for name in ("config.json", "model.safetensors")}
    there = {name: download(name) for name in ("a/b", "stories260K")}
    hub.requests.clear()
    root = str(Path(llama2py.__file__).parent.parent)

    def command(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llama2py", *args], capture_output=True, timeout=60, text=True,
            env=os.environ | {"PYTHONPATH": root, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip

    for name, path in there.items():
        assert command("download", name).stdout == f"{path}\n"
    assert command("run", "stories260K", "-i", "abc", "-n", "3").stdout.startswith("abc")
    missing = command("download", "a/c")
    assert missing.returncode == 1
    assert missing.stderr.startswith("llama2py: a/c: cannot be downloaded from http://127.0.0.1:")
    assert "HF_HUB_OFFLINE" in missing.stderr
    assert hub.requests == []


def test_without_the_extra(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match=r'missing \(.*\): pip install "llama2py\[hub\]"$'):
        download("stories15M")


def test_huggingface_hub_stays_out_of_other_commands(hub: FakeHub) -> None:
    """And a process of its own downloads, by HF_ENDPOINT, as users do."""
    root = str(Path(llama2py.__file__).parent.parent)
    code = "import sys, llama2py.cli; print('huggingface_hub' in sys.modules)"
    for command, output in (
        (["-c", code], "False\n"),
        (["-m", "llama2py", "download", f"{TINYLLAMAS}:README.md"], None),
    ):
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, check=True, timeout=60, text=True,
            env=os.environ | {"PYTHONPATH": root},
        )  # fmt: skip
        assert done.stdout == (output or f"{find_model(f'{TINYLLAMAS}:README.md')}\n")


def test_a_warning_of_the_hubs_is_shown_once(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By its own handler, not by ours, too."""
    import huggingface_hub

    real = huggingface_hub.hf_hub_download

    def warning(*args: Any, **kwargs: Any) -> str:
        logging.getLogger("huggingface_hub.utils").warning("Retrying in 8s")
        return str(real(*args, **kwargs))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", warning)
    before = logging.getLogger("huggingface_hub").propagate
    assert main(["download", "stories15M"]) == 0
    assert "Retrying" not in caplog.text
    assert logging.getLogger("huggingface_hub").propagate == before


def test_a_name_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Names in errors may be the hub's, or a file's."""
    assert main(["info", "\x1b[2Jno\nsuch.bin"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("llama2py: ?[2Jno such.bin: no such file")
    assert error.count("\n") == 1

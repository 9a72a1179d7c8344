"""Downloads from a local server that speaks the hub's protocol."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

import llama2py
from llama2py import CheckpointError, DownloadError
from llama2py.cli import main
from llama2py.hub import download, find_model
from tests.support.fake_hub import TINYLLAMAS, FakeHub


def test_a_second_download_fetches_nothing(hub: FakeHub) -> None:
    first = download("stories15M")
    hub.requests.clear()
    assert download("stories15M") == first
    assert hub.requests
    assert hub.fetched() == []


def test_a_cut_download_is_resumed(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the same call, or by the next one."""
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


def test_a_damaged_file_is_removed_and_downloaded_again(hub: FakeHub, hub_cache: Path) -> None:
    hub.damaged.add("stories15M.bin")
    with pytest.raises(DownloadError, match=r"tinyllamas:stories15M\.bin: the file is damaged \("):
        download("stories15M")
    assert [
        path for path in hub_cache.rglob("*") if path.is_file() and path.stat().st_size > 999
    ] == []
    with pytest.raises(CheckpointError, match="stories15M: not found"):
        find_model("stories15M")
    hub.damaged.clear()
    assert download("stories15M").read_bytes() == hub.repos[TINYLLAMAS]["stories15M.bin"]


def test_damage_in_the_cache_is_found(hub: FakeHub) -> None:
    path = download("stories15M")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DownloadError, match="is damaged"):
        download("stories15M")
    assert download("stories15M").read_bytes() == data


def test_a_repository_is_downloaded_without_a_second_copy_of_its_weights(hub: FakeHub) -> None:
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


def test_an_incomplete_repository_is_not_found(hub: FakeHub) -> None:
    names = ("config.json", "model.safetensors", "tokenizer.json")
    hub.repos["a/b"] = {name: name.encode() for name in names}
    hub.damaged.add("model.safetensors")
    with pytest.raises(DownloadError, match=r"a/b:model\.safetensors: the file is damaged"):
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
def test_pytorch_and_meta_repositories_are_downloaded(
    there: list[str], wanted: list[str], hub: FakeHub
) -> None:
    hub.repos["a/b"] = {name: name.encode() for name in there}
    assert sorted(path.name for path in download("a/b").iterdir()) == sorted(wanted)


def test_a_repository_of_gguf_files_needs_the_name_of_one(hub: FakeHub) -> None:
    hub.repos["a/b"] = {"README.md": b"", "q4.gguf": b"GGUF 4", "q8.gguf": b"GGUF 8"}
    with pytest.raises(DownloadError, match=r"one of its files after a colon: q4\.gguf, q8\.gguf"):
        download("a/b")
    assert download("a/b:q8.gguf").read_bytes() == b"GGUF 8"
    hub.repos["a/c"] = {"README.md": b""}
    with pytest.raises(DownloadError, match="a/c: the repository holds no model"):
        download("a/c")


def test_names_that_the_hub_lacks_are_errors(hub: FakeHub) -> None:
    with pytest.raises(DownloadError, match=r"a/none: http://.* has no such repository"):
        download("a/none")
    with pytest.raises(DownloadError, match=r"a/none:x\.gguf: http://.* has no such repository"):
        download("a/none:x.gguf")
    with pytest.raises(
        DownloadError, match=r"repository has no such file, expected one of README\.md, "
    ):
        download(f"{TINYLLAMAS}:stories15m.bin")
    hub.gated.add("meta-llama/Llama-2-7b")
    with pytest.raises(
        DownloadError, match=r"owner of this repository must grant access: ask at http://"
    ):
        download("meta-llama/Llama-2-7b")


def test_a_download_without_a_server_uses_the_cache(
    hub: FakeHub,
    hub_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    path = download("stories15M")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # no server there
    assert download("stories15M") == path
    for name in ("stories42M", "a/b"):
        assert main(["download", name]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert err.startswith(f"llama2py: {name}: cannot be downloaded from http://127.0.0.1:9 (")


def test_a_repository_without_the_hub_comes_from_the_cache(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are checked as always."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    names = ("config.json", "model.safetensors", "tokenizer.json")
    hub.repos["a/b"] = {name: name.encode() for name in names}
    folder = download("a/b")
    hub.gated.add("a/b")  # after the download
    assert download("a/b") == folder
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # no server there
    assert download("a/b") == folder
    (folder / "model.safetensors").write_bytes(b"model,safetensors")
    with pytest.raises(DownloadError, match=r"a/b:model\.safetensors: the file is damaged"):
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
def test_an_incomplete_repository_is_not_enough_without_the_hub(
    there: list[str], hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program may have left one."""
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


def test_the_environment_can_forbid_the_network(hub: FakeHub) -> None:
    """In processes of their own, because huggingface_hub reads HF_HUB_OFFLINE at import."""
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


def test_a_download_needs_the_extra(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match=r'missing \(.*\): pip install "llama2py\[hub\]"$'):
        download("stories15M")


def test_other_commands_do_not_import_huggingface_hub(hub: FakeHub) -> None:
    """A process of its own downloads from HF_ENDPOINT, as users do."""
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


# ---- resuming ----

# A process that writes small pieces, as with a slow connection.
CHILD = """
import sys
import huggingface_hub.constants as constants
constants.DOWNLOAD_CHUNK_SIZE = 1 << 14
from llama2py.cli import main
sys.exit(main(sys.argv[1:]))
"""


def blobs(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("blobs/*") if path.is_file()]


def has_blob_of(cache: Path, size: int) -> bool:
    return any(path.stat().st_size >= size for path in blobs(cache))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_download_resumes(hub: FakeHub, hub_cache: Path, signum: signal.Signals) -> None:
    content = bytes(range(256)) * 4000
    hub.repos["a/b"] = {"x.gguf": content}
    root = str(Path(llama2py.__file__).parent.parent)
    for part in (1, 2, 3):
        hub.held["x.gguf"] = part * 300_000
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, "download", "a/b:x.gguf"],
            env=os.environ | {"PYTHONPATH": root},
            stderr=subprocess.DEVNULL,
        )
        there = part * 300_000 - (1 << 15)
        try:
            wait_for(partial(has_blob_of, hub_cache, there))
        finally:
            process.send_signal(signum)
            process.wait(60)
        assert len(blobs(hub_cache)) == 1
    hub.held.clear()
    hub.resumed.set()
    assert download("a/b:x.gguf").read_bytes() == content
    begins = [int(part.removeprefix("bytes=").removesuffix("-") or 0) for _, part in hub.fetched()]
    assert begins[0] == 0
    assert begins == sorted(begins)
    assert begins[-1] >= 900_000 - (1 << 15)
    assert [path.name for path in blobs(hub_cache)] == [hashlib.sha256(content).hexdigest()]


def test_a_partial_file_that_is_too_long_is_downloaded_anew(hub: FakeHub, hub_cache: Path) -> None:
    content = hub.repos[TINYLLAMAS]["stories15M.bin"]
    (hub_cache / "models--karpathy--tinyllamas" / "blobs").mkdir(parents=True)
    name = f"{hashlib.sha256(content).hexdigest()}.llama2py.incomplete"
    unfinished = hub_cache / "models--karpathy--tinyllamas" / "blobs" / name
    unfinished.write_bytes(content + b"more")
    assert download("stories15M").read_bytes() == content
    assert not unfinished.exists()


def test_a_damaged_partial_file_is_removed(hub: FakeHub, hub_cache: Path) -> None:
    content = hub.repos[TINYLLAMAS]["stories15M.bin"]
    (hub_cache / "models--karpathy--tinyllamas" / "blobs").mkdir(parents=True)
    name = f"{hashlib.sha256(content).hexdigest()}.llama2py.incomplete"
    unfinished = hub_cache / "models--karpathy--tinyllamas" / "blobs" / name
    unfinished.write_bytes(b"other" + content[5:100])
    with pytest.raises(DownloadError, match="the file is damaged"):
        download("stories15M")
    assert not unfinished.exists()
    assert download("stories15M").read_bytes() == content


def test_two_downloads_of_one_file_transfer_it_once(hub: FakeHub) -> None:
    hub.held["stories15M.bin"] = 1000
    with ThreadPoolExecutor() as pool:
        first = pool.submit(download, "stories15M")
        wait_for(lambda: len(hub.fetched()) == 1)
        second = pool.submit(download, "stories15M")
        wait_for(lambda: sum("resolve" in path for _, path, _ in hub.requests) >= 2)
        time.sleep(0.2)  # until the second one waits for the lock
        hub.held.clear()
        hub.resumed.set()
        assert first.result(60) == second.result(60)
    assert len(hub.fetched()) == 1


# ---- damage ----


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_every_file_is_compared_with_its_hash(
    name: str, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("config.json", "model.safetensors", "tokenizer.json")
    hub.repos["a/b"] = {name: name.encode() for name in names}
    hub.damaged.add(name)
    assert main(["download", "a/b"]) == 1
    assert f"a/b:{name}: the file is damaged (its " in capsys.readouterr().err
    hub.damaged.clear()
    folder = download("a/b")
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    data = (folder / name).read_bytes()
    for damaged in (b"X" + data[1:], data[:-1], data + b" ", b""):
        (folder / name).write_bytes(damaged)
        with pytest.raises(DownloadError, match=f"a/b:{name}: the file is damaged"):
            download("a/b")
        assert (download("a/b") / name).read_bytes() == data


# ---- hostile surroundings ----


@pytest.mark.parametrize("name", ["stories42M", "a/none", f"{TINYLLAMAS}:none", "a/gated", "a/b"])
def test_errors_do_not_show_the_password_of_the_endpoint(
    name: str,
    hub: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [handler])
    hub.gated.add("a/gated")
    hub.repos["a/b"] = {"config.json": b"{}", "model.safetensors": b"weights"}
    hub.cut["model.safetensors"] = 3
    hub.damaged.add("model.safetensors")
    for url in (hub.url, "http://127.0.0.1:9"):
        monkeypatch.setenv("HF_ENDPOINT", url.replace("http://", "http://user:S3CRET%40x@"))
        with pytest.raises(DownloadError) as raised:
            download(name)
        assert main(["download", name]) == 1
        whole = "".join(traceback.format_exception(raised.value))
        for text in (str(raised.value), whole, shown.getvalue(), *capsys.readouterr()):
            assert "S3CRET" not in text
            assert "user:" not in text


@pytest.mark.parametrize("kind", ["pipe", "zeros", "long"])
def test_a_reference_that_never_ends_is_not_read(kind: str, hub: FakeHub, hub_cache: Path) -> None:
    """In a process of its own, which would hang."""
    references = hub_cache / "models--karpathy--tinyllamas" / "refs"
    references.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(references / "main")
    elif kind == "zeros":
        (references / "main").symlink_to("/dev/zero")
    else:
        (references / "main").write_bytes(b"0" * 40 + b" " * 1000)
    root = str(Path(llama2py.__file__).parent.parent)

    def run(command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llama2py", command, "stories15M"], capture_output=True,
            env=os.environ | {"PYTHONPATH": root}, stdin=subprocess.DEVNULL, text=True, timeout=60,
        )  # fmt: skip
        return done.stderr

    assert "stories15M: not found" in run("info")
    if kind != "long":  # a regular file is replaced
        assert "refs/main: not a regular file; remove it and download again" in run("download")


def test_a_blob_that_never_ends_is_not_read(hub: FakeHub, hub_cache: Path) -> None:
    path = download("stories15M")
    path.resolve().unlink()
    os.mkfifo(path.parent / os.readlink(path))
    code = "import llama2py; llama2py.download('stories15M')"
    root = str(Path(llama2py.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": root},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "not a regular file" in done.stderr


def test_a_download_without_a_connection_fails_at_once(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It does not wait and try again. The error says how else to get the model."""
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"it waits for {seconds} s"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["download", "stories15M"]) == 1
    assert capsys.readouterr().err.endswith(
        "; try again when it can be reached, or copy"
        " http://127.0.0.1:9/karpathy/tinyllamas/resolve/main/stories15M.bin here from another"
        " machine and use the path as the model's name (builtin is the name of the model that"
        " needs no download)\n"
    )


def test_a_full_disk_is_no_network_error(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    assert main(["download", "stories15M"]) == 1
    assert capsys.readouterr().err.startswith(
        "llama2py: stories15M: cannot be written (No space left on device: "
    )


def test_a_download_that_does_not_fit_is_refused_before_the_transfer(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DownloadError, match=r"needs .* kB of disk space, 1\.0 kB are free"):
        download("stories15M")
    assert hub.fetched() == []

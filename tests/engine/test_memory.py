"""What a model takes, what is free, and loading only what fits."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

import llama2py
from llama2py import EngineError, TooBigError
from llama2py._util import amount
from llama2py.checkpoint import open_checkpoint, write_checkpoint
from llama2py.checkpoint.huggingface.writer import write_huggingface
from llama2py.cli import main
from llama2py.config import Dtype
from llama2py.engine.memory import free_memory, memory_by_dtype, packed_bytes
from llama2py.engine.native import Engine
from llama2py.tokenizers.llama2c import write_tokenizer_bin
from llama2py.tokenizers.sentencepiece import sentencepiece_model
from tests.conftest import TINY, in_memory, random_checkpoint, tiny_tokenizer

KIB = 1024
MEMINFO = "MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: 5000 kB\nSwapFree: 300 kB\n"


def machine(
    root: Path, cgroups: str = "", meminfo: str = MEMINFO, groups: dict[str, str] | None = None
) -> Path:
    """A root folder with these files of ``/proc`` and, in ``groups``, of ``/sys/fs/cgroup``."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(meminfo)
    (root / "proc" / "self" / "cgroup").write_text(cgroups)
    for name, content in (groups or {}).items():
        file = root / "sys" / "fs" / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, "utf-8")
    return root


@pytest.fixture
def small_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make this process believe that this many kB are available."""

    def believe(available: int) -> None:
        root = machine(tmp_path / f"machine{available}", meminfo=f"MemAvailable: {available} kB\n")
        real = free_memory
        for user in ("llama2py.engine.memory", "llama2py.cli.info"):
            monkeypatch.setattr(f"{user}.free_memory", lambda: real(root))

    return believe


# ---- what a model takes ----


@pytest.mark.parametrize("dtype", get_args(Dtype))
@pytest.mark.parametrize(
    ("config", "group_size"),
    [
        (TINY, None),
        (TINY, 4),
        (replace(TINY, shared_classifier=True, head_size=10), None),
        (replace(TINY, dim=96, hidden_dim=200, n_heads=6, n_kv_heads=3, vocab_size=301), None),
        (replace(TINY, dim=20, hidden_dim=36, n_heads=2, n_kv_heads=2), 2),
    ],
)
def test_packed_bytes_are_those_of_the_engine(
    config: Any, group_size: int | None, dtype: Dtype
) -> None:
    checkpoint = random_checkpoint(config, group_size)
    engine = Engine(checkpoint, 1, dtype)
    assert packed_bytes(checkpoint, dtype) == engine.nbytes
    assert memory_by_dtype(checkpoint)[dtype] == engine.nbytes


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(26_953_662_464, "27.0 GB"), (10**9, "1.0 GB"), (2_345_678, "2.3 MB"), (51, "0.1 kB")],
)
def test_amounts_are_shown_for_people(nbytes: int, text: str) -> None:
    assert amount(nbytes) == text


# ---- what is free ----


def test_free_memory_of_this_machine_is_plausible() -> None:
    free = free_memory()
    assert free is None or free > 1 << 20


def test_free_memory_of_a_machine_without_limits(tmp_path: Path) -> None:
    assert free_memory(machine(tmp_path, "0::/\n")) == 5300 * KIB


def test_free_memory_is_unknown_on_another_system(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
    assert free_memory(machine(tmp_path, meminfo="MemFree: 5 kB\n")) is None


def test_free_memory_in_a_container_of_cgroup_v2(tmp_path: Path) -> None:
    """Which sees its own group as the root. Cached files, mapped ones among them, count as free."""
    files = {
        "memory.max": f"{4000 * KIB}\n",
        "memory.current": f"{3500 * KIB}\n",
        "memory.stat": f"anon 7\nfile 9\ninactive_file {1000 * KIB}\nactive_file {200 * KIB}\n"
        f"slab_reclaimable {50 * KIB}\n",
    }
    free = 4000 - 3500 + 1000 + 200 + 50
    assert free_memory(machine(tmp_path / "a", "0::/\n", groups=files)) == (free + 300) * KIB
    files |= {"memory.swap.max": f"{20 * KIB}", "memory.swap.current": f"{5 * KIB}"}
    assert free_memory(machine(tmp_path / "b", "0::/\n", groups=files)) == (free + 15) * KIB
    files["memory.max"] = "max"
    assert free_memory(machine(tmp_path / "c", "0::/\n", groups=files)) == 5300 * KIB
    files["memory.max"] = f"{9999 * KIB}"
    assert free_memory(machine(tmp_path / "d", "0::/\n", groups=files)) == 5300 * KIB


def test_the_group_around_a_container_limits_it_too(tmp_path: Path) -> None:
    inner = {"user/shell/memory.max": "max", "user/shell/memory.current": "5"}
    outer = {"user/memory.max": str(2000 * KIB), "user/memory.current": str(1600 * KIB)}
    root = machine(tmp_path, "0::/user/shell\n", groups=inner | outer)
    assert free_memory(root) == (2000 - 1600 + 300) * KIB


def test_free_memory_in_a_container_of_cgroup_v1(tmp_path: Path) -> None:
    """A container's own name is not seen inside it; other controllers do not matter."""
    files = {
        "memory/memory.limit_in_bytes": str(3000 * KIB),
        "memory/memory.usage_in_bytes": str(2500 * KIB),
        "memory/memory.stat": f"cache 1\ntotal_inactive_file {64 * KIB}\ntotal_active_file 0\n",
        "cpu/memory.limit_in_bytes": "1",
        "cpu/memory.usage_in_bytes": "0",
    }
    groups = "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n1:name=systemd:/docker/ab\n"
    root = machine(tmp_path, groups, groups=files)
    assert free_memory(root) == (3000 - 2500 + 64 + 300) * KIB


def test_an_unreadable_answer_limits_nothing(tmp_path: Path) -> None:
    files = {"memory.max": "lots", "memory.current": "\xff", "memory.stat": "a\n"}
    assert free_memory(machine(tmp_path, "0::/../..\n7\n::\n", groups=files)) == 5300 * KIB


# ---- loading what fits ----


@pytest.fixture
def llama_2_7b(tmp_path: Path) -> Path:
    """A file as large as the real one, all holes: whoever reads it waits long."""
    path = tmp_path / "llama-2-7b.bin"
    with open(path, "wb") as out:
        out.write(struct.pack("<7i", 4096, 11008, 32, 32, 32, -32000, 4096))
        out.truncate(28 + 4 * (6_738_415_616 + 4096 * 128))
    return path


def test_too_big_is_an_error_before_anything_is_read(llama_2_7b: Path, small_machine: Any) -> None:
    small_machine(5_000_000_000 // 1024)
    with pytest.raises(TooBigError) as raised:
        llama2py.load(llama_2_7b)
    assert isinstance(raised.value, EngineError)
    assert str(raised.value) == (
        f"{llama_2_7b} needs 27.0 GB as float32 (13.5 GB as bfloat16, 7.2 GB as int8, 3.8 GB as"
        " int4) and 5.0 GB are free: use dtype='int4'"
    )
    assert raised.value.dtype == "int4"
    small_machine(8_000_000_000 // 1024)
    with pytest.raises(TooBigError, match=r"^\S+ needs 13\.5 GB as bfloat16 \(7\.2 GB as int8, 3\.8"
                       r" GB as int4\) and 8\.0 GB are free: use dtype='int8'$"):  # fmt: skip
        llama2py.load(llama_2_7b, dtype="bfloat16")
    small_machine(1_000_000_000 // 1024)
    with pytest.raises(TooBigError, match=r"^\S+ needs 3\.8 GB as int4 and 1000\.0 MB are free:"
                       r" use a smaller model or free memory$"):  # fmt: skip
        llama2py.load(llama_2_7b, dtype="int4")


def test_the_command_line_names_its_flag(
    llama_2_7b: Path, small_machine: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    small_machine(5_000_000_000 // 1024)
    for command in (["run"], ["bench"], ["story", "-m"]):
        assert main([*command, str(llama_2_7b)]) == 1
        assert capsys.readouterr().err.endswith("5.0 GB are free: use --dtype int4\n")


def tiny_files(folder: Path) -> Path:
    checkpoint = random_checkpoint(TINY)
    write_checkpoint(folder / "tiny.bin", TINY, dict(checkpoint.tensors))
    write_tokenizer_bin(tiny_tokenizer(), folder / "tok300.bin")
    return folder / "tiny.bin"


def test_what_fits_exactly_is_loaded(
    tmp_path: Path, small_machine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Keys and values come as a session grows: too little room for all of them is no error."""
    path = tiny_files(tmp_path)
    with open_checkpoint(path) as checkpoint:
        exact = -(-packed_bytes(checkpoint, "float32") // KIB)
    session = -(-TINY.cache_bytes // KIB)
    small_machine(exact - 1)
    with pytest.raises(TooBigError):
        llama2py.load(path)
    llama2py.load(path, backend="numpy").close()  # whose weights stay in the file
    assert not caplog.messages
    small_machine(exact)
    llama2py.load(path).close()
    assert "in a session of 64 tokens are more than the" in caplog.text
    caplog.clear()
    small_machine(exact + session)
    llama2py.load(path).close()
    assert not caplog.messages


@pytest.mark.parametrize(
    ("kib", "line"),
    [
        (
            10**7,
            "fits into the 10.2 GB of free memory: needs 107.2 kB as float32, and 12.3 kB per full",
        ),
        (110, "fits into the 112.6 kB of free memory without a full session: "),
        (60, "does not fit into the 61.4 kB of free memory: .*; --dtype bfloat16 fits"),
        (1, "does not fit into the 1.0 kB of free memory: .*; no other dtype fits either"),
    ],
)
def test_info_says_what_load_would_do(
    kib: int, line: str, tmp_path: Path, small_machine: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    small_machine(kib)
    assert main(["info", "--json", str(tiny_files(tmp_path))]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["free_memory"] == kib * KIB
    assert re.match(line, facts["load"])


def test_info_finds_zeros_and_another_vocabulary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_files(tmp_path)
    (tmp_path / "tok300.bin").rename(tmp_path / "other.bin")
    data = path.read_bytes()
    with open_checkpoint(path) as checkpoint:
        tail = checkpoint.tensors["wcls"][0].nbytes  # lies last, as a cut download's zeros do
    path.write_bytes(data[:-tail] + bytes(tail))
    assert main(["info", "--json", str(path)]) == 0
    first, second = json.loads(capsys.readouterr().out)["problems"]
    assert first == "wcls: 1 of 1 tensors contain only zeros"
    assert second.startswith("no tokenizer of its own, and ")
    assert "32000 tokens, the model has 300" in second


def test_info_takes_a_vocabulary_that_load_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An embedding that was filled up to a round number of rows."""
    config = replace(TINY, vocab_size=304)
    model = in_memory(config, dict(random_checkpoint(config).tensors))
    write_huggingface(tmp_path, model, "float32", "float32", (1, [2]))
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(tiny_tokenizer()))
    llama2py.load(tmp_path).close()
    assert main(["info", "--json", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []


# ---- progress ----


def test_progress_counts_every_weight(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    llama2py.load(tiny_files(tmp_path), progress=lambda *at: calls.append(at)).close()
    done = [n for n, _ in calls]
    assert {total for _, total in calls} == {TINY.n_params}
    assert done == sorted(set(done))
    assert len(done) > 15
    assert done[-1] == TINY.n_params

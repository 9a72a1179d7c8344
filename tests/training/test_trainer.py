"""Whole training runs: they learn, stop and continue, and write what they promise."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llama2py
from llama2py import CorpusError, TrainingError
from llama2py.checkpoint import open_checkpoint
from llama2py.formats.corpus import read_stories
from llama2py.generation.scoring import score_texts
from llama2py.training import Output, train
from tests.conftest import run_python
from tests.support.tiny_training import TINY, write_corpus

torch = pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("sentencepiece", reason="needs the extra [train]")
pytest.importorskip("matplotlib", reason="needs the extra [train]")


def history(trained: Path) -> list[dict[str, str]]:
    with (trained.parent / "story.train" / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_model_learns(trained: Path) -> None:
    rows = history(trained)
    losses = [float(row["valid_loss"]) for row in rows]
    assert [int(row["step"]) for row in rows] == [10, 20, 30]
    assert losses[0] < math.log(300)  # better than guessing among 300 tokens
    assert losses[-1] < losses[0] - 0.5


def test_the_engine_scores_the_held_out_stories_the_same(trained: Path) -> None:
    folder = trained.parent / "story.train"
    rows = history(trained)
    held_out = read_stories(folder / "held-out.txt")
    with llama2py.load(trained) as model:
        # Training splits a story that is longer than the context; scoring overlaps the parts.
        short = [text for text in held_out if len(model.tokenizer.encode(text)) <= 256]
        assert short == held_out, "this test needs short stories"
        score = score_texts(model, held_out)
    assert score.nats_per_token == pytest.approx(float(rows[-1]["valid_loss"]), abs=1e-4)
    assert score.bits_per_byte == pytest.approx(float(rows[-1]["bits_per_byte"]), abs=1e-4)


def test_a_run_writes_the_documented_files(trained: Path, corpus: Path) -> None:
    folder = trained.parent / "story.train"
    assert {path.name for path in folder.iterdir()} == {
        "state.pt",
        "best.bin",
        "held-out.txt",
        "history.csv",
        "curve.svg",
    }
    assert (folder / "curve.svg").read_text().lstrip().startswith("<?xml")
    held_out = read_stories(folder / "held-out.txt")
    assert len(held_out) == 12
    assert set(held_out) < set(read_stories(corpus))
    with llama2py.load(trained) as model:  # finds the vocabulary by its name
        assert len(model.tokenizer) == 300
        assert model.generate(seed=1).text


class StopAfter:
    """Asks to stop after some steps. `report` must get the lines of the log, one per step."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def report(self, line: str) -> None:
        self._left -= " tok/s" in line

    def __call__(self) -> bool:
        return self._left <= 0


class StopAtCall:
    """Asks to stop when it is called for the n-th time."""

    def __init__(self, n: int) -> None:
        self._left = n

    def __call__(self) -> bool:
        self._left -= 1
        return self._left == 0


@pytest.mark.slow
@pytest.mark.parametrize("stops", [[7], [1, 9, 12]])
def test_a_stopped_run_continues_as_if_it_had_not_stopped(
    corpus: Path, tmp_path: Path, stops: list[int]
) -> None:
    config = replace(TINY, dropout=0.1, log_interval=1)  # dropout: random numbers continue, too
    straight = train(corpus, tmp_path / "straight.bin", config)
    for steps in stops:
        stop = StopAfter(steps)
        part = train(corpus, tmp_path / "parts.bin", config, report=stop.report, stop=stop)
        assert not part.finished
    assert part.step == sum(stops)
    rest = train(corpus, tmp_path / "parts.bin", config)
    assert rest.finished
    assert (tmp_path / "parts.bin").read_bytes() == (tmp_path / "straight.bin").read_bytes()
    assert [replace(r, seconds=0) for r in rest.history] == [
        replace(r, seconds=0) for r in straight.history
    ]
    other = train(corpus, tmp_path / "other.bin", replace(config, seed=4))
    assert [r.valid_loss for r in other.history] != [r.valid_loss for r in straight.history]


@pytest.mark.slow
def test_a_run_can_stop_within_a_step_and_within_a_measurement(
    corpus: Path, tmp_path: Path
) -> None:
    """Nothing of the step or measurement that was cut short is left in the result."""
    config = replace(TINY, dropout=0.1, max_iters=4, eval_interval=2, gradient_accumulation_steps=3)
    straight = train(corpus, tmp_path / "straight.bin", config)
    out, seen = tmp_path / "parts.bin", set()
    # Each part gets a little further: a whole measurement is the most that it must redo.
    for n in range(1, 40):
        part = train(corpus, out, config, stop=StopAtCall(1 + n % 17))
        seen.add((part.step, len(part.history)))
        if part.finished:
            break
    assert part.finished
    assert {(0, 0), (2, 0), (2, 1), (4, 1)} <= seen
    assert out.read_bytes() == (tmp_path / "straight.bin").read_bytes()
    assert [replace(r, seconds=0) for r in part.history] == [
        replace(r, seconds=0) for r in straight.history
    ]


def test_a_finished_run_is_not_trained_again(trained: Path, corpus: Path) -> None:
    before = trained.read_bytes()
    assert train(corpus, trained, TINY).step == 30
    assert trained.read_bytes() == before


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_not_the_last(corpus: Path, tmp_path: Path) -> None:
    """A high learning rate makes the model worse; the output stays as it was at its best."""
    config = replace(TINY, learning_rate=0.05, decay_lr=False, max_iters=20)
    result = train(corpus, tmp_path / "story.bin", config)
    wild = replace(config, max_iters=40)
    best = (tmp_path / "story.bin").read_bytes()
    state = torch.load(result.output.state, weights_only=True)
    for weights in state["parts"]["model"].values():
        weights.mul_(-3)
    torch.save(state, result.output.state)
    spoiled = train(corpus, tmp_path / "story.bin", replace(wild, max_iters=30))
    assert spoiled.history[-1].valid_loss > result.history[-1].valid_loss
    assert (tmp_path / "story.bin").read_bytes() == best
    last = replace(wild, always_save_checkpoint=True)
    train(corpus, tmp_path / "story.bin", last)
    assert (tmp_path / "story.bin").read_bytes() != best


def test_another_run_with_the_same_output_is_refused(
    trained: Path, corpus: Path, tmp_path: Path
) -> None:
    """The refusal changes no file of the earlier run."""
    files = [path for path in trained.parent.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    with pytest.raises(TrainingError, match=r"has learning_rate 0\.02, this one 0\.01"):
        train(corpus, trained, replace(TINY, learning_rate=0.01))
    other = write_corpus(tmp_path / "other.txt", seed=8)
    with pytest.raises(TrainingError, match="another corpus or vocabulary"):
        train(other, trained, TINY)
    assert {path: path.read_bytes() for path in files} == before


def test_a_fresh_run_that_cannot_start_keeps_the_earlier_one(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "story.bin"
    train(corpus, out, replace(TINY, max_iters=1))
    state = (tmp_path / "story.train" / "state.pt").read_bytes()
    with pytest.raises(TrainingError, match="nonsense"):
        train(corpus, out, replace(TINY, device="nonsense"), fresh=True)
    assert (tmp_path / "story.train" / "state.pt").read_bytes() == state


def test_fresh_deletes_only_what_training_wrote(corpus: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "data.bin", tmp_path / "data.train"
    train(corpus, out, replace(TINY, max_iters=1))
    (folder / "notes.txt").write_text("mine")
    (folder / "photos").mkdir()
    (folder / "photos" / "a.png").write_text("mine, too")
    again = train(corpus, out, replace(TINY, max_iters=2, seed=4), fresh=True)
    assert again.step == 2
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "photos" / "a.png").read_text() == "mine, too"


def test_a_run_removes_what_a_killed_one_left(corpus: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "data.bin", tmp_path / "data.train"
    folder.mkdir()
    names = ("state.pt", "best.bin", "held-out.txt", "history.csv", "curve.svg")
    targets = [str(path) for path in (out, *(folder / name for name in names))]
    killed = run_python(
        "-c",
        "import os, pathlib, sys\n"
        "from llama2py.errors import TrainingError\n"
        "from llama2py.formats.atomic_write import replacing\n"
        "blocks = [replacing(pathlib.Path(p), TrainingError) for p in sys.argv[1:]]\n"
        "for block in blocks: block.__enter__().write(b'half')\n"
        "os._exit(9)",
        *targets,
    )
    assert killed.returncode == 9, killed.stderr
    assert len(list(tmp_path.rglob(".*"))) == len(targets)
    train(corpus, out, replace(TINY, max_iters=1))
    assert not list(tmp_path.rglob(".*"))


def test_the_output_can_be_int8(corpus: Path, tmp_path: Path) -> None:
    output = Output(tmp_path / "story.bin", int8=True, group_size=16)
    train(corpus, output, replace(TINY, max_iters=2, eval_interval=0))
    with open_checkpoint(tmp_path / "story.bin") as checkpoint:
        assert checkpoint.dtype == "int8"
        assert checkpoint.group_size == 16
    with open_checkpoint(tmp_path / "story.train" / "best.bin") as checkpoint:
        assert checkpoint.dtype == "float32"


def test_a_run_needs_no_held_out_stories(corpus: Path, tmp_path: Path) -> None:
    result = train(corpus, tmp_path / "s.bin", replace(TINY, valid_share=0.0, max_iters=10))
    assert math.isnan(result.history[-1].valid_loss)
    assert (tmp_path / "s.bin").is_file()
    assert not (tmp_path / "s.train" / "held-out.txt").exists()


def test_one_story_can_be_trained_on(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("Once upon a time. The end.")
    tokenizer = llama2py.load().tokenizer
    config = replace(TINY, max_iters=2)
    assert train(tmp_path / "one.txt", tmp_path / "s.bin", config, tokenizer=tokenizer).finished
    with pytest.raises(CorpusError):
        train(tmp_path / "missing.txt", tmp_path / "s.bin", TINY)


@pytest.mark.parametrize("max_seq_len", [256, 24])
def test_bits_per_byte_count_the_bytes_that_were_evaluated(
    corpus: Path, tmp_path: Path, max_seq_len: int
) -> None:
    """Stories made alike cost about the same per byte, however few of them are evaluated."""

    def bits(eval_iters: int) -> float:
        config = replace(TINY, max_iters=1, valid_share=0.5, max_seq_len=max_seq_len)
        name = f"{eval_iters}.bin"
        result = train(corpus, tmp_path / name, replace(config, eval_iters=eval_iters))
        return result.history[-1].bits_per_byte

    assert bits(2) == pytest.approx(bits(0), rel=0.15)  # there are over 20 batches


def test_the_loss_per_byte_is_that_of_the_held_out_loss(corpus: Path, tmp_path: Path) -> None:
    """One evaluated batch is one story here: its loss, tokens and bytes are known."""
    config = replace(TINY, max_iters=1, valid_share=0.5, max_seq_len=128, eval_iters=1)
    result = train(corpus, tmp_path / "s.bin", config)
    record = result.history[-1]
    with llama2py.load(tmp_path / "s.bin") as model:
        ratios = [
            (len(model.tokenizer.encode(story)) / len(story.encode()))
            for story in read_stories(result.output.held_out)
        ]
    expected = [record.valid_loss / math.log(2) * ratio for ratio in ratios]
    assert min(abs(record.bits_per_byte - bits) for bits in expected) < 1e-6


def test_raising_max_iters_reports_the_change_of_the_learning_rate(
    corpus: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    train(corpus, tmp_path / "s.bin", replace(TINY, max_iters=8))
    train(corpus, tmp_path / "s.bin", replace(TINY, max_iters=8), report=lines.append)
    assert not any("learning rate" in line for line in lines)
    train(corpus, tmp_path / "s.bin", replace(TINY, max_iters=9), report=lines.append)
    # Three steps after the warm-up of five the cosine of 8 steps is at its end, that of 9 is not.
    after = 0.5 * (1 + math.cos(math.pi * 3 / 4)) * 0.02
    assert (
        "max_iters is now 9 instead of 8: the learning rate changes"
        f" from 0.00e+00 to {after:.2e} at this step" in lines
    )


def test_a_loss_that_is_not_finite_is_an_error(corpus: Path, tmp_path: Path) -> None:
    config = replace(TINY, learning_rate=1e30, warmup_iters=0, optimizer="adamw", grad_clip=0.0)
    with pytest.raises(TrainingError, match=r"the loss of step \d+ is nan; a lower learning_rate"):
        train(corpus, tmp_path / "s.bin", config)


@pytest.mark.parametrize("device", ["cuda:97", "nonsense", "meta"])
def test_a_device_that_does_not_exist_is_an_error(
    corpus: Path, tmp_path: Path, device: str
) -> None:
    with pytest.raises(TrainingError, match=f"'{device}' is not available"):
        train(corpus, tmp_path / "s.bin", replace(TINY, device=device))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_learns_too(corpus: Path, tmp_path: Path, dtype: str) -> None:
    result = train(corpus, tmp_path / "s.bin", replace(TINY, dtype=dtype))
    assert result.history[-1].valid_loss < result.history[0].valid_loss - 0.4


def test_a_run_can_continue_in_float16(corpus: Path, tmp_path: Path) -> None:
    train(corpus, tmp_path / "s.bin", replace(TINY, max_iters=2))
    assert train(corpus, tmp_path / "s.bin", replace(TINY, max_iters=4, dtype="float16")).finished
    assert train(corpus, tmp_path / "s.bin", replace(TINY, max_iters=6, dtype="float16")).finished
    assert train(corpus, tmp_path / "s.bin", replace(TINY, max_iters=8)).finished


def refuse(*args: object, **kwargs: object) -> None:
    raise RuntimeError("the compiler said no\nand a hundred more lines")


@pytest.mark.parametrize(
    ("name", "fake", "reason"),
    [
        ("torch.compile", lambda model, dynamic: Broken(model), "the compiler said no and a"),
        ("shutil.which", lambda name: None, "no C++ compiler found"),
    ],
)
def test_a_run_trains_without_torch_compile_where_it_fails(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    fake: Callable[..., object],
    reason: str,
) -> None:
    config = replace(TINY, max_iters=3, dropout=0.1)
    train(corpus, tmp_path / "plain.bin", config)
    monkeypatch.setattr(name, fake)
    lines: list[str] = []
    train(corpus, tmp_path / "s.bin", replace(config, compile=True), report=lines.append)
    said = [line for line in lines if "torch.compile" in line]
    assert len(said) == 1
    assert reason in said[0]
    assert "\n" not in said[0]
    assert (tmp_path / "s.bin").read_bytes() == (tmp_path / "plain.bin").read_bytes()


class Broken:
    """What torch.compile returns where Python.h is missing: it fails when it is called."""

    def __init__(self, model: Any) -> None:
        self.train = model.train

    def __call__(self, *args: object) -> None:
        torch.rand(3)  # as a dropout would before the failure
        refuse()

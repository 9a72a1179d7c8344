"""Training: PyTorch's model is the engine's, a run goes on where it was stopped, and it learns."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import llama2py
import llama2py.formats.corpus
from llama2py import CorpusError, TrainingError
from llama2py.checkpoint import DenseTensor, open_checkpoint, tensor_shapes
from llama2py.scoring import score_texts
from llama2py.training import TrainConfig, train

torch = pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("sentencepiece", reason="needs the extra [train]")
pytest.importorskip("matplotlib", reason="needs the extra [train]")

from llama2py.training.network import Transformer  # noqa: E402
from llama2py.training.optimizer import make_optimizers  # noqa: E402
from tests.training.test_vocabulary import made_up_stories  # noqa: E402

torch.set_num_threads(1)  # models this small are slower on more
os.environ.setdefault("OMP_NUM_THREADS", "1")  # and so in the commands started here

TINY = TrainConfig(
    dim=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    multiple_of=8,
    max_seq_len=256,
    vocab_size=300,
    batch_size=1,
    gradient_accumulation_steps=2,
    max_iters=30,
    warmup_iters=5,
    learning_rate=0.02,
    valid_share=0.1,
    eval_interval=10,
    sample_interval=0,
    dtype="float32",
    compile=False,
    seed=3,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(made_up_stories(120)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 30 steps."""
    out = tmp_path_factory.mktemp("run") / "story.bin"
    assert train(corpus, out, TINY).finished
    return out


def history(trained: Path) -> list[dict[str, str]]:
    with (trained.parent / "story.train" / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def network_of(path: Path) -> Transformer:
    """The PyTorch model with the weights of a checkpoint, put there by name."""
    with open_checkpoint(path) as checkpoint:
        network = Transformer(checkpoint.config)
        assert network.tensors().keys() == tensor_shapes(checkpoint.config).keys()
        state = network.state_dict()
        names = {
            "token_embedding_table": "tok_embeddings",
            "rms_final_weight": "norm",
            "rms_att_weight": "layers.{}.attention_norm",
            "rms_ffn_weight": "layers.{}.ffn_norm",
            **{name: f"layers.{{}}.attention.{name}" for name in ("wq", "wk", "wv", "wo")},
            **{name: f"layers.{{}}.feed_forward.{name}" for name in ("w1", "w2", "w3")},
        }
        for name, layers in checkpoint.tensors.items():
            for i, tensor in enumerate(layers):
                weights = tensor.dequantize().copy()
                state[names[name].format(i) + ".weight"] = torch.from_numpy(weights)
        network.load_state_dict(state)
    network.eval()
    return network


def logits_of(network: Transformer, tokens: list[int]) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(network(torch.tensor([tokens]))[0].numpy())


def test_the_engine_computes_what_pytorch_does(trained: Path) -> None:
    network = network_of(trained)
    with llama2py.load(trained) as model, model.session() as session:
        tokens = model.tokenizer.encode("Once a dragon sang, and the kitten ran away.")[:60]
        ours = session.forward(tokens, all_logits=True)
    theirs = logits_of(network, tokens)
    assert np.abs(theirs).max() > 1  # trained: there is something to compare
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    # The comparison bites: one weight of one layer, changed, shows.
    with torch.no_grad():
        network.get_parameter("layers.1.attention.wk.weight")[3, 5] += 1.0
    assert np.abs(logits_of(network, tokens) - ours).max() > 1e-4


def test_padding_and_later_tokens_change_nothing_before_them(trained: Path) -> None:
    network = network_of(trained)
    tokens = list(range(1, 41))
    whole = logits_of(network, tokens)
    np.testing.assert_allclose(whole[:20], logits_of(network, tokens[:20]), atol=1e-5)


def test_it_learns(trained: Path) -> None:
    rows = history(trained)
    losses = [float(row["valid_loss"]) for row in rows]
    assert [int(row["step"]) for row in rows] == [10, 20, 30]
    assert losses[0] < math.log(300)  # better than a guess among 300 tokens
    assert losses[-1] < losses[0] - 0.5


def test_the_held_out_loss_is_what_the_engine_scores(trained: Path) -> None:
    folder = trained.parent / "story.train"
    rows = history(trained)
    held_out = llama2py.formats.corpus.read_stories(folder / "held-out.txt")
    with llama2py.load(trained) as model:
        # Stories longer than the context are trained in pieces; scores overlap them.
        short = [text for text in held_out if len(model.tokenizer.encode(text)) <= 256]
        assert short == held_out, "made for this test"
        score = score_texts(model, held_out)
    assert score.nats_per_token == pytest.approx(float(rows[-1]["valid_loss"]), abs=1e-4)
    assert score.bits_per_byte == pytest.approx(float(rows[-1]["bits_per_byte"]), abs=1e-4)


def test_what_is_written(trained: Path, corpus: Path) -> None:
    folder = trained.parent / "story.train"
    assert {path.name for path in folder.iterdir()} == {
        "state.pt",
        "best.bin",
        "held-out.txt",
        "history.csv",
        "curve.svg",
    }
    assert (folder / "curve.svg").read_text().lstrip().startswith("<?xml")
    stories = llama2py.formats.corpus.read_stories(corpus)
    held_out = llama2py.formats.corpus.read_stories(folder / "held-out.txt")
    assert len(held_out) == 12
    assert set(held_out) < set(stories)
    with llama2py.load(trained) as model:  # its tokenizer lies beside it
        assert len(model.tokenizer) == 300
        assert model.generate(seed=1).text


class StopAfter:
    """Says stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("stops", [[7], [1, 9, 12]])
def test_a_stopped_run_goes_on_as_if_it_had_not(
    corpus: Path, tmp_path: Path, stops: list[int]
) -> None:
    config = replace(TINY, dropout=0.1)  # its random numbers go on, too
    straight = train(corpus, tmp_path / "straight.bin", config)
    for stop in stops:
        part = train(corpus, tmp_path / "parts.bin", config, stop=StopAfter(stop))
        assert not part.finished
    assert part.step == sum(stops)
    rest = train(corpus, tmp_path / "parts.bin", config)
    assert rest.finished
    assert (tmp_path / "parts.bin").read_bytes() == (tmp_path / "straight.bin").read_bytes()
    assert [r.valid_loss for r in rest.history] == [r.valid_loss for r in straight.history]
    other = train(corpus, tmp_path / "other.bin", replace(config, seed=4))
    assert [r.valid_loss for r in other.history] != [r.valid_loss for r in straight.history]


def test_a_finished_run_is_not_trained_again(trained: Path, corpus: Path) -> None:
    before = trained.read_bytes()
    assert train(corpus, trained, TINY).step == 30
    assert trained.read_bytes() == before


def test_the_best_is_kept_not_the_last(corpus: Path, tmp_path: Path) -> None:
    """At a senseless learning rate it gets worse: then the output stays as it was at its best."""
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


def test_another_run_under_the_same_name_is_refused(
    trained: Path, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"learning_rate 0\.02, expected 0\.01"):
        train(corpus, trained, replace(TINY, learning_rate=0.01))
    other = tmp_path / "other.txt"
    other.write_text("\n<|endoftext|>\n".join(made_up_stories(120, seed=8)), encoding="utf-8")
    with pytest.raises(TrainingError, match="another corpus"):
        train(other, trained, TINY)


@pytest.mark.parametrize("damage", [b"", b"PK\3\4 no zip", b"\x80\x04N.", "cut"])
def test_a_damaged_state_is_one_sentence(
    trained: Path, corpus: Path, tmp_path: Path, damage: bytes | str
) -> None:
    out = tmp_path / "story.bin"
    train(corpus, out, replace(TINY, max_iters=1))
    state = tmp_path / "story.train" / "state.pt"
    data = state.read_bytes()
    state.write_bytes(data[: len(data) // 2] if isinstance(damage, str) else damage)
    with pytest.raises(TrainingError, match=r"state\.pt: not the state of a training run"):
        train(corpus, out, TINY)
    assert train(corpus, out, replace(TINY, max_iters=1), fresh=True).finished


def test_int8_output(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "story.bin"
    train(corpus, out, replace(TINY, max_iters=2, eval_interval=0), version=2, group_size=16)
    with open_checkpoint(out) as checkpoint:
        assert checkpoint.dtype == "int8"
        assert checkpoint.group_size == 16
    with open_checkpoint(tmp_path / "story.train" / "best.bin") as checkpoint:
        assert checkpoint.dtype == "float32"


def test_nothing_held_out(corpus: Path, tmp_path: Path) -> None:
    result = train(corpus, tmp_path / "s.bin", replace(TINY, valid_share=0.0, max_iters=10))
    assert math.isnan(result.history[-1].valid_loss)
    assert (tmp_path / "s.bin").is_file()
    assert not (tmp_path / "s.train" / "held-out.txt").exists()


def test_a_corpus_of_one_story_is_too_small(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("Once upon a time. The end.")
    tokenizer = llama2py.load().tokenizer
    with pytest.raises(CorpusError):
        train(tmp_path / "missing.txt", tmp_path / "s.bin", TINY)
    result = train(
        tmp_path / "one.txt", tmp_path / "s.bin", replace(TINY, max_iters=2), tokenizer=tokenizer
    )
    assert result.finished  # with nothing held out


def test_a_loss_that_is_not_finite_is_an_error(corpus: Path, tmp_path: Path) -> None:
    config = replace(TINY, learning_rate=1e30, warmup_iters=0, optimizer="adamw", grad_clip=0.0)
    with pytest.raises(TrainingError, match="expected a finite one"):
        train(corpus, tmp_path / "s.bin", config)


def test_a_device_that_is_not_there(corpus: Path, tmp_path: Path) -> None:
    for device in ("cuda:97", "nonsense"):
        with pytest.raises(TrainingError, match=device):
            train(corpus, tmp_path / "s.bin", replace(TINY, device=device))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_learns_too(corpus: Path, tmp_path: Path, dtype: str) -> None:
    result = train(corpus, tmp_path / "s.bin", replace(TINY, dtype=dtype))
    assert result.history[-1].valid_loss < result.history[0].valid_loss - 0.4


def test_adamw_owns_every_parameter_once() -> None:
    for optimizer in ("adamw", "muon"):
        model = Transformer(TINY.model_config(300))
        optimizers = make_optimizers(model, replace(TINY, optimizer=optimizer))
        owned = [
            id(parameter)
            for each in optimizers
            for group in each.param_groups
            for parameter in group["params"]
        ]
        assert sorted(owned) == sorted(id(parameter) for parameter in model.parameters())


def command(corpus: Path, out: Path, *more: str) -> list[str]:
    numbers = "dim n_layers n_heads n_kv_heads max_seq_len vocab_size batch_size seed max_iters"
    flags = [f"--{name}={getattr(TINY, name)}" for name in numbers.split()]
    flags += ["--eval_interval=5", "--dtype=float32", "--no-compile", "--warmup-iters", "5"]
    flags += ["--gradient_accumulation_steps=2", "--valid_share=0.1"]
    return ["-m", "llama2py", "train", str(corpus), "-o", str(out), *flags, *more]


def test_killed_at_any_moment_it_goes_on(corpus: Path, tmp_path: Path) -> None:
    """SIGKILL as soon as there is a state; nothing half-written is left, and the run goes on."""
    out = tmp_path / "story.bin"
    call = [sys.executable, *command(corpus, out, "--max_iters=2000", "--sample_interval=0")]
    with subprocess.Popen(call, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "story.train" / "state.pt").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.05)
        process.kill()
    with llama2py.load(out) as model:
        assert model.generate(seed=1, max_tokens=5).tokens
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as again:
        assert again.stderr is not None
        first = again.stderr.readline()
        time.sleep(0.2)
        again.send_signal(signal.SIGINT)
        rest = again.stderr.read()
    assert "going on at step" in first
    assert "the same command goes on" in rest
    assert again.returncode == 130


def test_the_command_line(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "story.bin"
    config = tmp_path / "c.toml"
    config.write_text("max_iters = 4\nlearning_rate = 1e-3\nhidden_dim = 40\n")
    call = [sys.executable, *command(corpus, out, "--config", str(config), "--max_iters=6")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 6:" in done.stderr  # the command line outweighs the file
    with open_checkpoint(out) as checkpoint:
        assert checkpoint.config.hidden_dim == 40
    story = subprocess.run(
        [sys.executable, "-m", "llama2py", "run", out, "-s", "1", "-n", "9"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert story.stdout.strip()


def test_two_processes_train_what_one_does(corpus: Path, tmp_path: Path) -> None:
    """torchrun's two processes share the batches of a step: the same sums in another order."""
    together = tmp_path / "two.bin"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    more = ["--max_iters=10", "--optimizer=adamw", "--learning_rate=0.002"]
    call = torchrun + command(corpus, together, *more)
    done = subprocess.run(call, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "cpu x 2" in done.stderr
    alone = tmp_path / "one.bin"
    subprocess.run([sys.executable, *command(corpus, alone, *more)], check=True)
    with open_checkpoint(together) as two, open_checkpoint(alone) as one:
        for name, tensors in one.tensors.items():
            for ours, theirs in zip(tensors, two.tensors[name], strict=True):
                assert isinstance(ours, DenseTensor)
                np.testing.assert_allclose(ours.data, theirs.dequantize(), atol=2e-3)


def test_processes_part_in_peace(tmp_path: Path) -> None:
    """No worker thread still holds a tensor at the interpreter's end: it would abort the process.

    An interpreter that does not hand its lock around makes the rare race common: every second run
    failed when flags shared the group of the gradients.
    """
    script = tmp_path / "part.py"
    script.write_text(
        "import sys, torch\n"
        "from llama2py.training.processes import Processes\n"
        "processes = Processes('cpu')\n"
        "model = processes.wrap(torch.nn.Linear(4, 4))\n"
        "sys.setswitchinterval(1000)\n"
        "for step in range(3):\n"
        "    model(torch.zeros(2, 4)).sum().backward()\n"
        "    assert processes.any(step == processes.rank) == (step < 2)\n"
        "processes.close()\n"
    )
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(3):
        done = subprocess.run(
            [*call, str(script)], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr

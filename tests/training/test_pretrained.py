"""Runs that begin with a checkpoint: its weights, or its probabilities as a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2py
from llama2py import ConfigError, TrainingError
from llama2py.checkpoint import open_checkpoint
from llama2py.formats.corpus import read_stories
from llama2py.training import TrainConfig, config_from, train
from tests.support.tiny_training import TINY, write_corpus

torch = pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("sentencepiece", reason="needs the extra [train]")
pytest.importorskip("matplotlib", reason="needs the extra [train]")

STILL = replace(TINY, max_iters=1, learning_rate=0.0)  # a run that changes no weight


@pytest.fixture(scope="module", params=["llama2.c", "hugging face", "gguf"])
def checkpoint(request: pytest.FixtureRequest, trained: Path, tmp_path_factory: Any) -> Path:
    """The trained model in several formats."""
    folder: Path = tmp_path_factory.mktemp("formats")
    if request.param == "llama2.c":
        return trained
    out = folder / ("model.gguf" if request.param == "gguf" else "model-hf")
    llama2py.convert(trained, out)
    return out


def weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with open_checkpoint(path) as checkpoint:
        return {
            f"{name}.{layer}": tensor.dequantize().copy()
            for name, tensors in checkpoint.tensors.items()
            for layer, tensor in enumerate(tensors)
        }


# ---- init_from ----


def test_a_run_starts_from_the_weights_of_a_checkpoint(
    checkpoint: Path, trained: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "story.bin"
    # A tokenizer.bin cannot hold the merges of a Hugging Face directory's vocabulary.
    tokenizer = trained.with_suffix(".tokenizer.bin") if checkpoint.is_dir() else None
    config = replace(STILL, init_from=str(checkpoint))
    assert train(corpus, out, config, tokenizer=tokenizer).finished
    before, after = weights(trained), weights(out)
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values, err_msg=name)
    assert llama2py.load(out).generate(seed=1).text == llama2py.load(trained).generate(seed=1).text


def test_a_run_goes_on_from_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    """On other stories, its first loss is the checkpoint's, as the engine measures it."""
    corpus = write_corpus(tmp_path / "more.txt", seed=2)
    out = tmp_path / "story.bin"
    config = replace(TINY, init_from=str(trained), max_iters=20, learning_rate=0.002)
    first, *_, last = train(corpus, out, replace(config, eval_interval=1)).history
    held_out = read_stories(tmp_path / "story.train" / "held-out.txt")
    with llama2py.load(trained) as model:
        score = llama2py.score_texts(model, held_out)
    assert first.valid_loss == pytest.approx(score.nats_per_token, abs=0.1)
    assert last.valid_loss < first.valid_loss


def test_the_shape_comes_from_the_checkpoint(trained: Path, tmp_path: Path) -> None:
    config = config_from(None, {"init_from": str(trained)})
    assert (config.dim, config.n_layers, config.hidden_dim) == (32, 2, 88)
    assert (config.n_heads, config.n_kv_heads) == (4, 2)
    assert (config.vocab_size, config.max_seq_len) == (300, 256)
    assert config_from(None, {"init_from": str(trained), "max_seq_len": 128}).max_seq_len == 128
    file = tmp_path / "run.toml"
    file.write_text(f"init_from = '{trained}'\nmax_seq_len = 64\n")
    assert config_from(file, {}).dim == 32
    assert config_from(file, {}).max_seq_len == 64


def test_another_shape_is_an_error(trained: Path, corpus: Path, tmp_path: Path) -> None:
    config = replace(STILL, init_from=str(trained), n_layers=3)
    with pytest.raises(ConfigError, match=r"has n_layers 2, but the run trains a model with 3"):
        train(corpus, tmp_path / "story.bin", config)
    assert not (tmp_path / "story.train").exists()


def test_a_run_does_not_overwrite_what_it_starts_from(trained: Path, corpus: Path) -> None:
    for config in (replace(STILL, init_from=str(trained)), replace(STILL, teacher=str(trained))):
        with pytest.raises(TrainingError, match="training would overwrite this file"):
            train(corpus, trained, config, fresh=True)


def test_a_stopped_run_continues_without_its_first_weights(
    trained: Path, corpus: Path, tmp_path: Path
) -> None:
    config = replace(TINY, init_from=str(trained), max_iters=6)
    whole, stopped = tmp_path / "whole.bin", tmp_path / "stopped.bin"
    train(corpus, whole, config)
    left = iter([False, False, False, True])
    assert not train(corpus, stopped, config, stop=lambda: next(left)).finished
    assert train(corpus, stopped, config).finished
    assert stopped.read_bytes() == whole.read_bytes()


def test_a_state_with_other_first_weights_is_refused(
    trained: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "story.bin"
    train(corpus, out, replace(STILL, init_from=str(trained)))
    with pytest.raises(TrainingError, match="the earlier run has init_from"):
        train(corpus, out, STILL)


# ---- teacher ----


def test_the_loss_is_the_teachers_cross_entropy() -> None:
    """Compared with its definition in NumPy."""
    from llama2py.training.network import soft_loss

    rng = np.random.default_rng(1)
    logits, teacher = rng.normal(0, 3, (2, 5, 7))
    targets = np.array([1, -1, 3, 0, -1])

    def probabilities(values: np.ndarray[Any, Any], temperature: float) -> np.ndarray[Any, Any]:
        e = np.exp(values / temperature)
        return np.asarray(e / e.sum(-1, keepdims=True))

    for temperature in (0.5, 1.0, 4.0):
        p, q = probabilities(teacher, temperature), probabilities(logits, temperature)
        expected = -(p * np.log(q)).sum(-1)[targets != -1].mean() * temperature**2
        a, b, c = (torch.from_numpy(array) for array in (logits, teacher, targets))
        loss = soft_loss(a, b, c, temperature)
        assert float(loss) == pytest.approx(expected)


def distance(teacher: Path, student: Path, texts: list[str]) -> float:
    """Return the mean divergence of the student's probabilities from the teacher's, in nats."""
    total, n = 0.0, 0
    with llama2py.load(teacher) as one, llama2py.load(student) as other:
        for text in texts:
            tokens = one.tokenizer.encode(text)
            with one.session() as a, other.session() as b:
                p, q = (
                    logits - np.log(np.exp(logits).sum(-1, keepdims=True))
                    for logits in (s.forward(tokens, all_logits=True) for s in (a, b))
                )
            total += float((np.exp(p) * (p - q)).sum())
            n += len(tokens)
    return total / n


def test_a_student_comes_nearer_to_its_teacher(trained: Path, corpus: Path, tmp_path: Path) -> None:
    """Nearer than a student that learns only from the stories."""
    texts = read_stories(trained.parent / "story.train" / "held-out.txt")
    small = replace(TINY, dim=16, max_iters=60, teacher=str(trained))
    distances = []
    for share in (0.0, 1.0):
        out = tmp_path / f"{share}.bin"
        assert train(corpus, out, replace(small, teacher_share=share)).finished
        distances.append(distance(trained, out, texts))
    assert distances[1] < 0.8 * distances[0]


def test_a_student_has_its_teachers_vocabulary_by_default(
    trained: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "story.bin"
    train(corpus, out, replace(STILL, teacher=str(trained), vocab_size=280))
    ours, theirs = llama2py.load(out).tokenizer, llama2py.load(trained).tokenizer
    assert [ours.piece(t) for t in range(300)] == [theirs.piece(t) for t in range(300)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_seq_len": 512}, "the teacher's context is 256 tokens, shorter than max_seq_len"),
        ({"teacher": "builtin"}, "the teacher has another vocabulary"),
    ],
)
def test_a_teacher_that_does_not_suit_is_an_error(
    trained: Path, corpus: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = replace(STILL, **{"teacher": str(trained), **changes})
    with pytest.raises(TrainingError, match=message):
        train(corpus, tmp_path / "story.bin", config, tokenizer=llama2py.load(trained).tokenizer)


@pytest.mark.parametrize(
    "wrong", [{"teacher_share": 1.1}, {"teacher_share": -0.1}, {"teacher_temperature": 0.0}]
)
def test_a_value_out_of_range_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainConfig(**wrong)

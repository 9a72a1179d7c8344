"""Hyperparameters: their types and ranges, and the files they are read from."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama2py import ConfigError
from llama2py.training import TrainConfig, config_from


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_iters", 0),
        ("max_iters", 2.5),
        ("max_iters", True),
        ("max_iters", 1 << 31),
        ("batch_size", 10**30),
        ("dim", "128"),
        ("dim", 0),
        ("seed", -1),
        ("seed", 1 << 63),
        ("learning_rate", math.nan),
        ("learning_rate", -1),
        ("learning_rate", 10**400),
        ("learning_rate", "1e-3"),
        ("learning_rate", False),
        ("dropout", 1),
        ("decay_lr", 1),
        ("dtype", "float64"),
        ("dtype", None),
        ("optimizer", "sgd"),
        ("vocab_size", 0),
    ],
)
def test_a_value_of_another_type_or_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is .*, expected "):
        TrainConfig(**{name: value})


def test_numbers_of_other_kinds_become_plain_ones() -> None:
    config = TrainConfig(learning_rate=1, dim=np.int64(64), beta1=np.float32(0.5))  # type: ignore[arg-type]
    assert [config.learning_rate, config.dim, config.beta1] == [1.0, 64, 0.5]
    assert [type(x) for x in (config.learning_rate, config.dim, config.beta1)] == [
        float,
        int,
        float,
    ]


def test_every_hyperparameter_has_a_meaning() -> None:
    for name, meaning in TrainConfig.meanings().items():
        assert 10 < len(meaning) < 85, name
        assert "\n" not in meaning


def test_the_learning_rate_warms_up_and_decays_along_a_cosine() -> None:
    config = TrainConfig(learning_rate=1.0, min_lr=0.2, warmup_iters=3, max_iters=13)
    rates = [config.learning_rate_at(step) for step in (0, 1, 2, 3, 8, 13, 99)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.6, 0.2, 0.2])


def written(folder: Path, text: str) -> Path:
    path = folder / "c.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_changes_override_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "dim = 64\nlearning_rate = 1\ncompile = false\n")
    assert config_from(path, {"dim": 32}) == TrainConfig(dim=32, learning_rate=1.0, compile=False)
    assert config_from(None, {"dim": 32}) == TrainConfig(dim=32)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dim = 0", "dim is 0, expected"),
        ("dim = 'wide'", "dim is 'wide', expected an integer"),
        ("dim = 1.5", r"dim is 1\.5, expected an integer"),
        ("dim = 1979-05-27", "dim is datetime.date.*, expected an integer"),
        ("max_iter = 5", "'max_iter' is not a hyperparameter; did you mean max_iters"),
        ("[training]\ndim = 5", "'training' is not a hyperparameter; see"),
        ("dim = ", "not valid TOML"),
        ("dim = " + "9" * 5000, "not valid TOML"),
        ("dim = 0x" + "f" * 5000, "dim is a value of type int too long to print, expected an"),
        ("learning_rate = " + "9" * 400, "learning_rate is 9{80}..., expected a finite number"),
        ("dim = " + "[" * 5000 + "]" * 5000, r"not valid TOML \(nested too deeply\)"),
        ("dim = " + "{a=" * 3000 + "1" + "}" * 3000, "not valid TOML"),
        ("a." * 8000 + "a = 1", "'a' is not a hyperparameter|not valid TOML"),
        ("# " + "x" * 20000, "the file is larger than 16,384 bytes"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=r"c\.toml: (" + message + ")") as caught:
        config_from(path, {})
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX paths")
@pytest.mark.parametrize("name", ["missing.toml", ".", "x" * 300, "nul\0.toml", "/dev/zero"])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read|not a text file"):
        config_from(tmp_path / name, {})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.toml")
    with pytest.raises(ConfigError, match="a device, pipe or socket, not a text file"):
        config_from(tmp_path / "c.toml", {})

"""A damaged state is one sentence, never a traceback."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama2py import TrainingError
from llama2py.training import train
from tests.support.tiny_training import TINY

torch = pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("sentencepiece", reason="needs the extra [train]")
pytest.importorskip("matplotlib", reason="needs the extra [train]")

SMALL = replace(TINY, n_layers=1, dim=8, n_heads=2, n_kv_heads=1, max_iters=3, eval_interval=2)


@pytest.fixture(scope="module")
def stopped(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps; tests continue copies of it."""
    out = tmp_path_factory.mktemp("stopped") / "story.bin"
    train(corpus, out, SMALL)
    return out


def continue_with(state: Any, stopped: Path, corpus: Path) -> str | None:
    """Continue the run with another state by one step; return the error's message."""
    path = stopped.parent / "story.train" / "state.pt"
    before = path.read_bytes()
    try:
        if isinstance(state, bytes):
            path.write_bytes(state)
        else:
            torch.save(state, path)
        train(corpus, stopped, replace(SMALL, max_iters=4))
    except TrainingError as error:
        return str(error)
    finally:
        path.write_bytes(before)
    return None


def load(stopped: Path) -> dict[str, Any]:
    state = torch.load(stopped.parent / "story.train" / "state.pt", weights_only=True)
    assert isinstance(state, dict)
    return state


@pytest.mark.parametrize("damage", [b"", b"PK\3\4 no zip", b"\x80\x04N."])
def test_a_file_of_another_kind_is_refused(stopped: Path, corpus: Path, damage: bytes) -> None:
    message = continue_with(damage, stopped, corpus)
    assert message is not None
    assert "state.pt: not the state of a training run" in message


def test_a_truncated_file_is_refused(stopped: Path, corpus: Path) -> None:
    data = (stopped.parent / "story.train" / "state.pt").read_bytes()
    for size in (1, len(data) // 2, len(data) - 1):
        message = continue_with(data[:size], stopped, corpus)
        assert message is not None
        assert "not the state of a training run" in message


def test_a_flipped_byte_is_refused_or_harmless(stopped: Path, corpus: Path) -> None:
    """Checksums find what PyTorch would load as other weights."""
    data = (stopped.parent / "story.train" / "state.pt").read_bytes()
    weights = load(stopped)["parts"]["model"]["layers.0.feed_forward.w1.weight"]
    place = data.index(weights.numpy().tobytes())
    rng = random.Random(1)
    places = [place, place + 5] + [rng.randrange(len(data)) for _ in range(6)]
    messages = []
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 0x40
        messages.append(continue_with(bytes(damaged), stopped, corpus))
    assert all(message and "checksum" in message for message in messages[:2])


def test_a_fresh_run_replaces_a_damaged_state(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "story.bin"
    train(corpus, out, replace(SMALL, max_iters=1))
    (tmp_path / "story.train" / "state.pt").write_bytes(b"damaged")
    assert train(corpus, out, replace(SMALL, max_iters=1), fresh=True).finished


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value within dicts and lists; of long lists, only the first."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places_in(item, (*path, key))
    elif isinstance(value, list) and value:
        yield from places_in(value[0], (*path, 0))


def with_other(state: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    other: Any = copy.deepcopy(state)
    holder = other
    for key in path[:-1]:
        holder = holder[key]
    if value is None:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return other  # type: ignore[no-any-return]


@pytest.mark.slow
def test_no_damage_to_a_value_is_a_traceback(stopped: Path, corpus: Path) -> None:
    """Each value is removed, or replaced by one of another kind, size or sign."""
    state = load(stopped)
    values = [None, "x", -1, 1e20, math.nan, [], {"a": 1}, torch.ones(2, 3), torch.tensor([1j])]
    refused = total = 0
    places = list(places_in(state))
    assert len(places) > 80
    for i, path in enumerate(places):
        for value in (values[i % len(values)], values[(i + 4) % len(values)]):
            refused += continue_with(with_other(state, path, value), stopped, corpus) is not None
            total += 1
    assert refused > 0.5 * total


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("progress", "step"), 1e20),
        (("progress", "step"), math.nan),
        (("progress", "step"), 10**20),
        (("progress", "step"), 10**9),
        (("progress", "step"), True),
        (("progress", "step"), -1),
        (("progress", "epoch"), -1),
        (("progress", "history"), [{}]),
        (("progress",), []),
        (("config",), None),
        (("parts", "AdamW", "state", 0, "exp_avg"), None),
        (("parts", "AdamW", "state", 0, "exp_avg"), torch.ones(3)),
        (("parts", "Muon", "state", 0), {}),
        (("random",), torch.ones(3)),
    ],
)
def test_a_value_out_of_range_is_refused(
    stopped: Path, corpus: Path, path: tuple[Any, ...], value: Any
) -> None:
    message = continue_with(with_other(load(stopped), path, value), stopped, corpus)
    assert message is not None
    assert "state.pt: not the state of a training run" in message
    assert len(message) < 600


def test_a_state_of_an_earlier_version_continues(stopped: Path, corpus: Path) -> None:
    state = load(stopped)
    del state["progress"]["loss_sum"], state["progress"]["n_losses"]
    assert continue_with(state, stopped, corpus) is None


def test_a_state_that_is_not_a_file_is_refused(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "story.bin"
    train(corpus, out, replace(SMALL, max_iters=1))
    state = tmp_path / "story.train" / "state.pt"
    state.unlink()
    state.symlink_to("/dev/zero")
    with pytest.raises(TrainingError, match="not a regular file"):
        train(corpus, out, replace(SMALL, max_iters=1))

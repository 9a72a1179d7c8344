"""Tokens of several sessions in one pass: the bits that each would have alone, or nothing runs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from llama2py import ClosedError, Model, PromptError
from llama2py.engine.session_many import forward_many
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import tiny_model


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with tiny_model() as model:
        yield model


BLOCKS = [[BOS, 7, 260], [5], [299] * 20, [1, 0, 2, 3], list(range(40))]


@pytest.mark.parametrize("backend", ["c", "numpy"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_many_forwards_are_as_each_alone(backend: str, n: int) -> None:
    """Behind different positions, twice. Of the engine the same bits."""
    with tiny_model(backend) as model:  # type: ignore[arg-type]
        together, alone = ([model.session() for _ in range(n)] for _ in range(2))
        for sessions in (together, alone):
            for i, session in enumerate(sessions[1:]):
                session.forward([9] * (i + 1))
        for blocks in (BLOCKS[:n], [[i] for i in range(n)]):
            rows = forward_many(together, blocks)
            expected = [s.forward(block) for s, block in zip(alone, blocks, strict=True)]
            assert rows.shape == (n, 300)
            if backend == "c":
                assert rows.tobytes() == np.stack(expected).tobytes()
            np.testing.assert_allclose(rows, np.stack(expected), rtol=0, atol=1e-4)
            assert [s.position for s in together] == [s.position for s in alone]


@pytest.mark.parametrize("bad", [[], [300], [-1], [1] * 61])
def test_an_error_in_one_of_many_runs_nothing(model: Model, bad: list[int]) -> None:
    sessions = [model.session() for _ in range(3)]
    for session in sessions:
        session.forward([BOS, 4, 5, 6])
    for where in range(3):
        blocks = [[7], [7], [7]]
        blocks[where] = bad
        with pytest.raises(PromptError):
            forward_many(sessions, blocks)
        assert [session.position for session in sessions] == [4, 4, 4]
    with model.session() as other:
        other.forward([BOS, 4, 5, 6])
        assert forward_many(sessions, [[8]] * 3)[2].tobytes() == other.forward([8]).tobytes()


def test_a_closed_one_of_many_runs_nothing(model: Model) -> None:
    one, other = model.session(), model.session()
    other.close()
    with pytest.raises(ClosedError, match="session is closed"):
        forward_many([one, other], [[1], [1]])
    assert one.position == 0


@pytest.mark.parametrize("blocks", [[[1]], [[1], [1], [1]]])
def test_a_block_for_each_session(model: Model, blocks: list[list[int]]) -> None:
    sessions = [model.session() for _ in range(2)]
    with pytest.raises(ValueError, match=r"shorter|longer"):
        forward_many(sessions, blocks)
    assert [session.position for session in sessions] == [0, 0]

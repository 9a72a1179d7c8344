"""Forks, and prompts that share a beginning: the same bits, and less to run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from llama2py import ClosedError, Model, ModelConfig, ParameterError, PromptError
from llama2py.engine.backend import Backend, Logits
from llama2py.engine.native import Engine
from llama2py.engine.session import Session
from llama2py.generation import prefix_cache
from llama2py.generation.batch import run_jobs
from llama2py.generation.job import Job
from llama2py.generation.prefix_cache import PrefixCache
from llama2py.generation.sampling import Sampler, SamplingParams
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import random_checkpoint, tiny_model, tiny_tokenizer
from tests.support.scripted import ScriptedBackend

TOKENS = [1, 270, 33, 259, 5, 299, 0, 271]


@pytest.fixture(scope="module", params=["c", "numpy"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with tiny_model(request.param) as model:
        yield model


@pytest.mark.parametrize("position", [0, 1, 8, 17, 33])
def test_a_fork_is_independent_of_its_trunk(model: Model, position: int) -> None:
    """Around the borders of 16 positions; neither hears of the other."""
    start = [(7 * i) % 300 for i in range(position)]
    with model.session() as trunk, model.session() as straight:
        for session in (trunk, straight):
            if start:
                session.forward(start)
        with trunk.fork() as branch:
            assert branch.position == position
            branch.forward([9] * 20)
            expected = straight.forward(TOKENS, all_logits=True)
            assert trunk.fork().forward(TOKENS, all_logits=True).tobytes() == expected.tobytes()
            assert trunk.forward(TOKENS, all_logits=True).tobytes() == expected.tobytes()


def test_a_fork_outlives_its_trunk(model: Model) -> None:
    trunk = model.session()
    trunk.forward(TOKENS)
    branch = trunk.fork()
    expected = trunk.forward([5])
    trunk.close()
    assert branch.forward([5]).tobytes() == expected.tobytes()
    with pytest.raises(ClosedError):
        trunk.fork()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """All sessions that prefix caches make."""
    sessions: list[Session] = []

    def session(backend: Backend) -> Session:
        sessions.append(Session(backend))
        return sessions[-1]

    monkeypatch.setattr(prefix_cache, "Session", session)
    return sessions


def medium() -> Model:
    config = ModelConfig(48, 128, 2, 4, 2, 300, 256)
    return Model(Engine(random_checkpoint(config)), tiny_tokenizer())


def prompt(n: int, ending: int) -> list[int]:
    return [BOS, *(int(t) for t in np.random.default_rng(1).integers(3, 300, n)), ending]


def test_reuse_changes_no_bit() -> None:
    """Prompts that share much, all, nothing; longer and shorter ones; log-probabilities and all."""
    with medium() as model, medium() as fresh:
        fresh.reuse_prefixes(0)
        asked = [prompt(n, end) for n in (60, 100, 15, 3, 60, 200) for end in (5, 6, 5)]
        for seed, tokens in enumerate(asked):
            ours, plain = (
                m.generate(tokens, seed=seed, max_tokens=12, logprobs=2) for m in (model, fresh)
            )
            assert (ours.tokens, ours.logprobs) == (plain.tokens, plain.logprobs)
            # what was generated is a prefix, too
            more = [
                m.generate(ours.prompt_tokens + ours.tokens, seed=1, max_tokens=5)
                for m in (model, fresh)
            ]
            assert more[0].tokens == more[1].tokens


class Lettered(ScriptedBackend):
    """Always "a", and cache memory small enough to be kept."""

    def __init__(self) -> None:
        super().__init__(iter(lambda: 260, None), 300, 256)


def test_a_shared_prefix_is_not_run_again() -> None:
    backend = Lettered()
    model = Model(backend, tiny_tokenizer())
    first, second = [BOS, *[5] * 200], [BOS, *[5] * 195, *[6] * 5]
    model.generate(first, max_tokens=1)
    assert len(backend.runs) == 201
    model.generate(second, max_tokens=1)
    assert backend.runs[201:] == [(196 + i, 6) for i in range(5)]
    model.generate(second, max_tokens=1)
    assert backend.runs[206:] == [(200, 6)]  # the last one's logits are wanted
    model.reuse_prefixes(0)
    model.generate(second, max_tokens=1)
    assert len(backend.runs) == 207 + 201


def closed(session: Session) -> bool:
    try:
        session.rewind(0)
    except ClosedError:
        return True
    return False


def test_memory_is_bounded_and_freed(made: list[Session]) -> None:
    with medium() as model:
        for i in range(30):
            model.generate([BOS, *[i + 3] * 40], max_tokens=2, seed=1)
        assert len(made) == 30
        assert [closed(session) for session in made] == [True] * 22 + [False] * 8
        per_token = model.config.cache_bytes // model.config.seq_len
        model.reuse_prefixes(2 * 128 * per_token)  # each takes whole pages
        assert all(map(closed, made))
        for i in range(5):
            model.generate([BOS, *[i + 3] * 40], max_tokens=2, seed=1)
        assert [closed(session) for session in made[30:]] == [True] * 3 + [False] * 2
        with model.stream([BOS, *[99] * 40]) as stream:
            next(stream)
        assert closed(made[-1])  # broken off: its memory is free at once
    assert all(map(closed, made))


def test_the_session_that_shares_most_is_taken() -> None:
    with medium() as model:
        kept = PrefixCache(model.backend, 1 << 20)
        sessions = [model.session() for _ in range(3)]
        for session, tokens in zip(sessions, ([5] * 20, [5] * 30, [6] * 40), strict=True):
            session.forward(tokens)
            kept.give(session)
        assert kept.take([5] * 25 + [9] * 9) == (sessions[1], 25)
        assert kept.take([5] * 25 + [9] * 9) == (sessions[0], 20)
        fresh, n = kept.take([6] * 15)  # a session with fewer tokens is not worth its memory
        assert (fresh in sessions, n) == (False, 0)
        assert kept.take([6] * 40) == (sessions[2], 39)
        assert sessions[2].position == 39


def test_a_short_shared_prefix_does_not_cost_a_long_session() -> None:
    """Such as a system prompt that all dialogs have: each dialog goes on where it was."""
    backend = Lettered()
    model = Model(backend, tiny_tokenizer())
    system = [BOS, *[5] * 30]
    dialogs = [[*system, *[i] * 60] for i in (6, 7)]
    for dialog in dialogs:
        model.generate(dialog, max_tokens=1)
    assert len(backend.runs) == 91 + 60
    for dialog in dialogs:
        model.generate([*dialog, 8], max_tokens=1)
    assert backend.runs[151:] == [(91, 8), (91, 8)]


def test_a_branch_is_the_same_whether_copied_or_rewound() -> None:
    with medium() as model:
        kept = PrefixCache(model.backend, 1 << 20)
        for n, is_copy in ((40, True), (60, False)):
            session = model.session()
            session.forward(prompt(98, 5))
            kept.give(session)
            branch, position = kept.take([*prompt(n - 1, 9), 9])
            assert position == branch.position == n
            assert (branch is not session) == is_copy
            if is_copy:
                assert kept.take(prompt(98, 5)) == (session, 99)
            with model.session() as straight:
                expected = straight.forward([*prompt(n - 1, 9), 9])
            assert branch.forward([9, 9]).tobytes() == expected.tobytes()


def test_nbytes_of_a_session_never_shrink() -> None:
    """Memory that is written once stays, however far a session goes back."""
    with medium() as model, model.session() as session:
        per_token = model.backend.cache_bytes // model.config.seq_len
        assert session.nbytes == 0
        session.forward([5] * 129)
        session.rewind(3)
        assert session.nbytes == 256 * per_token
        with session.fork(2) as branch:
            assert (branch.tokens, branch.nbytes) == ([5] * 2, 128 * per_token)
        for position in (-1, 4):
            with pytest.raises(PromptError, match="expected a whole number from 0 to 3"):
                session.fork(position)


def test_a_negative_bound_is_an_error() -> None:
    with medium() as model:
        assert model.generate([BOS, *[5] * 40], max_tokens=2, seed=1).tokens
        with pytest.raises(ParameterError, match="max_bytes is -1, expected a whole"):
            model.reuse_prefixes(-1)
        assert len(model.prefix_cache._kept) == 1  # all is as before


def test_a_closed_cache_keeps_no_session() -> None:
    with medium() as model:
        kept, session = PrefixCache(model.backend, 1 << 20), model.session()
        session.forward([5] * 20)
        kept.close()
        kept.give(session)
        assert closed(session)
        fresh, n = kept.take([5] * 21)
        assert (fresh is session, n) == (False, 0)


def test_a_stream_closed_at_its_end_closes_no_kept_session() -> None:
    with medium() as model:
        stream = model.stream([BOS, *[5] * 40], max_tokens=2, seed=1)
        stream.finish()
        stream.close()
        again = model.stream([BOS, *[5] * 40], max_tokens=2, seed=1)
        stream.close()  # its session is another's now
        assert again.finish().tokens == stream.tokens


def test_a_batch_skips_prefixes_that_earlier_texts_have_run() -> None:
    backend = Lettered()
    model = Model(backend, tiny_tokenizer())
    first, second = [BOS, *[5] * 200], [BOS, *[5] * 195, *[6] * 5]
    model.generate([first], max_tokens=1)
    assert len(backend.runs) == 201
    model.generate([second, second], max_tokens=1, max_batch=1)
    assert backend.runs[201:] == [*((196 + i, 6) for i in range(5)), (200, 6)]


def test_reuse_in_a_batch_changes_no_bit() -> None:
    with medium() as model, medium() as fresh:
        fresh.reuse_prefixes(0)
        asked = [prompt(n, end) for n in (60, 100, 15, 3, 60, 200) for end in (5, 6, 5)]
        texts = model.generate(asked, seed=1, max_tokens=12, logprobs=2, max_batch=4)
        for ours, tokens in zip(texts, asked, strict=True):
            plain = fresh.generate(tokens, seed=1, max_tokens=12, logprobs=2)
            assert (ours.tokens, ours.logprobs) == (plain.tokens, plain.logprobs)


def test_a_batch_broken_off_closes_its_sessions(made: list[Session]) -> None:
    with medium() as model:
        texts = model.generate_many([[BOS, *[i] * 40] for i in range(3, 9)], max_batch=3, seed=1)
        next(texts)
        texts.close()  # type: ignore[attr-defined]
        with pytest.raises(PromptError):
            model.generate([[BOS, *[9] * 40], [BOS, 300]], max_tokens=1)
    assert all(map(closed, made))


class Failing:
    """A guide that does not get far."""

    adjusts = True

    def adjust(self, logits: Logits) -> None:
        raise ValueError("no")

    def accept(self, token: int, piece: str) -> bool:
        return True


def test_a_batch_that_fails_closes_no_kept_session() -> None:
    """One text ends, and its neighbour fails in the same pass."""
    with medium() as model:
        tokens = [BOS, *[5] * 40]
        jobs = [
            Job(ending, Sampler(model.backend, SamplingParams(), 1), max_tokens=1, guide=guide)
            for ending, guide in ((tokens, None), ([*tokens[:-1], 6], Failing()))
        ]
        with pytest.raises(ValueError, match="no"):
            list(run_jobs(model, jobs, max_batch=2))
        assert len(model.prefix_cache._kept) == 1
        assert model.generate(tokens, max_tokens=3, seed=1).tokens

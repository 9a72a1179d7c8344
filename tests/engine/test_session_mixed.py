"""Sessions used in any order: each equals a fresh session that ran its tokens, and the reference.

Hypothesis mixes forward, draws, batches, rewind, shift, fork, save, texts and close over a few
sessions of one model.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from llama2py import Cancelled, ClosedError, Model, Session, Stream
from llama2py.checkpoint import Checkpoint
from llama2py.engine.backend import Draw
from llama2py.engine.native import Engine
from llama2py.engine.reference import Reference
from llama2py.engine.session import run_sessions
from llama2py.generation.job import Job
from llama2py.generation.sampling import Sampler, SamplingParams
from tests.conftest import TINY, random_checkpoint, tiny_tokenizer
from tests.support.drawing import by_hand, keys

CHECKPOINT: Checkpoint = random_checkpoint(TINY)
MODEL = Model(Engine(CHECKPOINT, threads=2), tiny_tokenizer())
REFERENCE = Model(Reference(CHECKPOINT), tiny_tokenizer())

blocks = st.lists(st.integers(0, 299), min_size=1, max_size=20)
draws = st.lists(
    st.builds(
        Draw,
        st.sampled_from([0.0, 0.5, 1.0, 4.0]),
        st.sampled_from([0.0, 0.5, 0.9, 1.0]),
        st.integers(0, (1 << 24) - 1).map(lambda n: n / (1 << 24)),
        st.sampled_from([1, 9, 299, 300]),
    ),
    min_size=1,
    max_size=20,
)
part = st.floats(0, 1)


class Sessions(RuleBasedStateMachine):
    """Each session has its expected tokens beside it, as a plain list."""

    sessions: Any = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.expected: dict[Session, list[int]] = {}

    def add(self, session: Session, tokens: list[int]) -> Session:
        session.overflow = "shift"
        self.expected[session] = tokens
        return session

    def shifted(self, session: Session, n: int) -> None:
        """What the documented shift leaves of the expected tokens, if ``n`` more do not fit."""
        tokens = self.expected[session]
        if len(tokens) + n > TINY.seq_len:
            rest = tokens[1:]
            forgotten = max((len(rest) + 1) // 2, len(rest) + 1 + n - TINY.seq_len)
            self.expected[session] = tokens[:1] + rest[forgotten:]

    @rule(target=sessions)
    def new(self) -> Session:
        return self.add(MODEL.session(), [])

    @rule(target=sessions, session=sessions, where=part)
    def fork(self, session: Session, where: float) -> Session:
        tokens = self.expected[session]
        n = round(where * len(tokens))
        return self.add(session.fork(n), tokens[:n])

    @rule(target=sessions, session=sessions)
    def save_and_load(self, session: Session) -> Session:
        with TemporaryDirectory() as folder:
            session.save(Path(folder) / "a.session")
            loaded = MODEL.load_session(Path(folder) / "a.session")
        return self.add(loaded, list(self.expected[session]))

    @rule(session=sessions, tokens=blocks)
    def forward(self, session: Session, tokens: list[int]) -> None:
        self.shifted(session, len(tokens))
        logits = session.forward(tokens)
        self.expected[session] += tokens
        with REFERENCE.session() as plain:
            near = plain.forward(self.expected[session])
        np.testing.assert_allclose(logits, near, rtol=0, atol=2e-4)

    @rule(session=sessions, tokens=blocks, draws=draws, take=st.integers(0, 20))
    def draw(self, session: Session, tokens: list[int], draws: list[Draw], take: int) -> None:
        self.shifted(session, len(tokens))
        (drawn,) = run_sessions([session], [tokens], [draws])
        taken = list(islice(drawn, take))
        self.expected[session] += [*tokens, *taken[:-1]]
        with MODEL.session() as fresh:
            before = self.expected[session][: len(self.expected[session]) - len(taken[:-1])]
            if before[: -len(tokens)]:
                fresh.forward(before[: -len(tokens)])
            assert by_hand(fresh, tokens, draws[: len(taken)]) == taken

    @rule(one=sessions, other=sessions, tokens=blocks, last=st.integers(0, 299))
    def batch(self, one: Session, other: Session, tokens: list[int], last: int) -> None:
        if one is other:
            return
        for session, block in ((one, tokens), (other, [last])):
            self.shifted(session, len(block))
        rows = run_sessions([one, other], [tokens, [last]])
        for session, block, row in zip((one, other), (tokens, [last]), rows, strict=True):
            self.expected[session] += block
            with MODEL.session() as fresh:
                assert fresh.forward(self.expected[session]).tobytes() == row.tobytes()

    @rule(session=sessions, seed=st.integers(0, 99), tokens=blocks, n_pieces=st.integers(0, 30))
    def text(self, session: Session, seed: int, tokens: list[int], n_pieces: int) -> None:
        """A text that is left at any piece."""
        if len(self.expected[session]) + len(tokens) > TINY.seq_len:
            return
        sampler = Sampler(MODEL.backend, SamplingParams(1.5), seed)
        job = Job(tokens, sampler, 40, stop_tokens=frozenset([5]), overflow="shift")
        stream = Stream(session, MODEL.tokenizer, job, owns_session=False)
        for _ in islice(stream, n_pieces):
            pass
        if not job.timings.generated_tokens:
            self.expected[session] = session.tokens  # the pieces began to run, or did not
            return
        for n, block in enumerate([tokens, *([token] for token in job.tokens)]):
            if n < job.timings.generated_tokens:  # the last token has not been run
                self.shifted(session, len(block))
                self.expected[session] += block
        session.overflow = "shift"

    @rule(session=sessions, where=part)
    def rewind(self, session: Session, where: float) -> None:
        n = round(where * len(self.expected[session]))
        session.rewind(n)
        del self.expected[session][n:]

    @rule(session=sessions, n=st.integers(1, 60))
    def shift(self, session: Session, n: int) -> None:
        tokens = self.expected[session]
        rest = tokens[1:]
        forgotten = max((len(rest) + 1) // 2, len(rest) + 1 + n - TINY.seq_len)
        session.shift(n)
        self.expected[session] = tokens[:1] + rest[forgotten:]

    @rule(session=sessions, tokens=blocks)
    def interrupt(self, session: Session, tokens: list[int]) -> None:
        if len(self.expected[session]) + len(tokens) <= TINY.seq_len:
            with pytest.raises(Cancelled):
                session.forward(tokens, interrupted=lambda: True)

    @rule(session=consumes(sessions))
    def close(self, session: Session) -> None:
        session.close()
        del self.expected[session]
        with pytest.raises(ClosedError):
            session.forward([1])

    @invariant()
    def each_session_has_run_what_is_expected(self) -> None:
        for session, tokens in self.expected.items():
            assert session.tokens == tokens
            assert session.position == len(tokens) == TINY.seq_len - session.room

    def teardown(self) -> None:
        for session, tokens in self.expected.items():
            with MODEL.session() as fresh:
                if tokens:
                    fresh.forward(tokens)
                assert keys(session) == keys(fresh)
            session.close()


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)

"""Batches: each text what it is alone, in order, and never more sessions than asked for."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2py import ClosedError, EngineError, Model, PromptError, Session
from llama2py.engine.backend import Backend, Logits, draw_rows
from llama2py.generation import prefix_cache
from llama2py.generation.batch import Job, run_jobs
from llama2py.generation.sampling import Sampler, SamplingParams
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import tiny_model, tiny_tokenizer
from tests.support.scripted import ScriptedBackend

A, B, C = 260, 261, 288  # "a", "b" and " c", of conftest's tokenizer
DOG = [3 + value for value in "🐶".encode()]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with tiny_model() as model:
        yield model


@dataclass(frozen=True)
class Wish:
    """One text to generate, for `Model.generate` and for a batch."""

    prompt: str
    seed: int = 1
    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 0.9

    def job(self, model: Model) -> Job:
        params = SamplingParams(self.temperature, self.top_p)
        tokens = model.tokenizer.encode(self.prompt)
        return Job(tokens, Sampler(model.backend, params, self.seed), self.max_tokens)

    def alone(self, model: Model) -> tuple[str, list[int], str | None]:
        g = model.generate(self.prompt, self.max_tokens, self.temperature, self.top_p, self.seed)
        return g.text, g.tokens, g.finish_reason


def result(job: Job) -> tuple[str, list[int], str | None]:
    return job.text, job.tokens, job.finish_reason


def wishes(n: int) -> list[Wish]:
    """Of every kind: short and long prompts, few tokens, none, and a full context."""
    prompts = ["", "a", "abc abc", "Ein 🐶", "b" * 30, "c" * 62]
    return [
        Wish(
            prompts[i % 6],
            seed=i,
            max_tokens=[64, 0, 5, 1, 20, 1000, 64][i % 7],
            temperature=[1.0, 0.7, 0.0, 1.5][i % 4],
            top_p=[0.9, 1.0, 0.5][i % 3],
        )
        for i in range(n)
    ]


@dataclass
class Watched:
    """Counts a model's open sessions."""

    opened: list[Session] = field(default_factory=list)
    most: int = 0

    @property
    def open_now(self) -> int:
        """Those that can still be rewound."""
        return sum(map(is_open, self.opened))


def is_open(session: Session) -> bool:
    try:
        session.rewind(0 if session.position == 0 else session.position)
    except ClosedError:
        return False
    return True


@pytest.fixture
def watched(model: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    model.reuse_prefixes(0)  # or some would be kept for later prompts
    watch = Watched()

    def session(backend: Backend) -> Session:
        watch.opened.append(Session(backend))
        watch.most = max(watch.most, watch.open_now)
        return watch.opened[-1]

    monkeypatch.setattr(prefix_cache, "Session", session)
    yield watch
    model.reuse_prefixes()


def scripted(*script: int, seq_len: int = 64) -> Model:
    return Model(ScriptedBackend(script, 300, seq_len), tiny_tokenizer())


def greedy(model: Model, prompt: list[int], max_tokens: int = 64) -> Job:
    return Job(prompt, Sampler(model.backend, SamplingParams(0.0), 1), max_tokens)


# ---- each as alone ----


@pytest.mark.parametrize("max_batch", [1, 2, 5, 32])
def test_each_text_is_what_it_is_alone(model: Model, max_batch: int) -> None:
    asked = wishes(40)
    jobs = [wish.job(model) for wish in asked]
    done = list(run_jobs(model, jobs, max_batch))
    assert all(a is b for a, b in zip(done, jobs, strict=True))  # in order, and the very jobs
    assert [result(job) for job in done] == [wish.alone(model) for wish in asked]
    assert {job.finish_reason for job in done} == {"stop", "length"}


def test_texts_that_end_at_once_come_in_order(model: Model) -> None:
    """A long text holds back the texts after it, which are done earlier."""
    asked = [Wish("", 3), *[Wish("a", seed, max_tokens=seed % 3) for seed in range(20)], Wish("b")]
    done = run_jobs(model, (wish.job(model) for wish in asked), 3)
    assert [result(job) for job in done] == [wish.alone(model) for wish in asked]


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_jobs_without_tokens_to_generate_end_empty(model: Model, n: int) -> None:
    jobs = [Wish("abc", max_tokens=0).job(model) for _ in range(n)]
    assert [result(job) for job in run_jobs(model, jobs, 2)] == [("", [], "length")] * n


def test_no_jobs_give_no_texts(model: Model) -> None:
    assert list(run_jobs(model, [], 4)) == []


def test_a_full_context_leaves_one_token(model: Model) -> None:
    jobs = [Job([BOS, *[A] * 63], Sampler(model.backend, SamplingParams(), 1), 64)]
    (job,) = run_jobs(model, jobs, 4)
    assert job.tokens == model.generate([BOS, *[A] * 63], seed=1).tokens
    assert len(job.tokens) == 1


def test_bos_ends_a_text_and_does_not_belong_to_it() -> None:
    model = scripted(A, B, BOS)
    (job,) = run_jobs(model, [greedy(model, [BOS, C])], 1)
    assert result(job) == ("ab", [A, B], "stop")


def test_bos_as_the_last_token_allowed_is_still_an_end() -> None:
    model = scripted(A, BOS)
    (job,) = run_jobs(model, [greedy(model, [BOS], max_tokens=2)], 1)
    assert result(job) == ("a", [A], "stop")


def test_the_last_token_is_not_run() -> None:
    backend = ScriptedBackend([A, B, A], 300)
    model = Model(backend, tiny_tokenizer())
    (job,) = run_jobs(model, [greedy(model, [BOS, C], max_tokens=3)], 1)
    assert job.tokens == [A, B, A]
    assert backend.runs == [(0, BOS), (1, C), (2, A), (3, B)]


def test_a_text_holds_whole_characters() -> None:
    """The two texts' bytes come in turns, and each has its own decoder."""
    model = scripted(*[token for pair in zip(DOG, [A, *DOG[:3]], strict=True) for token in pair])
    jobs = [greedy(model, [BOS], 4), greedy(model, [BOS], 4)]
    first, second = run_jobs(model, jobs, 2)
    assert (first.text, first.tokens) == ("🐶", DOG)
    assert (second.text, second.tokens) == ("a\ufffd", [A, *DOG[:3]])


def test_a_space_after_bos_is_not_shown() -> None:
    model = scripted(C, C, BOS)
    (job,) = run_jobs(model, [greedy(model, [BOS])], 1)
    assert job.text == "c c"


# ---- lazily, within bounds ----


@pytest.mark.parametrize("max_batch", [1, 2, 5])
def test_an_endless_iterable_is_read_as_there_is_room(
    model: Model, watched: Watched, max_batch: int
) -> None:
    taken = 0

    def endless() -> Iterator[Job]:
        nonlocal taken
        for taken in count(1):
            yield Wish("a", seed=taken, max_tokens=7).job(model)

    stories = run_jobs(model, endless(), max_batch)
    assert taken == 0
    assert next(stories).sampler.seed == 1
    assert taken <= max_batch
    rest = list(islice(stories, 3 * max_batch))
    assert [job.sampler.seed for job in rest] == list(range(2, 2 + 3 * max_batch))
    assert watched.most <= max_batch
    stories.close()  # type: ignore[attr-defined]
    assert watched.open_now == 0


@pytest.mark.parametrize("max_batch", [1, 3, 8])
def test_a_batch_opens_max_batch_sessions_and_closes_all(
    model: Model, watched: Watched, max_batch: int
) -> None:
    jobs = [wish.job(model) for wish in wishes(20)]
    list(run_jobs(model, jobs, max_batch))
    assert watched.most == max_batch
    assert watched.open_now == 0


def test_the_next_text_takes_the_place_of_one_that_ended(model: Model) -> None:
    """Continuous: 3 texts of 4 tokens and one of 12 share two places in 12 passes, not 16."""
    passes = 0
    backend = ScriptedBackend([A] * 99, 300)
    run = backend.run

    def counted(tokens: list[int], caches: object, positions: object, rows: object) -> Logits:
        nonlocal passes
        passes += 1
        logits: Logits = run(tokens, caches, positions, rows)  # type: ignore[arg-type]
        return logits

    def run_counted(*args: Any) -> Any:
        return counted(*args) if len(args) == 4 else draw_rows(backend, *args)

    backend.run = run_counted  # type: ignore[method-assign, assignment]
    model = Model(backend, tiny_tokenizer())
    jobs = [greedy(model, [BOS], n) for n in (12, 4, 4, 4)]
    assert [len(job.tokens) for job in run_jobs(model, jobs, 2)] == [12, 4, 4, 4]
    assert passes == 12


def test_an_iterable_that_fails_closes_the_sessions(model: Model, watched: Watched) -> None:
    def failing() -> Iterator[Job]:
        yield from (Wish("a", max_tokens=n).job(model) for n in (9, 2, 9))
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        list(run_jobs(model, failing(), 2))
    assert len(watched.opened) >= 2
    assert watched.open_now == 0


# ---- errors ----


def test_a_token_out_of_the_vocabulary_closes_all_sessions(model: Model, watched: Watched) -> None:
    jobs = [Wish("a").job(model), Wish("b").job(model)]
    jobs[1].prompt_tokens = [BOS, 300]
    with pytest.raises(EngineError, match="refuses"):
        list(run_jobs(model, jobs, 4))
    assert (len(watched.opened), watched.open_now) == (2, 0)


@pytest.mark.parametrize("n", [65, 66, 200])
@pytest.mark.parametrize("max_tokens", [0, 5])
def test_a_prompt_that_does_not_fit_is_an_error(
    model: Model, watched: Watched, n: int, max_tokens: int
) -> None:
    jobs = [Wish("a").job(model), Wish("b", max_tokens=max_tokens).job(model)]
    jobs[1].prompt_tokens = [A] * n
    with pytest.raises(PromptError, match=f"no room for {n} tokens at position 0"):
        list(run_jobs(model, jobs, 4))
    assert (len(watched.opened), watched.open_now) == (2, 0)


def test_a_prompt_without_tokens_is_an_error(model: Model) -> None:
    job = Wish("a").job(model)
    job.prompt_tokens = []
    with pytest.raises(PromptError):
        list(run_jobs(model, [job], 1))


def test_a_prompt_without_tokens_leaves_no_session(model: Model, watched: Watched) -> None:
    job = Wish("a").job(model)
    job.prompt_tokens = []
    with pytest.raises((PromptError, IndexError)):
        list(run_jobs(model, [Wish("a").job(model), job], 2))
    assert watched.open_now == 0


def test_a_bad_prompt_is_an_error_even_without_tokens_to_generate(model: Model) -> None:
    with pytest.raises(PromptError, match="token 300 is out"):
        model.generate([BOS, 300], max_tokens=0)


@pytest.fixture
def seconds() -> Iterator[None]:
    """Ends what would hang, instead of the whole run."""

    def stop(*_: object) -> None:
        raise TimeoutError("no end in sight")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("seconds")
@pytest.mark.parametrize("max_batch", [0])
def test_a_batch_without_a_place_is_an_error(model: Model, max_batch: int) -> None:
    with pytest.raises(ValueError, match="max_batch"):
        list(run_jobs(model, [Wish("a").job(model)], max_batch))


# ---- guides ----


class Recorder:
    """A guide that forces some tokens and ends the text after one."""

    adjusts = True

    def __init__(self, forced: list[int], last: int | None = None) -> None:
        self.heard: list[tuple[int, str]] = []
        self._forced, self._last = iter(forced), last

    def adjust(self, logits: NDArray[np.float32]) -> None:
        assert logits.shape == (300,)
        if (token := next(self._forced, None)) is not None:
            logits[token] += 1000

    def accept(self, token: int, piece: str) -> bool:
        self.heard.append((token, piece))
        return token != self._last


def test_a_guide_may_choose_every_token(model: Model) -> None:
    tokens = [A, *DOG, B]
    guide = Recorder([*tokens, BOS])
    job = Wish("a").job(model)
    job.guide = guide
    assert result(next(run_jobs(model, [job], 1))) == ("a🐶b", tokens, "stop")
    pieces = ["a", "", "", "", "🐶", "b"]  # text as it is completed; BOS is not reported
    assert guide.heard == list(zip(tokens, pieces, strict=True))


def test_a_guide_may_end_the_text_after_a_token(model: Model) -> None:
    job = Wish("a").job(model)
    job.guide = Recorder([A, C, B, A], last=B)
    assert result(next(run_jobs(model, [job], 1))) == ("a cb", [A, C, B], "stop")


def test_a_guide_that_ends_the_text_within_a_character_shows_it(model: Model) -> None:
    job = Wish("a").job(model)
    job.guide = Recorder(DOG, last=DOG[1])
    assert result(next(run_jobs(model, [job], 1))) == ("\ufffd", DOG[:2], "stop")


def test_a_guide_does_not_affect_other_texts(model: Model) -> None:
    asked = [Wish("a", seed) for seed in range(3)]
    jobs = [wish.job(model) for wish in asked]
    jobs[1].guide = Recorder([C] * 64)
    done = list(run_jobs(model, jobs, 3))
    assert done[1].tokens == [C] * len(done[1].tokens)
    for i in (0, 2):
        assert result(done[i]) == asked[i].alone(model)


def test_a_guide_that_changes_nothing_changes_no_text(model: Model) -> None:
    asked = [Wish("ab", seed) for seed in range(5)]
    jobs = [wish.job(model) for wish in asked]
    for job in jobs:
        job.guide = Recorder([])
    assert [result(job) for job in run_jobs(model, jobs, 2)] == [w.alone(model) for w in asked]


class Switching:
    """Changes the sampling after four tokens; without ``adjusts`` the engine draws the tokens."""

    def __init__(self, sampler: Sampler, adjusts: bool) -> None:
        self.adjusts = adjusts
        self.adjusted = 0
        self.heard: list[int] = []
        self._sampler = sampler

    def adjust(self, logits: NDArray[np.float32]) -> None:
        self.adjusted += 1

    def accept(self, token: int, piece: str) -> bool:
        self.heard.append(token)
        if len(self.heard) == 4:
            self._sampler.params = SamplingParams(0.3, 0.5)
        return len(self.heard) < 20


@pytest.mark.parametrize("max_batch", [1, 3])
def test_a_guide_that_adjusts_nothing_hears_the_tokens_that_the_engine_draws(
    model: Model, max_batch: int
) -> None:
    """They are those drawn from the logits in Python."""

    def texts(adjusts: bool) -> list[Switching]:
        guides = []

        def jobs() -> Iterator[Job]:
            for seed in range(5):
                job = Wish("ab", seed).job(model)
                job.guide = Switching(job.sampler, adjusts)
                guides.append(job.guide)
                yield job

        for job in run_jobs(model, jobs(), max_batch):
            assert job.guide is not None
            assert job.tokens == guides[job.sampler.seed].heard
        return guides

    drawn, adjusted = texts(False), texts(True)
    assert [guide.heard for guide in drawn] == [guide.heard for guide in adjusted]
    assert not any(guide.adjusted for guide in drawn)
    assert all(guide.adjusted for guide in adjusted)


def test_a_guide_that_fails_closes_the_sessions(model: Model, watched: Watched) -> None:
    class Failing(Recorder):
        def adjust(self, logits: NDArray[np.float32]) -> None:
            raise RuntimeError("no idea")

    jobs = [Wish("a", seed).job(model) for seed in range(3)]
    jobs[1].guide = Failing([])
    with pytest.raises(RuntimeError, match="no idea"):
        list(run_jobs(model, jobs, 3))
    assert (len(watched.opened), watched.open_now) == (3, 0)

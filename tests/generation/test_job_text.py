"""The text of a job that is under way: what is certain of it, and what is held back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py import Model
from llama2py.generation.batch import run_jobs
from llama2py.generation.job import Job
from llama2py.generation.sampling import Sampler, SamplingParams
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import tiny_tokenizer
from tests.support.drawing import next_token
from tests.support.scripted import ScriptedBackend
from tests.support.wishes import A, B, Wish

C = 288  # " c", of conftest's tokenizer
DOG = [3 + value for value in "🐶".encode()]


def scripted(*script: int) -> Model:
    return Model(ScriptedBackend(script, 300, seq_len=64), tiny_tokenizer())


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("in_batch", [True, False])
def test_a_character_cut_off_at_the_end(plain: bool, in_batch: bool) -> None:
    """By a cancel between its bytes: what there is of it is shown once."""
    model = scripted(A, *DOG)
    wish = Wish((BOS, B), temperature=0.0, cancelled_after=3)
    if in_batch:
        (job,) = run_jobs(model, [wish.job(model, plain)], 1)
    else:
        pieces, job = wish.pieces(model, plain)
        assert pieces == ["a", "\ufffd"]
    assert (job.text, job.tokens, job.finish_reason) == ("a\ufffd", [A, *DOG[:2]], "cancelled")


def text_before(whole: str, stops: list[str]) -> tuple[str, str | None]:
    """A text up to the stop text that ends first, of those the longest; and that one."""
    for end in range(len(whole) + 1):
        if ended := [stop for stop in stops if whole[:end].endswith(stop)]:
            longest = max(ended, key=len)
            return whole[: end - len(longest)], longest
    return whole, None


letters = st.sampled_from([A, B, 262, C, 286, 287, 259])  # a, b, c, " c", " a", " b" and a space


@settings(max_examples=300, deadline=None)
@given(
    script=st.lists(letters, min_size=1, max_size=12),
    stops=st.lists(st.text("abc ", min_size=1, max_size=4), max_size=3),
)
def test_the_text_of_a_job_never_shows_what_a_stop_text_may_begin_with(
    script: list[int], stops: list[str]
) -> None:
    model = scripted(*script)
    params = SamplingParams(0.0)
    job = Job([BOS, A], Sampler(model.backend, params, 1), len(script), stop=stops)
    whole, told, fed = "", "", 0
    with model.session() as session:
        job.start(session, model.tokenizer)
        assert job.text == ""
        while job.finish_reason is None:
            (draw,) = job.plain_draws()
            whole += model.tokenizer.piece(script[fed]).decode()
            told += job.take_token(next_token(session, job.next_block(), draw))
            fed += 1
            assert job.text == told
            expected, found = text_before(whole, stops)
            if found is None and job.finish_reason is None:
                held = whole[len(told) :]
                assert told + held == whole
                assert not held or any(stop.startswith(held) for stop in stops)
            else:
                assert (job.text, job.stopped_by) == (expected, found)
                assert job.finish_reason == ("length" if found is None else "stop")
    assert job.tokens == script[:fed]
    assert job.text == told  # a property: the same when it is read again

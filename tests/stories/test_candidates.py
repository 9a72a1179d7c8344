"""What makes a candidate good: flaws, the subject, the probability of the required words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2py import StoryTeller, load
from llama2py.generation.job import Job
from llama2py.generation.sampling import Sampler, SamplingParams
from llama2py.stories.candidates import (
    DROPPED_ABOVE,
    Candidate,
    best_of,
    has_sentence_twice,
    repeated_share,
    subject_returns,
    subject_words,
)
from llama2py.stories.guide import RepeatedGrams
from tests.conftest import tiny_model

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]


def candidate(text: str, n_tokens: int = 100, ended: bool = True) -> Candidate:
    with tiny_model() as model:
        job = Job([1], Sampler(model.backend, SamplingParams(), 1), 200, tokens=[5] * n_tokens)
    return Candidate(job, "", text, ended, looped=False, dropped=False)


# ---- flaws ----


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("He ran. He sat. He RAN!", True),
        ('"Go!" he said. Then: "Go!"', False),  # the second one is a part of a sentence
        ('"Go!" "Go!" he said.', True),
        ("He ran. He ran away.", False),
        ("", False),
    ],
)
def test_a_sentence_comes_twice_whatever_its_case_and_mark(text: str, twice: bool) -> None:
    assert has_sentence_twice(text.replace("RAN!", "RAN.")) == twice


@given(st.lists(st.sampled_from(WORDS[:4]), max_size=40))
def test_the_repeated_share_is_that_of_the_4_grams_that_have_occurred(words: list[str]) -> None:
    """Compared with a search for each 4-gram in the text before it."""
    grams = [words[i : i + 4] for i in range(len(words) - 3)]
    repeated = sum(gram in grams[:i] for i, gram in enumerate(grams))
    assert repeated_share(" ".join(words)) == repeated / max(1, len(grams))


@given(st.lists(st.sampled_from(WORDS[:4]), max_size=40), st.integers(1, 9))
def test_repeated_grams_are_counted_over_the_borders_of_pieces(words: list[str], n: int) -> None:
    grams = RepeatedGrams()
    for start in range(0, len(words), n):
        grams.read(" ".join(words[start : start + n]) + ".")
    whole = RepeatedGrams()
    whole.read(" ".join(words))
    assert (grams.n_repeated, grams.n_grams) == (whole.n_repeated, whole.n_grams)


def test_flaws_are_counted_and_loops_are_the_worst() -> None:
    good = candidate(" ".join(WORDS) + ".")
    assert good.flaws(300) == 0
    flawed = [
        replace(good, text="He sat down. He sat down."),
        candidate(good.text, n_tokens=90),
        candidate(good.text, ended=False),
        replace(good, looped=True),
        replace(good, dropped=True),
    ]
    flaws = [each.flaws(300) for each in flawed]
    assert flaws == sorted(flaws)
    assert len(set(flaws)) == len(flaws)
    assert flaws[0] > 0


def test_a_short_story_is_no_flaw_if_it_must_be_short() -> None:
    assert candidate("a.", n_tokens=50).flaws(300)
    assert not candidate("a.", n_tokens=50).flaws(40)


# ---- the subject ----


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ("a dragon who was afraid of fire", ["dragon", "afraid", "fire"]),
        ("Tom's dog and the cat", ["Tom", "dog", "cat"]),
        ("the", []),
        ("", []),
    ],
)
def test_the_words_of_a_subject_are_those_that_mean_something(about: str, words: list[str]) -> None:
    assert subject_words(about) == words


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x " * 30, 0.0),
        ("a cat. " + "x " * 30, 0.25),
        ("a cat. The cats. " + "x " * 40, 0.5),
        ("x " * 30 + "a cat.", 0.75),
        ("a cat. " + "x " * 30 + "a cat.", 1.0),
    ],
)
def test_a_subject_counts_if_it_comes_twice_and_at_the_end(text: str, value: float) -> None:
    assert subject_returns(text, ["cat"]) == value
    assert subject_returns(text, []) == 0
    assert subject_returns(text, ["cat", "owl"]) == value / 2


# ---- the choice ----


def test_the_story_is_the_best_of_the_candidates_that_the_teller_writes() -> None:
    """Each text is written alone, and scored by `Model.score`: the oracle."""
    with StoryTeller() as tell:
        model = tell.model
        story = tell(opening="Once upon a time, there was a cat.", seed=3)
        params = SamplingParams(0.6, 0.9)
        texts = []
        for number in range(8):
            seed = (3 + number * 0xD1B54A32D192ED03) % 2**64
            prompt = "Once upon a time, there was a cat."
            done = model.generate(prompt, None, params.temperature, params.top_p, seed)
            text = prompt + done.text
            clean = (
                done.finish_reason == "stop"
                and len(done.tokens) > 90
                and not has_sentence_twice(text)
                and repeated_share(text) < 0.025
                and text.split() == text.strip().split()
                and len(text.split()) <= 300
            )
            tokens = [*done.prompt_tokens, *done.tokens, model.tokenizer.bos_id]
            mean = model.score(tokens)[len(done.prompt_tokens) - 1 :].mean()
            texts.append((clean, mean, text.strip()))
        assert any(clean for clean, *_ in texts)
        assert story.text == max(texts)[2]


def test_the_word_that_the_model_would_have_written_is_preferred() -> None:
    """Of two texts that have the word: one has it where it is absurd, and is more probable."""
    with load() as model:
        start = "Once upon a time, there was a boy."
        prompt = model.tokenizer.encode(start)

        def written(text: str) -> Candidate:
            tokens = model.tokenizer.encode(start + text)[len(prompt) :]
            job = Job(prompt, Sampler(model.backend, SamplingParams(), 1), 9, tokens=tokens)
            return Candidate(job, start, start + text, True, False, False)

        usual = " He loved to play with his ball. One day, he went to the park with his mom."
        more = " They played with the ball all day. They had so much fun."
        absurd = written(f"{usual} He was very moon and happy.{more}")
        natural = written(" He loved to play with his ball. The sky was dark. He saw the moon.")
        n_given = len(prompt)
        means = [
            model.score(prompt + each.job.tokens)[n_given - 1 :].mean()
            for each in (absurd, natural)
        ]
        assert means[0] > means[1]
        for pair in ([absurd, natural], [natural, absurd]):
            assert best_of(pair, model, 300, ["moon"], []) is natural
            assert best_of(pair, model, 300, [], []) is absurd


def test_a_candidate_that_repeats_itself_is_not_finished_unless_all_do() -> None:
    with StoryTeller() as tell:
        wish = tell._wish("", "", (), 300)
        tries = [(1, number) for number in range(24)]
        dropped = list(tell._write(wish, wish.start, iter(tries), 8, drops=True))
        whole = list(tell._write(wish, wish.start, iter(tries), 8))
    assert any(each.dropped for each in dropped)
    for short, full in zip(dropped, whole, strict=True):
        assert full.text.startswith(short.text[:40])
        assert short.dropped or short.text == full.text
        if short.dropped:
            assert full.flaws(300), "no good story is dropped"
            assert len(short.job.tokens) < len(full.job.tokens)
            words = RepeatedGrams()
            words.read(full.text)
            assert words.n_repeated > DROPPED_ABOVE


# ---- log-probabilities ----


def test_single_precision_is_enough_for_the_choice() -> None:
    """Compared with double precision."""
    from llama2py.generation.logprobs import continuation_logprobs

    with load() as model, model.session() as session:
        tokens = model.tokenizer.encode("Once upon a time, there was a little dog. " * 20)
        fast = continuation_logprobs(session, tokens[:7], tokens[7:])
        np.testing.assert_allclose(fast, model.score(tokens)[6:], atol=2e-5)
        assert len(continuation_logprobs(session, tokens[:7], [])) == 0

"""Generating: streams and whole texts, what ends them, and what they tell about themselves."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

import numpy as np
import pytest

from llama2py import ClosedError, Model, ParameterError, PromptError
from llama2py.generation.stream import Generation
from llama2py.tokenizers.tokenizer import BOS, EOS
from tests.conftest import tiny_model, tiny_tokenizer
from tests.support.scripted import ScriptedBackend

A, C = 260, 288  # "a" and " c", of conftest's tokenizer


def byte(value: int) -> int:
    """The token of a raw byte."""
    return 3 + value


DOG = [byte(value) for value in "🐶".encode()]


@pytest.fixture(scope="module", params=["c", "numpy"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with tiny_model(request.param) as model:
        yield model


def scripted(*script: int, seq_len: int = 64) -> tuple[Model, ScriptedBackend]:
    """A model that samples exactly these tokens, and the backend that knows what was run."""
    backend = ScriptedBackend(script, 300, seq_len)
    return Model(backend, tiny_tokenizer()), backend


def story(generation: Generation) -> tuple[str, list[int], list[int], str, int]:
    """All but the timings."""
    g = generation
    return g.text, g.tokens, g.prompt_tokens, g.finish_reason, g.seed


# ---- one text, however it is read ----


@pytest.mark.parametrize("prompt", ["", "abc", "a 🐶"])
def test_generate_is_the_joined_stream(model: Model, prompt: str) -> None:
    generation = model.generate(prompt, seed=5)
    stream = model.stream(prompt, seed=5)
    pieces = list(stream)
    assert "".join(pieces) == generation.text == str(generation)
    assert all(pieces)  # never an empty one
    assert stream.tokens == generation.tokens
    assert stream.finish_reason == generation.finish_reason
    assert generation.prompt_tokens == model.tokenizer.encode(prompt)


def test_the_text_is_the_decoded_tokens(model: Model) -> None:
    """Decoded after the prompt, random bytes included."""
    for seed in range(1, 6):
        g = model.generate("ab", seed=seed)
        whole = model.tokenizer.decode(g.prompt_tokens + g.tokens)
        assert whole == "ab" + g.text


def test_the_same_seed_gives_the_same_text(model: Model) -> None:
    stories = [story(model.generate("ab", seed=seed)) for seed in (1, 1, 2, 2**64 - 1, 0, 0)]
    assert stories[0] == stories[1]
    assert stories[4] == stories[5]
    assert len({text for text, *_ in stories}) == 4


def test_without_a_seed_the_result_names_a_fresh_one(model: Model) -> None:
    first, second = model.generate("ab"), model.generate("ab")
    assert first.seed != second.seed
    assert story(model.generate("ab", seed=first.seed)) == story(first)


def test_temperature_zero_needs_no_seed(model: Model) -> None:
    assert model.generate("ab", temperature=0).text == model.generate("ab", temperature=0).text


def test_a_prompt_may_be_tokens(model: Model) -> None:
    tokens = model.tokenizer.encode("abc")
    expected = story(model.generate("abc", seed=1))
    assert story(model.generate(tokens, seed=1)) == expected
    assert story(model.generate(tuple(tokens), seed=1)) == expected
    assert story(model.generate(np.array(tokens), seed=1)) == expected  # type: ignore[call-overload]


# ---- what ends it ----


def test_bos_ends_the_story() -> None:
    model, backend = scripted(A, A + 1, BOS)
    g = model.generate("c")
    assert story(g)[:4] == ("ab", [A, A + 1], [BOS, C], "stop")
    assert g.timings.generated_tokens == 3
    # BOS is not run: nothing comes after it.
    assert backend.runs == [(0, BOS), (1, C), (2, A), (3, A + 1)]


def test_eos_does_not_end_the_story() -> None:
    g = scripted(A, EOS, A, BOS)[0].generate()
    assert g.text == "a\n</s>\na"
    assert g.tokens == [A, EOS, A]


@pytest.mark.parametrize("max_tokens", [0, 1, 7])
def test_max_tokens_ends_the_story(max_tokens: int) -> None:
    """And the last token is not run in vain."""
    model, backend = scripted(*[A] * 8)
    g = model.generate([BOS], max_tokens=max_tokens)
    assert story(g)[:4] == ("a" * max_tokens, [A] * max_tokens, [BOS], "length")
    assert len(backend.runs) == max(1, max_tokens)


@pytest.mark.parametrize("max_tokens", [None, 701, 10**9])
def test_the_context_ends_the_story(max_tokens: int | None) -> None:
    """The token drawn at the last position needs no position itself."""
    for seq_len in (64, 700):
        model, backend = scripted(*[A] * seq_len, seq_len=seq_len)
        g = model.generate([BOS], max_tokens=max_tokens)
        assert (len(g.tokens), g.finish_reason) == (seq_len, "length")
        assert backend.runs[-1] == (seq_len - 1, A)


def test_a_prompt_that_fills_the_context_gets_one_token(model: Model) -> None:
    tokens = [BOS, *[A] * 63]
    g = model.generate(tokens, seed=1)
    assert len(g.tokens) == 1
    assert (g.finish_reason, g.prompt_tokens) == ("length", tokens)
    assert model.generate(tokens, max_tokens=0).tokens == []


# ---- what is refused ----


def test_a_prompt_beyond_the_context_is_an_error(model: Model) -> None:
    with pytest.raises(PromptError, match="65 tokens long, longer than the model's context of 64"):
        model.generate([A] * 65)
    with pytest.raises(PromptError, match="longer than"):
        model.stream("a" * 80)  # at once, not when it is read


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "has no tokens"), ([BOS, 300], "token 300 is out"), ("\ud800", "surrogate")],
)
def test_a_bad_prompt_is_an_error(model: Model, prompt: str | list[int], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        model.generate(prompt)


def test_wrong_numbers_are_errors_at_once(model: Model) -> None:
    with pytest.raises(ParameterError, match="max_tokens is -1"):
        model.stream(max_tokens=-1)
    with pytest.raises(ParameterError, match="temperature is -1"):
        model.stream(temperature=-1)
    with pytest.raises(ParameterError, match=r"top_p is 1\.5"):
        model.stream(top_p=1.5)
    with pytest.raises(ParameterError, match="seed is -1"):
        model.stream(seed=-1)


# ---- streams ----


def test_an_emoji_is_one_piece() -> None:
    stream = scripted(A, *DOG, A, BOS)[0].stream()
    assert list(stream) == ["a", "🐶", "a"]
    assert stream.tokens == [A, *DOG, A]


def test_a_piece_comes_as_soon_as_it_is_whole() -> None:
    """Not one token later."""
    model, backend = scripted(*DOG, A, A, BOS)
    stream = model.stream([BOS])
    assert next(stream) == "🐶"
    assert len(backend.runs) == 4
    assert stream.tokens == DOG


def test_an_incomplete_emoji_at_the_end_is_shown() -> None:
    assert scripted(A, *DOG[:3], BOS)[0].generate().text == "a\ufffd"
    assert scripted(*DOG)[0].generate(max_tokens=2).text == "\ufffd"
    assert list(scripted(DOG[0], A, BOS)[0].stream()) == ["\ufffda"]


def test_the_prompts_bos_removes_one_space() -> None:
    assert scripted(C, C, BOS)[0].generate([BOS]).text == "c c"
    assert scripted(C, C, BOS)[0].generate("a").text == " c c"


def test_a_stream_left_early_keeps_what_was_read() -> None:
    model, backend = scripted(*[A] * 50)
    with model.stream([BOS]) as stream:
        for _, piece in zip(range(3), stream, strict=False):
            assert piece == "a"
        assert stream.finish_reason is None
    assert stream.tokens == [A] * 3
    assert stream.finish_reason is None
    assert stream.timings.generated_tokens == 3
    assert len(backend.runs) == 3
    stream.close()
    with pytest.raises(ClosedError):
        next(stream)


def test_finish_returns_the_rest() -> None:
    stream = scripted(A, A + 1, A + 2, BOS)[0].stream(seed=9)
    assert next(stream) == "a"
    g = stream.finish()
    assert (g.text, g.tokens, g.seed) == ("bc", [A, A + 1, A + 2], 9)


def test_a_finished_stream_yields_nothing(model: Model) -> None:
    stream = model.stream("a", max_tokens=2, seed=1)
    list(stream)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(stream)
    assert stream.finish().text == ""
    assert iter(stream) is stream


def test_streams_of_one_model_do_not_affect_each_other(model: Model) -> None:
    alone = [model.generate("ab", seed=seed, max_tokens=20).text for seed in (1, 2, 3)]
    streams = [model.stream("ab", seed=seed, max_tokens=20) for seed in (1, 2, 3)]
    texts = ["", "", ""]
    for _ in range(40):
        for i, stream in enumerate(streams):
            texts[i] += next(stream, "")
    assert texts == alone


# ---- timings ----


def test_timings_are_plausible(model: Model) -> None:
    start = perf_counter()
    g = model.generate("abc", max_tokens=10, seed=1)
    elapsed, t = perf_counter() - start, g.timings
    assert t.prompt_tokens == len(g.prompt_tokens)
    assert t.generated_tokens == len(g.tokens) == 10
    assert 0 < t.prompt_seconds <= t.first_token_seconds
    assert t.generation_seconds > 0
    assert t.first_token_seconds + t.generation_seconds <= elapsed
    assert t.prompt_tokens_per_second == pytest.approx(t.prompt_tokens / t.prompt_seconds)
    assert t.tokens_per_second == pytest.approx(9 / t.generation_seconds)


def test_timings_of_an_empty_text_are_zero(model: Model) -> None:
    none, one = (model.generate("abc", max_tokens=n, seed=1).timings for n in (0, 1))
    assert none.first_token_seconds == 0
    assert none.prompt_seconds > 0
    assert one.first_token_seconds > 0
    for t in (none, one):
        assert (t.generation_seconds, t.tokens_per_second) == (0, 0)
    unread = model.stream("abc").timings
    assert (unread.prompt_seconds, unread.prompt_tokens_per_second) == (0, 0)

"""A full context: an error, the end of the text, or the oldest tokens go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llama2py import Chat, ContextError, Model, ModelConfig, ParameterError, PromptError, Session
from llama2py.engine.native import Engine
from llama2py.tokenizers.tokenizer import BOS, EOS
from tests.conftest import random_checkpoint, tiny_model, tiny_tokenizer
from tests.support.scripted import ScriptedBackend

SMALL = ModelConfig(24, 44, 2, 4, 2, 300, 24, shared_classifier=False)


def small() -> Model:
    return Model(Engine(random_checkpoint(SMALL)), tiny_tokenizer())


def fresh(model: Model, tokens: list[int]) -> Any:
    """The logits of a session that has run these tokens only."""
    with model.session() as session:
        return session.forward(tokens)


# ---- sessions ----


def test_a_shift_forgets_half_of_the_tokens_after_bos() -> None:
    with small() as model, model.session() as session:
        session.forward([BOS, 3, 4, 5, 6, 7, 8, 9])
        session.shift()
        assert session.tokens == [BOS, 7, 8, 9]
        assert session.forward([10]).tobytes() == fresh(model, [BOS, 7, 8, 9, 10]).tobytes()
        session.kept = 3
        session.shift()
        assert session.tokens == [BOS, 7, 8, 10]
        session.shift(21)
        assert session.tokens == [BOS, 7, 8]
        with pytest.raises(ContextError, match="no room for 22 tokens after the 3 that stay"):
            session.shift(22)


@pytest.mark.parametrize("n", [1, 3, 7, 22])
def test_a_session_that_shifts_takes_any_number_of_tokens(n: int) -> None:
    """Whatever happened before, it is a session of the tokens it has, to the bit."""
    rng = np.random.default_rng(n)
    with small() as model, model.session(overflow="shift") as session:
        session.forward([BOS])
        said = [BOS]
        for _ in range(0, 100, n):
            block = rng.integers(3, 300, n).tolist()
            logits = session.forward(block)
            said += block
            kept = session.tokens
            assert len(kept) <= 24
            assert kept[0] == BOS
            assert kept[1:] == said[len(said) - len(kept) + 1 :]
            assert logits.tobytes() == fresh(model, kept).tobytes()
            with session.fork() as fork:
                assert fork.overflow == "shift"


def test_more_tokens_than_the_context_are_an_error_in_any_case() -> None:
    with small() as model, model.session(overflow="shift") as session:
        session.forward([BOS, 5, 6])
        with pytest.raises(ContextError, match="no room for 24 tokens after the 1 that stay"):
            session.forward([7] * 24)
        assert session.tokens == [BOS, 5, 6]
        with pytest.raises(PromptError, match="out of the vocabulary"):
            session.forward([300] * 22)
        assert session.tokens == [BOS, 5, 6]


def test_a_session_raises_at_the_end_of_the_context_by_default() -> None:
    with small() as model, model.session() as session:
        session.forward([3] * 24)
        with pytest.raises(ContextError, match="no room for 1 token at position 24"):
            session.forward([3])
        with pytest.raises(ParameterError, match="expected 'error' or 'shift'"):
            model.session("stop")  # type: ignore[arg-type]


# ---- texts ----


def by_hand(model: Model, prompt: list[int], n: int) -> list[int]:
    """Greedy tokens beyond the context, each from a session of its own."""
    window, tokens = prompt.copy(), []
    for _ in range(n):
        tokens.append(int(np.argmax(fresh(model, window))))
        if len(window) == 24:
            window = [window[0], *window[1 + 12 :]]
        window.append(tokens[-1])
    return tokens


def test_a_text_continues_past_the_end_of_the_context() -> None:
    prompt = [BOS, 270, 33, 259]
    with small() as model:
        expected = by_hand(model, prompt, 80)
        options: Any = {"temperature": 0, "max_tokens": 80, "overflow": "shift", "stop_tokens": ()}
        result = model.generate(prompt, **options)
        assert (result.tokens, result.finish_reason) == (expected, "length")
        assert model.generate(prompt, **options).tokens == expected  # from a kept prefix
        many = model.generate([prompt, [BOS], prompt], max_batch=2, **options)
        assert [one.tokens for one in many] == [expected, by_hand(model, [BOS], 80), expected]
        assert len(model.generate(prompt, **(options | {"max_tokens": None})).tokens) == 24


def test_the_end_of_the_context_ends_a_text_by_default() -> None:
    with small() as model:
        policies: list[Any] = [{}, {"overflow": "stop"}]
        for options in policies:
            result = model.generate([BOS] * 20, stop_tokens=(), seed=1, **options)
            assert (len(result.tokens), result.finish_reason) == (5, "length")


def test_the_end_of_the_context_can_be_an_error() -> None:
    with small() as model:
        options: Any = {"stop_tokens": (), "seed": 1, "overflow": "error"}
        stream = model.stream([BOS] * 20, **options)
        with pytest.raises(ContextError, match="no room for 1 token at position 24"):
            for _ in stream:
                pass
        assert len(stream.tokens) == 5
        for prompt in ([BOS] * 20, [[BOS] * 20, [BOS]]):
            with pytest.raises(ContextError):
                model.generate(prompt, **options)
        assert model.generate([BOS] * 20, max_tokens=5, **options).finish_reason == "length"


@pytest.mark.parametrize("overflow", ["stop", "error", "shift"])
def test_a_prompt_that_does_not_fit_is_an_error(overflow: Any) -> None:
    with small() as model:
        with pytest.raises(ContextError, match="longer than the model's context of 24"):
            model.generate([BOS] * 25, overflow=overflow)
        assert model.generate([BOS] * 24, overflow=overflow, max_tokens=1).tokens


def test_an_unknown_overflow_is_an_error() -> None:
    with small() as model, pytest.raises(ParameterError, match="expected one of stop, error"):
        model.generate(overflow="wrap")  # type: ignore[call-overload]


# ---- dialogues ----


def chat_of(script: list[int], overflow: Any = "shift", seq_len: int = 64) -> tuple[Any, Chat]:
    backend = ScriptedBackend(script, 300, seq_len)
    model = Model(backend, tiny_tokenizer())
    return backend, Chat(model, system="s", template="zephyr", overflow=overflow)


def run_of(chat: Chat) -> list[int]:
    session: Session = chat.session
    return session.tokens


def test_the_oldest_exchanges_go_and_the_system_prompt_stays() -> None:
    """Templates are tested elsewhere: here a dialogue is one that never had the first turns."""
    answers = [[260, 261, EOS], [262, EOS], [263, EOS]]
    _, chat = chat_of([token for answer in answers for token in answer], seq_len=104)
    for user in ("a", "b"):
        chat.say(user).finish()
    before = chat.session.position
    assert before + 30 > 104
    chat.say("c").finish()

    _, other = chat_of([263, EOS], seq_len=200)
    other.say("c").finish()
    assert run_of(chat) == run_of(other)
    assert [m["content"] for m in chat.messages][1::2] == ["a", "b", "c"]


def test_a_long_answer_loses_its_older_tokens() -> None:
    _, chat = chat_of([*range(260, 300), *range(260, 300), EOS, 261, EOS], seq_len=72)
    _, prompt = chat_of([EOS])
    prompt.say("a").finish()
    answer = chat.say("a").finish()
    assert (len(answer.tokens), answer.finish_reason) == (72, "length")
    kept = run_of(chat)
    system = len(tiny_tokenizer().encode_parts(["<|system|>\ns", EOS])) + 1
    assert kept[:system] == run_of(prompt)[:system]
    assert kept[-3:] == answer.tokens[-4:-1]
    # That answer alone does not fit beside a next turn: the model has forgotten the exchange.
    answer_to_b = chat.say("b").finish()
    _, other = chat_of([261, EOS])
    other.say("b").finish()
    assert len(run_of(chat)) == len(run_of(other)) + len(answer_to_b.tokens) - 1


def test_a_chat_with_error_raises_at_the_end_of_the_context() -> None:
    backend, chat = chat_of([260, EOS], "error", 80)
    chat.say("a").finish()
    runs = len(backend.runs)
    with pytest.raises(ContextError, match="does not fit"):
        chat.say("b" * 60)
    assert len(backend.runs) == runs
    with pytest.raises(ParameterError, match="overflow is 'stop', expected one of trim"):
        Chat(tiny_model(), overflow="stop")  # type: ignore[arg-type]


def test_a_turn_longer_than_the_context_is_an_error_in_any_case() -> None:
    backend, chat = chat_of([260, EOS])
    with pytest.raises(ContextError, match="does not fit"):
        chat.say("b" * 60)
    assert backend.runs == []

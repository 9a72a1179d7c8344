"""Chat: the tokens that the model reads turn by turn, and how a dialogue ends."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from llama2py import ContextError, Model, ModelConfig, ParameterError, PromptError
from llama2py._data import bundled_tokenizer
from llama2py.chat.dialogue import Chat
from llama2py.engine.native import Engine
from llama2py.generation.sampling import Coin
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.tokenizer import BOS, EOS, Tokenizer
from tests.conftest import TINY, random_checkpoint, tiny_tokenizer
from tests.support.scripted import ScriptedBackend


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(bundled_tokenizer())


TWO: Any = {"max_tokens": 2}


def words(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of " text" in the middle of a text."""
    return tokenizer.encode(text, bos=False)


def render_turn(user: str) -> str:
    """A user's turn in the format of Llama 2."""
    return f"[INST] {user} [/INST]"


def test_two_turns_are_run_as_one_dialogue(tokenizer: Tokenizer) -> None:
    first, second = words(tokenizer, "Hello you"), words(tokenizer, "Bye")
    backend = ScriptedBackend([*first, EOS, *second, EOS], len(tokenizer))
    chat = Chat(Model(backend, tokenizer), system="Be kind.", seed=1)

    answer = chat.say("Hi").finish()
    assert (answer.text, answer.finish_reason) == (" Hello you", "stop")
    assert chat.say("Ciao").finish().text == " Bye"

    # The answer is part of the context. Its EOS was drawn but not run, so the next turn runs it.
    # Only the first turn has the system prompt; each turn begins with BOS.
    turn = tokenizer.encode("[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]")
    next_turn = tokenizer.encode("[INST] Ciao [/INST]")
    assert turn[0] == next_turn[0] == BOS
    dialogue = [*turn, *first, EOS, *next_turn, *second]
    assert backend.runs == list(enumerate(dialogue))


def test_only_generated_tokens_use_up_random_numbers(tokenizer: Tokenizer) -> None:
    """llama2.c also draws a number for every prompt token, and discards it."""
    backend = ScriptedBackend([300, 301, EOS, 302, EOS], len(tokenizer))
    chat = Chat(Model(backend, tokenizer), seed=7)
    chat.say("Hi").finish()
    chat.say("Hi again").finish()
    coin = Coin(7)
    assert backend.coins == [coin.flip() for _ in range(5)]


def test_an_answer_that_is_closed_early_stays_as_far_as_it_was_read(tokenizer: Tokenizer) -> None:
    backend = ScriptedBackend([300, 301, 302, EOS], len(tokenizer))
    chat = Chat(Model(backend, tokenizer))
    answer = chat.say("Hi")
    next(answer)
    next(answer)
    answer.close()
    chat.say("Stop").finish()
    heard, turn = tokenizer.encode("[INST] Hi [/INST]"), tokenizer.encode("[INST] Stop [/INST]")
    dialogue = [*heard, 300, 301, EOS, *turn, 302]
    assert backend.runs == list(enumerate(dialogue))


def test_a_turn_without_an_answer_is_forgotten(tokenizer: Tokenizer) -> None:
    backend = ScriptedBackend([300, EOS], len(tokenizer))
    chat = Chat(Model(backend, tokenizer))
    chat.say("Hi")
    chat.say("Hello").finish()
    assert backend.runs == list(enumerate([*tokenizer.encode("[INST] Hello [/INST]"), 300]))


def test_a_turn_that_does_not_fit_does_not_change_the_dialogue(tokenizer: Tokenizer) -> None:
    backend = ScriptedBackend([300, 301, EOS, 302, EOS], len(tokenizer), seq_len=64)
    chat = Chat(Model(backend, tokenizer))
    chat.say("Hi").finish()
    with pytest.raises(PromptError, match="does not fit"):
        chat.say("and so on " * 50)
    chat.say("never read")
    chat.say("Bye").finish()
    hi, bye = tokenizer.encode("[INST] Hi [/INST]"), tokenizer.encode("[INST] Bye [/INST]")
    assert backend.runs == list(enumerate([*hi, 300, 301, EOS, *bye, 302]))


def test_bos_does_not_end_an_answer(tokenizer: Tokenizer) -> None:
    backend = ScriptedBackend([300, BOS, 301, EOS], len(tokenizer))
    assert Chat(Model(backend, tokenizer)).say("Hi").finish().tokens == [300, BOS, 301]


def test_an_answer_ends_at_the_end_of_the_context(tokenizer: Tokenizer) -> None:
    backend = ScriptedBackend([300] * 100, len(tokenizer), seq_len=20)
    chat = Chat(Model(backend, tokenizer))
    turn = len(tokenizer.encode(render_turn("Hi")))
    answer = chat.say("Hi").finish()
    assert answer.finish_reason == "length"
    assert len(answer.tokens) == 20 - turn + 1  # the last token is not run, so it needs no room
    assert backend.runs[-1][0] == 19
    assert chat.room == 0


def test_max_tokens_limits_each_answer(tokenizer: Tokenizer) -> None:
    backend = ScriptedBackend([300] * 100, len(tokenizer))
    chat = Chat(Model(backend, tokenizer), max_tokens=5)
    lengths = [len(chat.say("Hi", **options).finish().tokens) for options in ({}, {}, TWO, {})]
    assert lengths == [5, 5, 2, 5]


def test_a_turn_longer_than_the_context_is_an_error(tokenizer: Tokenizer) -> None:
    backend = ScriptedBackend([300] * 100, len(tokenizer), seq_len=64)
    with Chat(Model(backend, tokenizer)) as chat:
        with pytest.raises(PromptError, match="does not fit"):
            chat.say("and so on " * 50).finish()
        assert backend.runs == []


def test_the_next_turn_cancels_an_unfinished_answer(tokenizer: Tokenizer) -> None:
    backend = ScriptedBackend([300, 301, 302, EOS], len(tokenizer))
    chat = Chat(Model(backend, tokenizer))
    first = chat.say("Hi")
    next(first)
    unread = chat.say("Hm")
    second = chat.say("Stop")
    assert list(first) == list(unread) == []
    assert (first.finish_reason, unread.finish_reason) == ("cancelled", "cancelled")
    second.finish()
    heard, turn = tokenizer.encode("[INST] Hi [/INST]"), tokenizer.encode("[INST] Stop [/INST]")
    assert backend.runs == list(enumerate([*heard, 300, EOS, *turn, 301, 302]))
    words = [tokenizer.decode(tokens).strip() for tokens in ([300], [301, 302])]
    assert chat.messages == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": words[0]},
        {"role": "user", "content": "Stop"},
        {"role": "assistant", "content": words[1]},
    ]


def test_a_turn_that_was_superseded_runs_nothing(tokenizer: Tokenizer) -> None:
    """Not even if there is no room for it any more."""
    backend = ScriptedBackend([300] * 40, len(tokenizer), seq_len=24)
    chat = Chat(Model(backend, tokenizer), seed=1)
    early = chat.say("Hi you all")
    chat.say("Hi").finish()
    ran = list(backend.runs)
    assert list(early) == []
    assert early.finish_reason == "cancelled"
    assert backend.runs == ran


def test_a_turn_that_does_not_fit_does_not_cancel_the_answer(tokenizer: Tokenizer) -> None:
    backend = ScriptedBackend([300, 301, EOS], len(tokenizer), seq_len=64)
    chat = Chat(Model(backend, tokenizer))
    answer = chat.say("Hi")
    next(answer)
    with pytest.raises(PromptError, match="does not fit"):
        chat.say("and so on " * 50)
    assert answer.finish().tokens == [300, 301]


def test_an_interrupted_turn_is_run_again(tokenizer: Tokenizer) -> None:
    """After Ctrl-C in a long turn, the next turn forgets the part that was run."""
    backend = ScriptedBackend([300, EOS], len(tokenizer))
    chat = Chat(Model(backend, tokenizer))
    chat.session.forward(tokenizer.encode("[INST] Hello")[:3])
    backend.runs.clear()
    backend._script = iter([300, EOS])
    chat.say("Bye").finish()
    tokens = tokenizer.encode("[INST] Bye [/INST]")
    assert backend.runs == list(enumerate([*tokens, 300]))[3:]


@pytest.mark.parametrize("overflow", ["trim", "error", "shift"])
@pytest.mark.parametrize("template", ["llama2", "zephyr", "plain"])
def test_an_answer_equals_that_of_the_same_tokens_run_afresh(template: str, overflow: Any) -> None:
    """Whatever the session kept, rewound or ran again."""
    config = ModelConfig(24, 44, 2, 4, 2, 300, 150, shared_classifier=False)
    with Model(Engine(random_checkpoint(config)), tiny_tokenizer()) as model:
        model.reuse_prefixes(0)
        chat = Chat(model, "s", temperature=0, template=template, overflow=overflow)
        n_answers = 0
        for user in ("ab", "a longer one", "c d", "e f g"):
            try:
                answer = chat.say(user)
            except ContextError:
                assert overflow == "error"
                break
            while len(answer.tokens) < 8 and next(answer, None) is not None:
                pass
            tokens = chat.session.tokens
            before = tokens[: len(tokens) - len(answer.tokens) + 1]
            ends: Any = {"temperature": 0, "stop_tokens": (), "max_tokens": len(answer.tokens)}
            assert answer.tokens == model.generate(before, **ends).tokens
            n_answers += 1
        assert n_answers >= 2 if overflow == "error" else n_answers == 4
        assert len(chat.messages) == 1 + 2 * n_answers


def test_chat_has_a_useful_repr(tokenizer: Tokenizer) -> None:
    chat = Chat(Model(ScriptedBackend([300, EOS], len(tokenizer), seq_len=60), tokenizer))
    assert repr(chat) == "<Chat llama2, 0 turns, room for 60 tokens>"
    turn = len(tokenizer.encode(render_turn("Hi")))
    chat.say("Hi").finish()
    assert repr(chat) == f"<Chat llama2, 1 turn, room for {60 - turn - 1} tokens>"
    chat.close()
    assert repr(chat) == "<Chat llama2, 1 turn (closed)>"


@pytest.mark.parametrize("wrong", [5.0, -1, "9"])
def test_max_tokens_must_be_a_whole_number(tokenizer: Tokenizer, wrong: Any) -> None:
    model = Model(ScriptedBackend([], len(tokenizer)), tokenizer)
    with pytest.raises(ParameterError, match=r"max_tokens is .*, expected a whole number"):
        Chat(model, max_tokens=wrong)


def test_stop_strings_end_an_answer(tokenizer: Tokenizer) -> None:
    script = [*words(tokenizer, "Hello you friend"), EOS]
    backend = ScriptedBackend(script, len(tokenizer))
    answer = Chat(Model(backend, tokenizer), stop=" fri").say("Hi").finish()
    assert (answer.text, answer.stopped_by) == (" Hello you", " fri")


def test_a_chat_takes_the_sampling_options_of_generate() -> None:
    with Model(Engine(random_checkpoint(TINY)), tiny_tokenizer()) as model:

        def answer(**options: Any) -> list[int]:
            with Chat(model, template="plain", seed=1, max_tokens=40, **options) as chat:
                return chat.say("ab").finish().tokens

        plain, greedy = answer(), answer(temperature=0)
        assert plain != greedy
        assert answer(top_k=1) == answer(min_p=1) == greedy
        assert not {*plain[:3]} & {*answer(banned_tokens=plain[:3])}


def test_an_unknown_option_of_a_chat_is_an_error(tokenizer: Tokenizer) -> None:
    model = Model(ScriptedBackend([], len(tokenizer)), tokenizer)
    wrong: Any = {"max_new_tokens": 9}
    with pytest.raises(
        ParameterError, match="unknown option 'max_new_tokens': did you mean 'max_tokens'"
    ):
        Chat(model, **wrong)
    with pytest.raises(ParameterError, match="stop string is empty"):
        Chat(model, stop=["a", ""])


@pytest.mark.parametrize("message", [None, 5, b"Hi", ["Hi"]])
def test_a_message_must_be_a_str(tokenizer: Tokenizer, message: Any) -> None:
    chat = Chat(Model(ScriptedBackend([300, EOS], len(tokenizer)), tokenizer))
    with pytest.raises(PromptError, match=f"the message is {type(message).__name__}, expected str"):
        chat.say(message)
    if message is not None:
        chat.system = message
        with pytest.raises(PromptError, match=r"the content of message 0 is .*, expected str"):
            chat.say("Hi")


# ---- a backend that draws ahead ----


def dialogue(model: Model, seed: int, overflow: Any) -> list[Any]:
    """Record six answers, some read to their end and some only in part."""
    facts: list[Any] = []
    with Chat(model, temperature=1.5, seed=seed, template="plain", overflow=overflow) as chat:
        for n in range(6):
            if overflow == "error" and chat.room < 25:
                break
            stream = chat.say("ab"[n % 2])
            if (seed + n) % 3 == 0:
                facts.append("".join(stream))
            else:
                facts.append("".join(islice(stream, (5 * seed + 7 * n) % 12)))
            facts += [stream.tokens, stream.finish_reason, chat.room, chat.messages]
        facts.append(chat.session.tokens)
        facts.append(chat._sampler.draws(3))
    return facts


@pytest.mark.parametrize("overflow", ["trim", "error", "shift"])
def test_a_chat_does_not_depend_on_how_far_the_backend_draws_ahead(
    overflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, seq_len=160)
    with Model(Engine(random_checkpoint(config)), tiny_tokenizer()) as model:
        expected = [dialogue(model, seed, overflow) for seed in range(12)]
        assert sum(len(facts) > 7 for facts in expected) > 6
        for ahead in (1, 2, 7):
            monkeypatch.setattr(model.backend, "ahead", ahead)
            assert [dialogue(model, seed, overflow) for seed in range(12)] == expected

"""Chat: the tokens that the model reads turn by turn, and how a dialogue ends."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from llama2py import (
    ContextError,
    Llama2pyError,
    Model,
    ModelConfig,
    ParameterError,
    PromptError,
    SessionError,
)
from llama2py._data import bundled_tokenizer
from llama2py.chat.dialogue import Chat
from llama2py.engine.native import Engine
from llama2py.generation.sampling import Coin
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.tokenizer import BOS, EOS, Tokenizer
from tests.conftest import TINY, random_checkpoint, tiny_tokenizer
from tests.support.scripted import ScriptedBackend
from tests.support.scripted_dialogues import ids, vocabulary


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(bundled_tokenizer())


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
    turns: list[Any] = [{}, {}, {"max_tokens": 2}, {}]
    lengths = [len(chat.say("Hi", **options).finish().tokens) for options in turns]
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


@pytest.mark.parametrize("message", [5, b"Hi", ["Hi"]])
def test_a_message_must_be_a_str(tokenizer: Tokenizer, message: Any) -> None:
    chat = Chat(Model(ScriptedBackend([300, EOS], len(tokenizer)), tokenizer))
    with pytest.raises(PromptError, match=f"the message is {type(message).__name__}, expected str"):
        chat.say(message)
    chat.system = message
    with pytest.raises(PromptError, match=r"the content of message 0 is .*, expected str"):
        chat.say("Hi")


# ---- a backend that draws ahead ----


def dialogue(model: Model, seed: int, overflow: Any) -> list[Any]:
    """Record six answers, some read to their end and some only in part."""
    facts: list[Any] = []
    with Chat(model, temperature=1.5, seed=seed, template="plain", overflow=overflow) as chat:
        for n in range(6):
            try:
                stream = chat.say("ab"[n % 2])
            except ContextError:
                break
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


# ---- messages ----


def ran(backend: ScriptedBackend) -> list[int]:
    """The last token that was run at each position."""
    return [token for _, token in sorted(dict(backend.runs).items())]


def chatml(script: list[int], seq_len: int = 1000, **options: Any) -> tuple[ScriptedBackend, Chat]:
    tokenizer = vocabulary("chatml")
    backend = ScriptedBackend(script, len(tokenizer), seq_len)
    return backend, Chat(Model(backend, tokenizer), template="chatml", seed=1, **options)


END = 257  # <|im_end|>
HELLO, FINE = [*b"Hello.", END], [*b"Fine", END]


def spelled(text: str) -> list[int]:
    return ids(vocabulary("chatml"), text)


def test_a_dialogue_may_begin_with_messages() -> None:
    history: Any = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
    ]
    backend, chat = chatml(FINE, messages=history)
    assert chat.system == "Be kind."
    assert chat.say("Bye").finish().text == "Fine"
    assert ran(backend) == spelled(
        "⟨<|im_start|>⟩system\nBe kind.⟨<|im_end|>⟩\n⟨<|im_start|>⟩user\nHi⟨<|im_end|>⟩\n"
        "⟨<|im_start|>⟩assistant\nHello.⟨<|im_end|>⟩\n⟨<|im_start|>⟩user\nBye⟨<|im_end|>⟩\n"
        "⟨<|im_start|>⟩assistant\nFine"
    )
    assert [m["content"] for m in chat.messages] == ["Be kind.", "Hi", "Hello.", "Bye", "Fine"]
    assert len(history) == 3  # a copy was taken


def test_the_next_turn_reads_messages_that_were_changed() -> None:
    backend, chat = chatml(HELLO + FINE + FINE + FINE)
    chat.say("Hi").finish()
    chat.messages[-1]["content"] = "Changed!"
    chat.messages[0]["content"] = "Ho"
    chat.say("Bye").finish()
    turn = "⟨<|im_start|>⟩user\n{}⟨<|im_end|>⟩\n⟨<|im_start|>⟩assistant\n"
    assert ran(backend) == spelled(
        turn.format("Ho") + "Changed!⟨<|im_end|>⟩\n" + turn.format("Bye") + "Fine"
    )
    del chat.messages[2:]
    chat.messages.append({"role": "user", "content": "Again"})
    chat.say().finish()
    session = chat.session.tokens
    assert session == spelled(
        turn.format("Ho") + "Changed!⟨<|im_end|>⟩\n" + turn.format("Again") + "Fine"
    )
    chat.messages = [{"role": "user", "content": "New"}]
    chat.say().finish()
    assert chat.session.tokens == spelled(turn.format("New") + "Fine")
    assert [m["role"] for m in chat.messages] == ["user", "assistant"]


def test_an_answer_that_the_user_deleted_does_not_come_back() -> None:
    _, chat = chatml(HELLO + FINE)
    stream = chat.say("Hi")
    next(stream)
    del chat.messages[:]
    stream.finish()
    assert chat.messages == []
    chat.say("Bye").finish()
    assert [m["content"] for m in chat.messages] == ["Bye", "Fine"]


def test_a_dialogue_that_grows_runs_only_its_new_tokens() -> None:
    """Every position is run once, whatever the answers: they stay the tokens that were drawn."""
    answers = [[*b"Hello.", END], [*b" ", *b"Fine ", END], [*"é".encode(), END], [END], [65, END]]
    backend, chat = chatml([token for answer in answers for token in answer])
    for turn in "abcde":
        chat.say(turn).finish()
    assert [position for position, _ in backend.runs] == list(range(len(backend.runs)))
    assert [m["content"] for m in chat.messages[1::2]] == ["Hello.", "Fine", "é", "", "A"]


def test_a_changed_turn_runs_again_only_what_follows_it() -> None:
    backend, chat = chatml(HELLO + FINE + FINE)
    chat.say("Hi").finish()
    chat.say("Bye").finish()
    n = len(backend.runs)
    chat.messages[2]["content"] = "Say"
    chat.say("Now").finish()
    first = spelled(
        "⟨<|im_start|>⟩user\nHi⟨<|im_end|>⟩\n⟨<|im_start|>⟩assistant\nHello.⟨<|im_end|>⟩\n"
        "⟨<|im_start|>⟩user\n"
    )
    assert backend.runs[n][0] == len(first)


def test_a_prefilled_answer_is_continued() -> None:
    backend, chat = chatml([*b" blue.", END, *FINE])
    chat.messages += [
        {"role": "user", "content": "Which colour?"},
        {"role": "assistant", "content": "The sky is"},
    ]
    assert chat.say().finish().text == " blue."
    assert chat.messages[-1] == {"role": "assistant", "content": "The sky is blue."}
    chat.say("Thanks").finish()
    assert ran(backend) == spelled(
        "⟨<|im_start|>⟩user\nWhich colour?⟨<|im_end|>⟩\n"
        "⟨<|im_start|>⟩assistant\nThe sky is blue.⟨<|im_end|>⟩\n"
        "⟨<|im_start|>⟩user\nThanks⟨<|im_end|>⟩\n⟨<|im_start|>⟩assistant\nFine"
    )
    assert [position for position, _ in backend.runs] == list(range(len(backend.runs)))


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ("Hi", "messages is 'Hi', expected a list of messages"),
        ([5], "message 0 is int, expected"),
        ([{"role": "user"}], "the content of message 0 is missing, expected str"),
        ([{"role": "user", "content": "a"}, {"role": 1, "content": "b"}], "the role of message 1"),
    ],
)
def test_malformed_messages_are_errors(messages: Any, error: str) -> None:
    with pytest.raises((PromptError, ParameterError), match=error):
        chatml([], messages=messages)


def test_a_dialogue_without_a_message_to_answer_is_an_error() -> None:
    for messages in ([], [{"role": "system", "content": "Be."}]):
        _, chat = chatml([], messages=messages)
        with pytest.raises(PromptError, match="the dialogue has no message to answer"):
            chat.say()


def test_options_of_a_turn_hold_for_that_turn() -> None:
    _, chat = chatml([*b"Hell", *b"Hello", END, 65], stop="zz", temperature=0)
    assert chat.say("Hi", stop="ll", logprobs=1).finish().text == "He"
    answer = chat.say("Hi").finish()
    assert (answer.text, answer.logprobs) == ("Hello", None)
    assert chat.say("Hi", max_tokens=0).finish().finish_reason == "length"


def test_a_seed_of_a_turn_restarts_the_random_numbers() -> None:
    with Model(Engine(random_checkpoint(TINY)), tiny_tokenizer()) as model:

        def answers(seed: int, again: int | None) -> list[list[int]]:
            chat = Chat(model, template="plain", seed=seed, max_tokens=8, temperature=1.5)
            return [chat.say("a").finish().tokens, chat.say("b", seed=again).finish().tokens]

        assert answers(3, None) == answers(3, None)
        assert answers(3, 5) == answers(3, 5) != answers(3, None)


def test_the_default_policy_leaves_out_the_oldest_exchanges() -> None:
    """What remains is the system prompt and the newest exchanges, with half of the context free."""
    script = [token for i in range(60) for token in [*b"Yes %02d" % i, END]]
    backend, chat = chatml(script, 700, system="Be kind.")
    for i in range(60):
        answer = chat.say(f"Turn {i:02}").finish()
        assert answer.text == f"Yes {i:02}"
        tokens = chat.session.tokens
        assert len(tokens) <= 700
        start = spelled("⟨<|im_start|>⟩system\nBe kind.⟨<|im_end|>⟩\n⟨<|im_start|>⟩user\nTurn ")
        assert tokens[: len(start)] == start
    # Few turns run what is left of the dialogue again; most run their own 34 tokens.
    assert len(backend.runs) < 60 * 34 * 3
    assert len(chat.messages) == 121


def test_a_dialogue_that_does_not_fit_without_its_history_is_an_error() -> None:
    _, chat = chatml(HELLO * 5, 60)
    chat.say("Hi").finish()
    with pytest.raises(ContextError, match="does not fit"):
        chat.say("x" * 60)
    assert len(chat.messages) == 2


# ---- files ----


def test_a_saved_dialogue_goes_on_bit_for_bit(tmp_path: Path) -> None:
    with Model(Engine(random_checkpoint(replace(TINY, seq_len=300))), tiny_tokenizer()) as model:
        options: Any = {"temperature": 1.5, "max_tokens": 9, "top_k": 50}

        def begun() -> Chat:
            chat = Chat(model, "Be.", template="zephyr", seed=7, stop=["zzz"], **options)
            for user in "ab":
                chat.say(user).finish()
            return chat

        chat = begun()
        chat.save(tmp_path / "chat.json")
        loaded = Chat.load(tmp_path / "chat.json", model)
        assert loaded.messages == chat.messages
        assert loaded.template == "zephyr"
        for user in "cd":
            assert loaded.say(user).finish().tokens == chat.say(user).finish().tokens
        assert loaded.messages == chat.messages
        assert loaded.session.tokens == chat.session.tokens
        other = Chat.load(tmp_path / "chat.json", model, seed=8, max_tokens=4)
        assert len(other.say("c").finish().tokens) <= 4


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format": "x"}, "not a dialogue that llama2py has saved"),
        ({"messages": 5}, "messages is missing or malformed"),
        ({"messages": [{"role": "user"}], "answers": []}, "the content of message 0 is missing"),
        ({"answers": [[9, "a", "b"]]}, "malformed"),
        ({"answers": [[0, 1, "b"]]}, "malformed"),
        ({"tokens": ["x"]}, "malformed"),
        ({"settings": {"model": 1}}, "malformed"),
        ({"coins": [0]}, "the state of the random numbers is malformed"),
        ({"coins": [1, 2.0]}, "the state of the random numbers is malformed"),
        ({"options": {"temperature": "hot"}}, "temperature is 'hot'"),
        ({"options": {"nothing": 1}}, "unknown option 'nothing'"),
    ],
)
def test_a_malformed_saved_dialogue_is_an_error(
    change: dict[str, Any], error: str, tmp_path: Path
) -> None:
    _, chat = chatml(HELLO)
    chat.say("Hi").finish()
    path = tmp_path / "chat.json"
    chat.save(path)
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(Llama2pyError, match=error):
        Chat.load(path, chat._model)
    path.write_text("[]")
    with pytest.raises(SessionError, match=r"chat\.json: the JSON is not an object"):
        Chat.load(path, chat._model)


def test_tokens_of_another_vocabulary_in_a_saved_dialogue_are_not_used(tmp_path: Path) -> None:
    _, chat = chatml(HELLO)
    chat.say("Hi").finish()
    path = tmp_path / "chat.json"
    chat.save(path)
    saved = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(saved | {"tokens": [5000, -1]}), "utf-8")
    backend, other = chatml(FINE)
    loaded = Chat.load(path, other._model)
    loaded.say("Bye").finish()
    assert max(token for _, token in backend.runs) < 300


# ---- sessions and asyncio ----


def test_a_chat_continues_a_session() -> None:
    backend, chat = chatml(HELLO + FINE + FINE)
    chat.say("Hi").finish()
    with chat.session.fork() as session:
        n = len(backend.runs)
        other = Chat(chat._model, messages=chat.messages, template="chatml", session=session)
        other.say("Bye").finish()
        # All but the last answer's last token and its end had been run.
        assert backend.runs[n][0] == chat.session.position
        other.close()
        assert session.position > 0  # it belongs to its maker
    with (
        Model(ScriptedBackend([], 300), tiny_tokenizer()) as model,
        pytest.raises(ParameterError, match="the session belongs to another model"),
    ):
        Chat(model, session=chat.session)


def test_an_answer_can_be_awaited_or_read_piece_by_piece() -> None:
    async def talk() -> None:
        _, chat = chatml(HELLO + FINE + HELLO)
        assert (await chat.asay("Hi")).text == "Hello."
        stream = chat.asay("How?")
        assert "".join([piece async for piece in stream]) == "Fine"
        assert (stream.text, stream.finish_reason, stream.seed) == ("Fine", "stop", 1)
        assert (stream.tokens, stream.stopped_by) == ([*b"Fine"], END)
        with pytest.raises(PromptError, match="expected str"):
            chat.asay(5)  # type: ignore[arg-type]
        assert chat.messages[-1]["content"] == "Fine"

    asyncio.run(talk())


def test_a_cancelled_answer_stays_as_far_as_it_came() -> None:
    async def talk() -> None:
        _, chat = chatml([65] * 500 + FINE, temperature=0)

        def slow(tokens: Any, logits: Any) -> Any:
            sleep(0.01)
            return logits

        stream = chat.asay("Hi", logits_processor=slow)
        task = asyncio.ensure_future(stream.finish())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        n = len(stream.tokens)
        assert 0 < n < 500
        assert chat.messages[-1]["content"] == "A" * n
        assert stream.finish_reason == "cancelled"
        next(chat.say("Go on"))  # the session is free

    asyncio.run(talk())

"""What a model can be asked: many texts at once, log-probabilities, scores, an async stream."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest

from llama2py import (
    Generation,
    Llama2pyError,
    Model,
    ParameterError,
    PromptError,
    Session,
    load,
)
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import tiny_model, tiny_tokenizer
from tests.generation.test_logprobs import log_softmax
from tests.support.scripted import ScriptedBackend


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with tiny_model() as model:
        yield model


def facts(g: Generation) -> tuple[Any, ...]:
    """All but the timings."""
    return (
        g.text,
        g.tokens,
        g.prompt_tokens,
        g.finish_reason,
        g.seed,
        g.stopped_by,
        g.logprobs,
    )


def prompts(n: int) -> list[str]:
    return [["", "a", "abc abc", "Ein 🐶", "b" * 30, "c" * 62][i % 6] for i in range(n)]


# ---- many ----

OPTIONS: list[dict[str, Any]] = [
    {},
    {"top_k": 20, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
    {"stop": ["a", "b c"], "stop_tokens": (1, 2)},
    {"max_tokens": 7, "temperature": 0.0, "banned_tokens": [5, 270]},
]


@pytest.mark.parametrize("max_batch", [1, 5, 32])
@pytest.mark.parametrize("options", OPTIONS)
def test_each_text_of_a_list_is_what_it_is_alone(
    model: Model, options: dict[str, Any], max_batch: int
) -> None:
    """Token for token, log-probability for log-probability."""
    seeds = [7 * i for i in range(40)]
    many = model.generate(prompts(40), seed=seeds, logprobs=3, max_batch=max_batch, **options)
    alone = [
        model.generate(prompt, seed=seed, logprobs=3, **options)
        for prompt, seed in zip(prompts(40), seeds, strict=True)
    ]
    assert [facts(g) for g in many] == [facts(g) for g in alone]
    assert len({g.text for g in many}) > 5


def test_prompts_may_be_tokens_and_seeds_one_or_none(model: Model) -> None:
    tokens = [model.tokenizer.encode(text) for text in ("a", "abc")]
    same = model.generate(tokens, seed=3)
    assert [facts(g) for g in same] == [facts(model.generate(t, seed=3)) for t in ("a", "abc")]
    assert [facts(g) for g in model.generate(np.array([[1, 5], [1, 6]]), seed=3)] == [  # type: ignore[call-overload]
        facts(model.generate([1, t], seed=3)) for t in (5, 6)
    ]
    fresh = model.generate(["a", "a"])
    assert fresh[0].seed != fresh[1].seed
    assert model.generate(["", "a"], seed=1)[0].prompt_tokens == [BOS]


def test_a_list_of_seeds_must_have_one_for_each_prompt(model: Model) -> None:
    with pytest.raises(ParameterError, match="2 seeds for 3 prompts"):
        model.generate(["a", "b", "c"], seed=[1, 2])


def test_a_bad_prompt_among_many_is_an_error_at_once(model: Model) -> None:
    with pytest.raises(PromptError, match="longer than"):
        model.generate(["a", "b" * 80])
    with pytest.raises(ParameterError, match="max_batch is 0"):
        model.generate(["a"], max_batch=0)


def test_generate_many_takes_endless_prompts_in_order(model: Model) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for taken in count(1):
            yield prompts(6)[taken % 6]

    texts = model.generate_many(endless(), seed=count(), max_batch=4, max_tokens=9)
    assert taken == 0
    first = list(islice(texts, 10))
    assert taken <= 10 + 4 + 4
    for i, g in enumerate(first):
        alone = model.generate(prompts(6)[(i + 1) % 6], seed=i, max_tokens=9)
        assert facts(g) == facts(alone)


def test_generate_many_shows_its_progress(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    assert len(list(model.generate_many(["a"] * 3, max_tokens=2, progress=True))) == 3
    assert "3/3" in capsys.readouterr().err
    assert threading.active_count() == before  # tqdm would leave one of its own
    list(model.generate_many(["a"], max_tokens=2))
    assert capsys.readouterr().err == ""


# ---- scores ----


def test_score_and_perplexity_equal_the_textbook(model: Model) -> None:
    tokens = model.tokenizer.encode("abc de")
    with model.session() as session:
        rows = session.forward(tokens, all_logits=True)
    expected = [log_softmax(row)[token] for row, token in zip(rows, tokens[1:], strict=False)]
    assert list(model.score("abc de")) == pytest.approx(expected, abs=1e-5)
    assert list(model.score(tokens)) == list(model.score("abc de"))
    assert model.perplexity("abc de") == pytest.approx(math.exp(-sum(expected) / len(expected)))
    assert model.score([BOS]).shape == (0,)
    assert len(model.score("a" * 500)) > 64  # longer than the context


def test_texts_that_cannot_be_scored_are_errors(model: Model) -> None:
    with pytest.raises(PromptError, match="perplexity needs at least two tokens"):
        model.perplexity("")
    with pytest.raises(PromptError, match="no tokens"):
        model.score([])
    with pytest.raises(PromptError, match="token 300 is out"):
        model.score([BOS, 300])


# ---- async ----


def test_astream_is_the_stream(model: Model) -> None:
    async def tell(seed: int) -> list[str]:
        return [piece async for piece in model.astream("ab", seed=seed, max_tokens=20)]

    async def all_of_them() -> list[list[str]]:
        return await asyncio.gather(*(tell(seed) for seed in range(4)))

    expected = [list(model.stream("ab", seed=seed, max_tokens=20)) for seed in range(4)]
    assert asyncio.run(all_of_them()) == expected


def test_an_abandoned_astream_frees_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(ScriptedBackend([260] * 50, 300), tiny_tokenizer())
    made: list[Session] = []
    take = model.prefix_cache.take

    def taken(tokens: list[int]) -> tuple[Session, int]:
        session, n = take(tokens)
        made.append(session)
        return session, n

    monkeypatch.setattr(model.prefix_cache, "take", taken)

    async def some() -> None:
        pieces = model.astream([BOS])
        assert await anext(pieces) == "a"
        await pieces.aclose()

    asyncio.run(some())
    with pytest.raises(Exception, match="session is closed"):
        made[0].forward([1])


def test_astream_checks_before_the_first_piece_and_says_what_stream_says(model: Model) -> None:
    with pytest.raises(ParameterError, match="temperature is -1"):
        model.astream("ab", temperature=-1)
    with pytest.raises(PromptError, match="no tokens"):
        model.astream([])

    async def tell() -> None:
        expected = model.stream("ab", seed=3, max_tokens=9, logprobs=1)
        text = "".join(expected)
        async with model.astream("ab", seed=3, max_tokens=9, logprobs=1) as stream:
            assert (stream.finish_reason, stream.tokens) == (None, [])
            assert "".join([piece async for piece in stream]) == stream.text == text
        assert (stream.finish_reason, stream.seed) == ("length", 3)
        assert (stream.tokens, stream.logprobs) == (expected.tokens, expected.logprobs)
        assert stream.prompt_tokens == expected.prompt_tokens
        assert stream.timings.generated_tokens == 9
        stopped = await model.astream("ab", seed=3, stop=text[3])
        assert stopped.stopped_by == text[3]

    asyncio.run(tell())


def test_agenerate_is_generate(model: Model) -> None:
    async def tell() -> None:
        one = await model.agenerate("ab", seed=3, max_tokens=9)
        assert facts(one) == facts(model.generate("ab", seed=3, max_tokens=9))
        many = await model.agenerate(prompts(6), seed=3, max_tokens=9, max_batch=2)
        expected = model.generate(prompts(6), seed=3, max_tokens=9)
        assert [*map(facts, many)] == [*map(facts, expected)]
        both = await asyncio.gather(*(model.agenerate("a", seed=n, max_tokens=9) for n in (1, 2)))
        expected = [model.generate("a", seed=n, max_tokens=9) for n in (1, 2)]
        assert [*map(facts, both)] == [*map(facts, expected)]
        with pytest.raises(ParameterError, match="temperature is -1"):
            await model.agenerate("ab", temperature=-1)

    asyncio.run(tell())


@pytest.mark.parametrize("prompt", ["ab", ["ab", "c"]])
def test_a_cancelled_agenerate_ends_its_texts(prompt: Any, model: Model) -> None:
    seen: list[int] = []

    def slow(tokens: list[int], logits: Any) -> Any:
        seen.append(len(tokens))
        sleep(0.01)
        return logits

    async def tell() -> None:
        own = threading.Event()
        how: Any = {"logits_processor": slow, "stop_tokens": (), "cancel": own}
        task = asyncio.ensure_future(
            model.agenerate(prompt, max_tokens=10**6, overflow="shift", **how)
        )
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        n = len(seen)
        await asyncio.sleep(0.1)
        assert 0 < n == len(seen)  # the thread has ended
        assert not own.is_set()
        own.set()
        ended = await model.agenerate("ab", cancel=own)
        assert ended.finish_reason == "cancelled"

    asyncio.run(tell())


# ---- sessions ----


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 0.0, "top_k": 5}])
def test_a_session_is_continued_where_it_is(options: dict[str, Any], model: Model) -> None:
    how: Any = {**options, "stop_tokens": ()}
    whole = model.generate("ab", 30, **how)
    with model.session() as session:
        parts = [model.generate("ab", 10, session=session, **how)]
        parts += [model.generate("", 10, session=session, **how) for _ in range(2)]
        assert [token for part in parts for token in part.tokens] == whole.tokens
        assert session.tokens == whole.prompt_tokens + whole.tokens
        assert parts[1].prompt_tokens == session.tokens[: len(parts[1].prompt_tokens)]


def test_a_prompt_is_read_after_a_session_s_tokens(model: Model, tmp_path: Path) -> None:
    with model.session() as session:
        session.forward(model.tokenizer.encode("abc"))
        session.save(tmp_path / "x.session")
    tokens = [*model.tokenizer.encode("abc"), *model.tokenizer.encode("de", bos=False)]
    expected = model.generate(tokens, 8, seed=1)
    with model.load_session(tmp_path / "x.session") as session:
        with model.stream("de", 8, seed=1, session=session) as stream:
            assert "".join(stream) == expected.text
        n = len(tokens) + len(expected.tokens)
        assert session.position == n
        session.rewind(len(tokens) - 2)
        assert model.generate(tokens[-2:], 8, seed=1, session=session).tokens == expected.tokens


def test_a_text_that_its_stop_token_ended_leaves_no_token_to_run() -> None:
    model = Model(ScriptedBackend([260, 261, BOS, 262, 263], 300), tiny_tokenizer())
    with model.session() as session:
        model.generate([BOS, 5], session=session)
        assert session.tokens == [BOS, 5, 260, 261]
        model.generate([6], 1, session=session)
        assert session.tokens == [BOS, 5, 260, 261, 6, 262]


def test_a_session_that_cannot_be_continued_is_an_error(model: Model) -> None:
    with model.session() as session:
        with pytest.raises(ParameterError, match="a session continues one prompt"):
            model.generate(["a", "b"], session=session)
        with pytest.raises(ParameterError, match="session is 5, expected a Session"):
            model.generate("a", session=5)  # type: ignore[call-overload]
        with tiny_model() as other, pytest.raises(ParameterError, match="belongs to another model"):
            other.generate("a", session=session)
        with pytest.raises(PromptError, match="longer than"):
            model.generate([5] * 1000, session=session)
        assert session.position == 0


# ---- what is easily got wrong ----


def test_an_iterator_of_tokens_loses_none(model: Model) -> None:
    one = model.generate(iter([1, 5, 6]), seed=1)  # type: ignore[call-overload]
    assert one.prompt_tokens == [1, 5, 6]
    many = model.generate(iter([[1, 5], [1, 6]]), seed=1)  # type: ignore[call-overload]
    assert [g.prompt_tokens for g in many] == [[1, 5], [1, 6]]


def test_seeds_that_run_out_are_an_error(model: Model) -> None:
    """They would end the texts without a word."""
    texts = model.generate_many(["a"] * 3, seed=iter([1, 2]), max_batch=1, max_tokens=2)
    with pytest.raises(ParameterError, match="only 2 seeds"):
        list(texts)


def test_text_held_back_is_shown_when_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The " a" may be the beginning of the stop string, until nothing more comes."""
    cancel = threading.Event()
    model = Model(ScriptedBackend([260, 260, 259, 260, 260], 300), tiny_tokenizer())
    stream = model.stream([BOS], stop=" ab", cancel=cancel)
    first = next(stream)
    cancel.set()
    assert first + "".join(stream) == model.tokenizer.decode([BOS, *stream.tokens])
    assert stream.finish_reason == "cancelled"
    texts = []
    for at in range(1, 5):
        cancel = threading.Event()
        backend = ScriptedBackend([260, 260, 259, 260, 260], 300)
        stream = Model(backend, tiny_tokenizer()).stream([BOS], stop=" ab", cancel=cancel)
        monkeypatch.setattr(backend, "run", _setting(backend.run, cancel, at))
        texts.append("".join(stream))
        assert texts[-1] == stream._tokenizer.decode([BOS, *stream.tokens])
    assert len(set(texts)) > 2


def _setting(run: Any, cancel: threading.Event, calls: int) -> Any:
    """A `run` that sets the flag after this many calls."""
    left = calls

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            cancel.set()
        return run(*args, **kwargs)

    return counting


# ---- wrong arguments, and what a value looks like ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": 5}, "path is 5, expected a str or a path"),
        ({"path": b"model.bin"}, "path is b'model.bin', expected a str or a path"),
        ({"path": "a\0b"}, "path is .*, expected a path without null characters"),
        ({"tokenizer": 5}, "tokenizer is 5, expected a str or a path"),
        ({"tokenizer": "a\0b"}, "tokenizer is .*, expected a path without null characters"),
        ({"threads": 0}, "threads is 0, expected a whole number from 1 to 256"),
        ({"threads": 2.0}, "threads is 2.0, expected a whole number from 1 to 256"),
        ({"threads": "2"}, "threads is '2', expected a whole number from 1 to 256"),
        ({"backend": "C"}, "backend is 'C', expected 'c' or 'numpy'"),
        ({"backend": None}, "backend is None, expected 'c' or 'numpy'"),
        ({"dtype": 8}, "dtype is 8, expected one of float32, bfloat16, int8, int4"),
        ({"cache_dtype": []}, r"cache_dtype is \[\], expected 'float32' or 'bfloat16'"),
        ({"progress": 5}, "progress is 5, expected a function or None"),
    ],
    ids=str,
)
def test_load_refuses_a_wrong_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=f"^{message}"):
        load(**arguments)


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_methods_refuse_a_wrong_argument(backend: Any) -> None:
    with tiny_model(backend) as model, model.session() as session:
        session.forward([BOS, 5, 6])
        calls: list[tuple[Callable[[], object], str]] = [
            (lambda: model.session(5), "overflow is 5, expected 'error' or 'shift'"),  # type: ignore[arg-type]
            (lambda: model.load_session(5), "path is 5, expected a str or a path"),  # type: ignore[arg-type]
            (lambda: model.reuse_prefixes(1.5), "max_bytes is 1.5, expected a whole number"),  # type: ignore[arg-type]
            (lambda: session.forward(None), "tokens is None, expected a sequence of token ids"),  # type: ignore[arg-type]
            (lambda: session.forward(5), "tokens is 5, expected a sequence of token ids"),  # type: ignore[arg-type]
            (lambda: session.forward([5], interrupted=5), "interrupted is 5, expected a function"),  # type: ignore[arg-type]
            (lambda: session.rewind("a"), "position is 'a', expected a whole number from 0 to 3"),  # type: ignore[arg-type]
            (lambda: session.fork(1.5), "position is 1.5, expected a whole number from 0 to 3"),  # type: ignore[arg-type]
            (lambda: session.shift("a"), "n_tokens is 'a', expected a whole number from 0 up"),  # type: ignore[arg-type]
            (lambda: session.shift(-1), "n_tokens is -1, expected a whole number from 0 up"),
            (lambda: session.save(5), "path is 5, expected a str or a path"),  # type: ignore[arg-type]
        ]
        for call, message in calls:
            with pytest.raises(Llama2pyError, match=f"^{message}"):
                call()
        session.kept = -1
        with pytest.raises(ParameterError, match="kept is -1, expected a whole number from 0 up"):
            session.shift()
        assert session.tokens == [BOS, 5, 6]


def test_values_describe_themselves() -> None:
    model = tiny_model()
    assert repr(model) == f"<Model 0.0M float32, {model.backend.isa}>"
    session = model.session()
    session.forward([BOS, 5])
    assert repr(session) == "<Session position 2 of 64>"
    session.close()
    assert repr(session) == "<Session (closed)>"
    stream = model.stream("a", max_tokens=2, seed=1, stop_tokens=())
    assert (repr(stream), stream.text) == ("<Stream 0 tokens>", "")
    first = next(stream)
    assert stream.text == first
    rest = "".join(stream)
    assert stream.text == first + rest
    assert repr(stream) == "<Stream 2 tokens, finished: length>"
    model.close()
    assert repr(model) == "<Model (closed)>"


def test_the_signature_of_load_shows_values() -> None:
    """``help(llama2py.load)`` is what a newcomer reads first."""
    assert "lambda" not in str(inspect.signature(load))
    assert "progress: 'Callable[[int, int], object] | None' = None" in str(inspect.signature(load))

"""Options: a wrong one is an error of llama2py that names the parameter, the value and the fix."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from llama2py import Llama2pyError, Model, ParameterError, PromptError, SamplingParams
from llama2py.errors import UnknownOptionError
from llama2py.generation.options import check_options, is_one, seed_each, seeds_of
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import tiny_model

HUGE = 10**5000  # more digits than Python converts to text


class Odd:
    """No number, and not even shown without an error."""

    def __repr__(self) -> str:
        raise RuntimeError("not shown")


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with tiny_model() as model:
        yield model


WRONG: list[tuple[str, Any, str]] = [
    ("max_tokens", 5.0, "max_tokens is 5.0, expected a whole number from 0 up"),
    ("max_tokens", "5", "max_tokens is '5', expected a whole number"),
    ("max_tokens", -1, "max_tokens is -1, expected a whole number from 0 up"),
    ("temperature", 10**400, "temperature is 10000.*, expected a finite number from 0 up"),
    ("temperature", HUGE, "temperature is a value of type int, expected a finite number"),
    ("temperature", "hot", "temperature is 'hot', expected a finite number"),
    ("temperature", None, "temperature is None, expected a finite number"),
    ("temperature", math.nan, "temperature is nan, expected a finite number"),
    ("temperature", 1j, "temperature is 1j, expected a finite number"),
    ("temperature", Odd(), "temperature is a value of type Odd, expected a finite number"),
    ("temperature", np.ones(2), r"temperature is array\(\[1., 1.\]\), expected a finite number"),
    ("top_p", 1.5, "top_p is 1.5, expected a number from 0 to 1"),
    ("top_p", "0.9", "top_p is '0.9', expected a number from 0 to 1"),
    ("min_p", [0.1], r"min_p is \[0.1\], expected a number from 0 to 1"),
    ("typical_p", None, "typical_p is None, expected a number from 0 to 1"),
    ("top_k", 1.0, "top_k is 1.0, expected a whole number from 0 up"),
    ("repetition_penalty", 0, "repetition_penalty is 0, expected a number above 0"),
    ("frequency_penalty", "x", "frequency_penalty is 'x', expected a finite number"),
    ("presence_penalty", math.inf, "presence_penalty is inf, expected a finite number"),
    ("logit_bias", None, "logit_bias is None, expected a mapping of token ids to numbers"),
    ("logit_bias", [(5, 1.0)], "logit_bias is .*, expected a mapping"),
    ("logit_bias", {"a": 1.0}, "logit_bias holds 'a', expected whole numbers"),
    ("logit_bias", {5: "x"}, r"logit_bias\[5\] is 'x', expected numbers"),
    ("logit_bias", {5: math.nan}, r"logit_bias\[5\] is nan, expected numbers"),
    ("logit_bias", {2**70: 1.0}, f"token {2**70} of logit_bias is outside the vocabulary"),
    ("banned_tokens", [2**70], f"token {2**70} of banned_tokens is outside the vocabulary"),
    ("banned_tokens", 5, "banned_tokens is 5, expected a sequence of token ids"),
    ("banned_tokens", "ab", "banned_tokens is 'ab', expected a sequence of token ids"),
    ("banned_tokens", [1.5], "banned_tokens holds 1.5, expected whole numbers"),
    ("logits_processor", 5, "logits_processor is 5, expected a function or a sequence"),
    ("logits_processor", [5], "logits_processor is 5, expected a function"),
    ("stop", 5, "stop is 5, expected a str or an iterable of str"),
    ("stop", b"x", "stop is b'x', expected a str or an iterable of str"),
    ("stop", [5], "stop holds 5, expected str"),
    ("stop", [""], "a stop string is empty"),
    ("stop_tokens", 5, "stop_tokens is 5, expected a sequence of token ids"),
    ("stop_tokens", ["a"], "stop_tokens holds 'a', expected whole numbers"),
    ("max_time", "1", "max_time is '1', expected seconds from 0 up"),
    ("max_time", math.nan, "max_time is nan, expected seconds from 0 up"),
    ("cancel", True, "cancel is True, expected a threading.Event"),
    ("cancel", 1, "cancel is 1, expected a threading.Event"),
    ("logprobs", 1.5, "logprobs is 1.5, expected a whole number from 0 up"),
    ("logprobs", -1, "logprobs is -1, expected a whole number from 0 up"),
    ("overflow", 5, "overflow is 5, expected one of stop, error, shift"),
    ("overflow", [], r"overflow is \[\], expected one of stop, error, shift"),
    ("seed", -1, r"seed is -1, expected a whole number from 0 to 2\*\*64 - 1"),
    ("seed", 2**64, rf"seed is {2**64}, expected a whole number from 0 to 2\*\*64 - 1"),
    ("seed", 1.5, "seed is 1.5, expected a whole number"),
    ("seed", "1", "seed is '1', expected a whole number"),
    ("seed", HUGE, "seed is a value of type int, expected a whole number"),
]


@pytest.mark.parametrize(
    ("name", "value", "message"), WRONG, ids=[f"{i}-{case[0]}" for i, case in enumerate(WRONG)]
)
def test_a_wrong_parameter_is_refused_before_the_text_begins(
    model: Model, name: str, value: Any, message: str
) -> None:
    for ask in (model.generate, model.stream):
        with pytest.raises(ParameterError, match=rf"^{message}") as caught:
            ask("a", **{name: value})
        assert len(str(caught.value)) < 200
    with pytest.raises(ParameterError, match=rf"^{message}"):
        model.generate(["a", "b"], **{name: value})
    with pytest.raises(ParameterError, match=rf"^{message}"):
        next(model.generate_many(["a", "b"], **{name: value}))
    if name in SamplingParams.__dataclass_fields__ and "vocabulary" not in message:
        with pytest.raises(ParameterError, match=rf"^{message}"):
            SamplingParams(**{name: value})


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", None])
def test_a_wrong_batch_size_is_refused(model: Model, value: Any) -> None:
    for prompt in ("a", ["a", "b"]):
        with pytest.raises(ParameterError, match=r"max_batch is .*, expected a whole"):
            model.generate(prompt, max_batch=value)
    with pytest.raises(ParameterError, match=r"max_batch is .*, expected a whole"):
        model.generate_many(["a"], max_batch=value)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "the prompt is None, expected str or a sequence of token ids"),
        (5, "the prompt is 5, expected str or a sequence of token ids"),
        (b"a", "the prompt is b'a', expected str or a sequence of token ids"),
        ([1.5], "the prompt holds 1.5, expected whole numbers"),
        ([BOS, "a"], "the prompt holds 'a', expected whole numbers"),
        ([BOS, None], "the prompt holds None, expected whole numbers"),
        ([], "the prompt has no tokens"),
        ([2**70], f"token {2**70} is out"),
    ],
)
def test_a_wrong_prompt_is_refused(model: Model, prompt: Any, message: str) -> None:
    uses: list[Any] = [model.generate, model.stream, model.prompt_tokens, model.score]
    for use in uses:
        with pytest.raises(PromptError, match=f"^{message}"):
            use(prompt)
    with pytest.raises(PromptError, match=f"^prompt 1: {message}"):
        model.generate(["a", prompt])
    with pytest.raises(PromptError, match=f"^prompt 0: {message}"):
        next(model.generate_many([prompt]))


def test_prompts_that_are_no_iterable_are_refused(model: Model) -> None:
    with pytest.raises(PromptError, match="prompts is 5, expected an iterable of prompts"):
        model.generate_many(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_new_tokens", "max_tokens"),
        ("max_length", "max_tokens"),
        ("n_predict", "max_tokens"),
        ("max_token", "max_tokens"),
        ("topk", "top_k"),
        ("topp", "top_p"),
        ("Temperature", "temperature"),
        ("temp", "temperature"),
        ("repeat_penalty", "repetition_penalty"),
        ("eos_token_id", "stop_tokens"),
        ("stop_sequences", "stop"),
        ("batch_size", "max_batch"),
        ("logit_biases", "logit_bias"),
    ],
)
def test_an_unknown_option_suggests_the_right_one(model: Model, name: str, meant: str) -> None:
    message = f"unknown option '{name}': did you mean '{meant}'[?]"
    options: dict[str, Any] = {name: 1}
    for ask in (model.generate, model.stream):
        with pytest.raises(UnknownOptionError, match=message):
            ask("a", **options)
    with pytest.raises(TypeError, match=message):  # as before
        model.generate_many(["a"], **options)
    assert issubclass(UnknownOptionError, Llama2pyError)


def test_an_option_like_no_other_lists_them_all(model: Model) -> None:
    with pytest.raises(ParameterError, match=r"unknown option 'xyz', expected .*top_k.*seed"):
        model.generate("a", xyz=1)  # type: ignore[call-overload]


def test_numbers_may_be_numpys(model: Model) -> None:
    expected = model.generate("a", 9, 0.7, 0.8, 3, top_k=5, stop_tokens=[7], max_time=60.0)
    text = model.generate(
        "a",
        np.int64(9),  # type: ignore[call-overload]
        np.float64(0.7),
        np.float64(0.8),
        np.uint64(3),
        top_k=np.int32(5),
        stop_tokens=np.array([7]),
        max_time=np.float32(60.0),
    )
    assert text.tokens == expected.tokens
    assert (type(text.seed), text.seed) == (int, 3)


def test_an_iterator_of_options_holds_for_every_prompt(model: Model) -> None:
    """It can be read only once."""
    plain = model.generate(["a", "a"], 30, seed=1, stop=["b", "c"], stop_tokens=[5, 6])
    texts = model.generate(["a", "a"], 30, seed=1, stop=iter(["b", "c"]), stop_tokens=iter([5, 6]))
    assert [text.tokens for text in texts] == [text.tokens for text in plain]
    assert texts[0].tokens == texts[1].tokens


def test_other_events_may_cancel(model: Model) -> None:
    class Mine:
        def is_set(self) -> bool:
            return True

    for cancel in (Mine(), threading.Event()):
        text = model.generate("a", 5, seed=1, cancel=cancel)  # type: ignore[arg-type]
        assert (text.finish_reason == "cancelled") == isinstance(cancel, Mine)


def test_an_option_left_out_may_be_none(model: Model) -> None:
    options = check_options(
        model,
        None,
        1.0,
        0.9,
        {"stop": None, "stop_tokens": None, "cancel": None},  # type: ignore[typeddict-item]
    )
    assert (options.stop, options.stop_tokens, options.cancel) == ((), model.stop_tokens, None)
    assert options.max_tokens == model.config.seq_len


@pytest.mark.parametrize(
    ("prompt", "one"),
    [
        ("abc", True),
        ("", True),
        ([1, 2], True),
        ([], True),
        (np.array([1, 2]), True),
        (None, True),
        (["abc"], False),
        ([[1, 2]], False),
        (np.array([[1, 2]]), False),
    ],
)
def test_one_prompt_differs_from_many(prompt: Any, one: bool) -> None:
    assert is_one(prompt) == one


def test_seeds_for_many_prompts() -> None:
    assert list(seed_each(None, 2)) == [None, None]
    assert list(seed_each(7, 2)) == [7, 7]
    assert list(seed_each([7, 8], 2)) == [7, 8]
    with pytest.raises(ParameterError, match="there are 2 seeds for 3 prompts"):
        seed_each([7, 8], 3)
    some = seeds_of([7])
    assert next(some) == 7
    with pytest.raises(ParameterError, match="there are only 1 seeds"):
        next(some)

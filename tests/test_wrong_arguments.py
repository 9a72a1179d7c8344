"""Wrong arguments of every public function: an error of llama2py that names the parameter.

Each parameter of each function gets values of every wrong kind. A value may be accepted; if it is
not, the error is never one of Python's own from somewhere inside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import llama2py
from llama2py import (
    Chat,
    Llama2pyError,
    Model,
    ModelConfig,
    Options,
    ParameterError,
    SamplingParams,
    Session,
    StoryTeller,
    Tokenizer,
    UnknownOptionError,
    convert,
    download,
    load,
    score_texts,
)
from llama2py._data import builtin_model, bundled_tokenizer
from llama2py.checkpoint import open_checkpoint
from llama2py.meta import Llama
from llama2py.tokenizers.export import export_tokenizer
from llama2py.tokenizers.load import load_tokenizer
from tests.conftest import tiny_model

WRONG: list[Any] = [5, -1, 1.5, None, "x", b"x", [], [5], ["x"], [None], [[]], {}, [{}], object()]
CONFIG = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
NUMBERS = (24, 44, 2, 4, 2, 300, 64)


@dataclass(frozen=True)
class Case:
    """A function with arguments that are right."""

    call: Callable[..., Any]
    right: dict[str, Any]
    more: tuple[str, ...] = ()  # optional parameters, which are left out
    refuses_unknown: bool = False


def first_two(texts: Iterator[Any]) -> list[Any]:
    return list(islice(texts, 2))


def cases() -> dict[str, Case]:
    """Every public function and method; those that generate text make little of it."""
    model = tiny_model()
    tokenizer = model.tokenizer
    tell, llama = StoryTeller(model), Llama(model)
    message = {"role": "user", "content": "a"}

    def fed() -> Session:
        session = model.session()
        session.forward([1, 2, 3])
        return session

    drawing = {"max_tokens": 2, "temperature": 1.0, "top_p": 0.9, "seed": 1}
    completing = {"temperature": 0.6, "top_p": 0.9, "max_gen_len": 2, "logprobs": False}
    telling = {"seed": 1, "about": "a dog", "opening": "", "words": (), "max_words": 20}
    options = tuple(Options.__annotations__)
    sampling = tuple(SamplingParams.__dataclass_fields__)
    return {
        "load": Case(
            load,
            {"path": builtin_model(), "tokenizer": None, "threads": 1, "backend": "c"},
            ("dtype", "cache_dtype", "progress"),
            True,
        ),
        "Model": Case(
            Model, {"backend": model.backend, "tokenizer": tokenizer, "conventions": None}
        ),
        "stream": Case(
            lambda **given: model.stream(**given).finish(),
            {"prompt": "a", **drawing},
            options,
            True,
        ),
        "generate": Case(model.generate, {"prompt": "a", **drawing, "max_batch": 1}, options, True),
        "generate_many": Case(
            lambda **given: first_two(model.generate_many(**given)),
            {"prompts": ["a"], **drawing, "max_batch": 1},
            ("progress", *options),
            True,
        ),
        "score": Case(model.score, {"text": "a"}),
        "perplexity": Case(model.perplexity, {"text": "abc"}),
        "prompt_tokens": Case(model.prompt_tokens, {"prompt": "a"}),
        "session": Case(model.session, {"overflow": "error"}),
        "load_session": Case(model.load_session, {"path": "missing"}),
        "reuse_prefixes": Case(model.reuse_prefixes, {"max_bytes": 0}),
        "Session": Case(Session, {"backend": model.backend}, ("overflow",)),
        "forward": Case(
            lambda **given: model.session().forward(**given),
            {"tokens": [1], "all_logits": False, "interrupted": None},
        ),
        "rewind": Case(lambda **given: fed().rewind(**given), {"position": 1}),
        "shift": Case(lambda **given: fed().shift(**given), {"n_tokens": 1}),
        "fork": Case(lambda **given: fed().fork(**given), {"position": 1}),
        "save": Case(lambda **given: fed().save(**given), {"path": "session"}),
        "StoryTeller": Case(
            StoryTeller,
            {"model": model, "temperature": 0.7, "top_p": 0.9},
            ("tokenizer", "threads"),
            True,
        ),
        "tell": Case(tell, telling, (), True),
        "many": Case(
            lambda **given: first_two(tell.many(**given)),
            {"count": 1, **telling, "max_batch": 2},
            ("progress",),
            True,
        ),
        "Chat": Case(
            lambda **given: Chat(**given).say("a").finish(),
            {"model": model, "system": None, "template": "plain", "overflow": "error"}
            | {"messages": [], "variables": None, "session": None}
            | {**drawing, "max_tokens": 40},
            (*sampling[2:], "stop"),
            True,
        ),
        "say": Case(
            lambda **given: Chat(model, template="plain", max_tokens=40).say(**given).finish(),
            {"user": "a", "max_tokens": 5},
            (*sampling[2:], "stop"),
        ),
        "apply_chat_template": Case(
            model.apply_chat_template,
            {"messages": [{"role": "user", "content": "a"}], "chat_template": None},
        ),
        "agenerate": Case(
            lambda **given: asyncio.run(model.agenerate(**given)), {"prompt": "a"} | drawing
        ),
        "SamplingParams": Case(SamplingParams, {}, sampling, True),
        "Tokenizer": Case(
            Tokenizer,
            {"pieces": [tokenizer.piece(i) for i in range(300)], "scores": [0.0] * 300},
            ("specials", "eos_id", "adds_bos", "first_byte", "prefix", "bos_id"),
        ),
        "encode": Case(
            tokenizer.encode, {"text": "a", "bos": True, "eos": False, "special": False}
        ),
        "encode_parts": Case(tokenizer.encode_parts, {"parts": ["a", 5], "first": True}),
        "decode": Case(tokenizer.decode, {"tokens": [5]}),
        "piece": Case(tokenizer.piece, {"token": 5}),
        "score of a token": Case(tokenizer.score, {"token": 5}),
        "decoder": Case(lambda **given: tokenizer.decoder(**given).feed(7), {"previous": 1}),
        "feed": Case(tokenizer.decoder().feed, {"token": 5}),
        "padded": Case(tokenizer.padded, {"vocab_size": 400}),
        "load_tokenizer": Case(load_tokenizer, {"path": bundled_tokenizer()}),
        "export_tokenizer": Case(
            export_tokenizer, {"source": bundled_tokenizer(), "output": "out.json"}
        ),
        "score_texts": Case(score_texts, {"model": model, "texts": ["a"]}, (), True),
        "convert": Case(
            convert,
            {"source": builtin_model(), "output": "out.bin", "format": None, "dtype": None},
            ("tokenizer", "group_size", "shard_size", "threads", "progress"),
            True,
        ),
        "download": Case(download, {"name": "no model"}),
        "open_checkpoint": Case(open_checkpoint, {"path": "missing"}),
        "ModelConfig": Case(
            ModelConfig,
            dict(zip(CONFIG, NUMBERS, strict=True)),
            ("shared_classifier", "norm_eps", "rope_theta", "head_size", "rope_scaling"),
        ),
        "Llama": Case(
            Llama, {"model": model, "max_seq_len": 9, "max_batch_size": 1, "seed": 1}, (), True
        ),
        "Llama.build": Case(
            Llama.build,
            {"ckpt_dir": builtin_model(), "tokenizer_path": None, "max_seq_len": 9}
            | {"max_batch_size": 1},
            ("model_parallel_size", "seed"),
            True,
        ),
        "Llama.generate": Case(
            llama.generate, {"prompt_tokens": [[1, 5]], **completing}, ("echo",), True
        ),
        "text_completion": Case(
            llama.text_completion, {"prompts": ["a"], **completing}, ("echo",), True
        ),
        "chat_completion": Case(
            llama.chat_completion, {"dialogs": [[message]], **completing}, (), True
        ),
    }


def error_of(call: Callable[..., Any], arguments: dict[str, Any]) -> Llama2pyError | None:
    try:
        call(**arguments)
    except Llama2pyError as error:
        return error
    return None


CASES = cases()
PARAMETERS = [
    (function, name) for function, case in CASES.items() for name in (*case.right, *case.more)
]


@pytest.mark.parametrize(("function", "name"), PARAMETERS)
def test_a_wrong_argument_is_an_error_of_llama2py(
    function: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    case = CASES[function]
    for value in WRONG:
        error = error_of(case.call, case.right | {name: value})
        message = str(error)
        assert "\n" not in message
        if isinstance(error, ParameterError):
            assert name.rstrip("s") in message or "prompt" in message, (
                f"{name}={value!r}: {message}"
            )


@pytest.mark.parametrize("function", [name for name, case in CASES.items() if case.refuses_unknown])
def test_an_unknown_keyword_is_an_error_with_a_suggestion(function: str) -> None:
    case = CASES[function]
    wanted = sorted({*case.right, *case.more} - {"model", "n"})[-1]
    with pytest.raises(UnknownOptionError, match=f"unknown option '{wanted}s': did you mean '"):
        case.call(**case.right, **{f"{wanted}s": 1})
    with pytest.raises(UnknownOptionError, match="unknown option 'qqq', expected one of"):
        case.call(**case.right, qqq=1)


@pytest.mark.parametrize(
    ("function", "name", "meant"),
    [
        ("load", "n_threads", "threads"),
        ("load", "model", "path"),
        ("load", "torch_dtype", "dtype"),
        ("StoryTeller", "temp", "temperature"),
        ("tell", "max_length", "max_words"),
        ("Chat", "max_new_tokens", "max_tokens"),
        ("Chat", "system_prompt", "system"),
        ("SamplingParams", "repeat_penalty", "repetition_penalty"),
        ("convert", "target", "output"),
        ("Llama.generate", "max_new_tokens", "max_gen_len"),
    ],
)
def test_the_name_of_another_library_suggests_ours(function: str, name: str, meant: str) -> None:
    case = CASES[function]
    with pytest.raises(UnknownOptionError, match=f"'{name}': did you mean '{meant}'"):
        case.call(**case.right, **{name: 1})


def test_the_cases_have_every_public_function() -> None:
    functions = {
        name
        for name in llama2py.__all__
        if callable(value := getattr(llama2py, name))
        and not (isinstance(value, type) and issubclass(value, Exception | dict))
        and getattr(value, "__module__", "").startswith("llama2py")
    }
    results = {"AsyncStream", "Generation", "Score", "Story", "Stream", "Timings", "TokenLogprob"}
    assert functions - results <= {*CASES}

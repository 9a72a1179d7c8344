"""Models with more ids than their tokenizer has tokens: no text has one of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal

import numpy as np
import pytest

from llama2py.chat.dialogue import Chat
from llama2py.checkpoint import Conventions
from llama2py.engine.native import Engine
from llama2py.engine.reference import Reference
from llama2py.errors import ParameterError
from llama2py.meta import Llama
from llama2py.model import Model
from llama2py.tokenizers.tokenizer import Tokenizer
from tests.conftest import TINY, random_checkpoint, tiny_tokenizer
from tests.support.scripted import ScriptedBackend

N_TOKENS = 280  # of the model's 300 ids
PADDING = range(N_TOKENS, TINY.vocab_size)


def short_tokenizer() -> Tokenizer:
    whole = tiny_tokenizer()
    ids = range(N_TOKENS)
    return Tokenizer([whole.piece(t) for t in ids], [whole.score(t) for t in ids])


def random_model(tokenizer: Tokenizer, backend: Literal["c", "numpy"] = "c") -> Model:
    """Of its 300 ids each is about as probable as any other."""
    checkpoint = random_checkpoint(TINY)
    weights = Engine(checkpoint) if backend == "c" else Reference(checkpoint)
    return Model(weights, tokenizer)


@pytest.fixture(params=["c", "numpy"])
def padded(request: pytest.FixtureRequest) -> Iterator[Model]:
    with random_model(short_tokenizer().padded(TINY.vocab_size), request.param) as model:
        yield model


def test_padding_begins_after_the_last_piece() -> None:
    """Also in a vocabulary that a file holds with its padding."""
    plain = short_tokenizer()
    assert plain.n_tokens == len(plain) == N_TOKENS
    made = plain.padded(300)
    assert (made.n_tokens, len(made)) == (N_TOKENS, 300)
    read = Tokenizer([made.piece(t) for t in range(300)], [0.0] * 300)
    assert (read.n_tokens, len(read)) == (N_TOKENS, 300)


Ask = Callable[[Model, dict[str, Any]], list[int]]

ASK: dict[str, Ask] = {
    "generate": lambda model, options: model.generate("a", seed=1, **options).tokens,
    "stream": lambda model, options: _streamed(model, options),
    "batch": lambda model, options: [
        token
        for text in model.generate(["a", "b", "c d"], seed=[1, 2, 3], **options)
        for token in text.tokens
    ],
    "endless": lambda model, options: [
        token
        for text in islice(model.generate_many(iter("abc"), seed=4, max_batch=2, **options), 3)
        for token in text.tokens
    ],
}


def _streamed(model: Model, options: dict[str, Any]) -> list[int]:
    with model.stream("a", seed=5, **options) as stream:
        list(stream)
    return stream.tokens


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 3.0},
    "all": {"temperature": 3.0, "top_p": 1.0},
    "cuts": {"temperature": 3.0, "min_p": 0.01},
    "bias": {"logit_bias": dict.fromkeys(PADDING, 50.0)},
    "processor": {"logits_processor": lambda tokens, logits: np.arange(len(logits)) / 9},
    "shift": {"temperature": 3.0, "overflow": "shift", "max_tokens": 100},
}


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_padding_is_never_drawn(padded: Model, ask: Ask, options: dict[str, Any]) -> None:
    """Of a model that would draw it, as it does where these ids are tokens."""
    options = {"stop_tokens": (), "max_tokens": 60, **options}
    backend: Any = "numpy" if padded.backend.isa == "numpy" else "c"
    with random_model(tiny_tokenizer(), backend) as unpadded:
        assert any(token in PADDING for token in ask(unpadded, options))
    tokens = ask(padded, options)
    assert len(tokens) >= 60
    assert max(tokens) < N_TOKENS


def test_temperature_zero_takes_the_best_token_that_is_no_padding(padded: Model) -> None:
    seen_padding = False
    text = padded.generate("a", temperature=0, max_tokens=30, stop_tokens=())
    assert (
        text.tokens
        == padded.generate("a", temperature=0, max_tokens=30, stop_tokens=(), top_k=9).tokens
    )
    with padded.session() as session:
        logits = session.forward(text.prompt_tokens)
        for token in text.tokens:
            assert token == np.argmax(logits[:N_TOKENS])
            seen_padding |= bool(np.argmax(logits) in PADDING)
            logits = session.forward([token])
    assert seen_padding


def test_metas_api_and_chats_never_draw_padding() -> None:
    for tokenizer in (tiny_tokenizer(), short_tokenizer().padded(TINY.vocab_size)):
        with random_model(tokenizer) as model:
            tokens, _ = Llama(model).generate([[1, 300 - 1, 8], [1]], 50, temperature=3.0, top_p=1)
            with Chat(model, template="plain", temperature=3.0, seed=1) as chat:
                stream = chat.say("a")
                stream.finish()
            found = [*tokens[0], *tokens[1], *stream.tokens]
            assert any(token in PADDING for token in found) == (tokenizer.n_tokens == 300)


def test_log_probabilities_count_padding(padded: Model) -> None:
    """Nothing is scaled: what padding has is missing from the sum over tokens."""
    text = padded.generate("a", seed=1, max_tokens=1, logprobs=TINY.vocab_size)
    assert text.logprobs is not None
    top = dict(text.logprobs[0].top)
    assert len(top) == TINY.vocab_size
    assert sum(map(np.exp, top.values())) == pytest.approx(1)
    whole = padded.generate([1], max_tokens=1, logprobs=TINY.vocab_size).logprobs
    assert whole is not None
    assert padded.score([1, 299])[0] == pytest.approx(dict(whole[0].top)[299])


def test_banning_all_but_padding_is_an_error(padded: Model) -> None:
    with pytest.raises(ParameterError, match="no token is left to draw"):
        padded.generate("a", max_tokens=3, banned_tokens=range(N_TOKENS))


def test_an_end_token_of_the_metadata_is_no_padding() -> None:
    """A ChatML model beside whose tokenizer.model its two tokens are in another file."""
    tokenizer = short_tokenizer().padded(300)
    conventions = Conventions(end_tokens=frozenset([281]))
    with Model(ScriptedBackend([40, 281], 300), tokenizer, conventions) as model:
        text = model.generate("a", temperature=0)
    assert (text.tokens, text.finish_reason, text.stopped_by) == ([40], "stop", 281)
    with Model(ScriptedBackend([40, 282], 300), tokenizer, conventions) as model:
        text = model.generate("a", temperature=0, max_tokens=2)
    assert text.tokens == [40, 0]


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["cuts"]], ids=["plain", "cuts"])
def test_an_end_token_beyond_the_models_ids_is_ignored(
    padded: Model, options: dict[str, Any]
) -> None:
    """Whether or not the backend draws by itself."""
    options = {"max_tokens": 60, "seed": 7, **options}
    expected = padded.generate([1, 40], stop_tokens=(), **options).tokens
    assert len(expected) == 60
    assert padded.generate([1, 40], stop_tokens=(-1, 300, 10**12), **options).tokens == expected
    some = padded.generate([1, 40], stop_tokens=(PADDING[-1], 300), **options).tokens
    assert some != expected  # that one is in reach, and makes tokens of those before it

"""What ends a text: stop strings, stop tokens, time, a cancel event; alone and in a batch."""

from __future__ import annotations

import threading
import time
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llama2py
from llama2py import Generation, Model, ParameterError
from llama2py.generation.stopping import StopStrings
from llama2py.tokenizers.tokenizer import BOS, EOS
from tests.conftest import tiny_tokenizer
from tests.support.scripted import ScriptedBackend

A, B, C = 260, 261, 288  # "a", "b" and " c", of conftest's tokenizer
DOG = [3 + value for value in "🐶".encode()]


def scripted(*script: int, seq_len: int = 64) -> Model:
    return Model(ScriptedBackend(script, 300, seq_len), tiny_tokenizer())


@cache
def builtin() -> Model:
    return llama2py.load()


def both(script: list[int], **options: Any) -> Generation:
    """Alone, streamed and in a batch it is the same text."""
    alone = scripted(*script).generate([BOS, A], seed=1, **options)
    (batched,) = scripted(*script).generate([[BOS, A]], seed=[1], **options)
    with scripted(*script).stream([BOS, A], seed=1, **options) as stream:
        pieces = list(stream)
    assert all(pieces)
    assert "".join(pieces) == alone.text == batched.text
    assert stream.tokens == alone.tokens == batched.tokens
    assert stream.finish_reason == alone.finish_reason == batched.finish_reason
    assert stream.stopped_by == alone.stopped_by == batched.stopped_by
    return alone


# ---- stop strings ----


def plain(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: grow the text letter by letter until it ends in a stop string."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


few_letters = st.text("ab ", min_size=1, max_size=4)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text("ab ", max_size=4), max_size=12), st.lists(few_letters, max_size=3))
def test_pieces_hold_no_stop_string_however_they_are_cut(
    pieces: list[str], stops: list[str]
) -> None:
    filtered = StopStrings(stops)
    out, text = "", "".join(pieces)
    expected, found = plain(text, stops)
    for piece in pieces:
        out += filtered.feed(piece)
        assert expected.startswith(out)  # nothing is ever shown that must be taken back
    out += filtered.flush()
    assert (out, filtered.found) == (expected, found)
    assert not any(stop in out for stop in stops)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([A, B, C, 287, *DOG]), min_size=1, max_size=20),
    st.lists(st.text("ab c🐶\ufffd", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_stop_strings_end_a_text(script: list[int], stops: list[str]) -> None:
    """Across the borders of tokens and of bytes, in the last character cut off, too."""
    whole = scripted(*script).generate([BOS, A], max_tokens=len(script)).text
    expected, found = plain(whole, stops)
    g = both(script, stop=stops, max_tokens=len(script))
    assert g.text == expected
    assert (g.finish_reason, g.stopped_by) == ("length" if found is None else "stop", found)


@pytest.fixture(scope="module")
def stories() -> dict[int, str]:
    """The built-in model's, by their seeds."""
    return {seed: builtin().generate("Once", 60, seed=seed).text for seed in range(1, 9)}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_stop_strings_end_a_story(stories: dict[int, str], data: st.DataObject) -> None:
    """Parts of the very story, so that they do come, and tokens of many letters."""
    seed, story = data.draw(st.sampled_from(sorted(stories.items())))
    part = st.tuples(st.integers(0, len(story) - 1), st.integers(1, 20)).map(
        lambda at: story[at[0] : at[0] + at[1]]
    )
    others = st.text("aehn T.", min_size=1, max_size=3)
    stops = data.draw(st.lists(part | others, min_size=1, max_size=4))
    expected, found = plain(story, stops)
    with builtin().stream("Once", 60, seed=seed, stop=stops) as stream:
        pieces = list(stream)
    g = builtin().generate("Once", 60, seed=seed, stop=stops)
    (batched,) = builtin().generate(["Once"], 60, seed=[seed], stop=stops)
    assert "".join(pieces) == g.text == batched.text == expected
    assert not any(stop in g.text for stop in stops)
    assert all(pieces)
    assert stream.stopped_by == g.stopped_by == batched.stopped_by
    if found is not None:
        assert (g.finish_reason, g.stopped_by) == ("stop", found)


def test_text_held_back_is_shown_once_it_is_no_stop_string() -> None:
    with scripted(A, B, A, C, BOS).stream([BOS, A], stop="abc") as stream:
        assert list(stream) == ["aba"[:2], "a c"]


def test_text_held_back_is_shown_at_the_end() -> None:
    g = both([A, B, BOS], stop=["abc", "bb"])
    assert (g.text, g.stopped_by) == ("ab", BOS)


def test_the_tokens_of_a_stop_string_stay_among_the_tokens() -> None:
    g = both([A, A, B, C], stop="ab")
    assert (g.text, g.tokens, g.stopped_by) == ("a", [A, A, B], "ab")


def test_an_empty_stop_string_is_an_error_at_once() -> None:
    with pytest.raises(ParameterError, match="stop string is empty"):
        scripted().stream(stop=["a", ""])


# ---- tokens ----


@pytest.mark.parametrize(
    ("stop_tokens", "text", "by"),
    [
        (None, "a\n</s>\nb", BOS),
        ([BOS], "a\n</s>\nb", BOS),
        ([BOS, EOS], "a", EOS),
        ([B], "a\n</s>\n", B),
    ],
)
def test_stop_tokens_end_a_text(stop_tokens: list[int] | None, text: str, by: int) -> None:
    g = both([A, EOS, B, BOS, A, A], stop_tokens=stop_tokens)
    assert (g.text, g.finish_reason, g.stopped_by) == (text, "stop", by)


def test_without_stop_tokens_only_length_ends_a_text() -> None:
    g = both([A, EOS, BOS, B], stop_tokens=(), max_tokens=4)
    assert (g.tokens, g.finish_reason) == ([A, EOS, BOS, B], "length")


# ---- time, and other threads ----


class Slow(ScriptedBackend):
    """A hundredth of a second a pass, and an event that is set in one of them."""

    def __init__(self, event: threading.Event | None = None, at: int = 0) -> None:
        super().__init__([A] * 10**4, 300, 4096)
        self._event, self._at, self.passes = event, at, 0

    def run(self, *args: Any) -> Any:
        if len(args) == 4:  # without draws
            time.sleep(0.01)
            self.passes += 1
            if self._event and self.passes == self._at:
                self._event.set()
        return super().run(*args)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("prompt", [[BOS], [BOS] * 4000])
def test_max_time_ends_a_text(batched: bool, prompt: list[int]) -> None:
    """In a text as in the middle of a long prompt."""
    model = Model(Slow(), tiny_tokenizer())
    start = time.perf_counter()
    if batched:
        g = model.generate([prompt], max_time=0.15)[0]
    else:
        g = model.generate(prompt, max_time=0.15)
    assert 0.15 <= time.perf_counter() - start < 0.9
    assert g.finish_reason == "time"
    assert len(g.tokens) > 0 if len(prompt) == 1 else not g.tokens


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(("prompt", "tokens"), [([BOS], 3), ([BOS] * 1000, 0)])
def test_an_event_cancels_a_text(batched: bool, prompt: list[int], tokens: int) -> None:
    """Set in the fourth pass: no token is drawn after it."""
    event = threading.Event()
    backend = Slow(event, 4)
    model = Model(backend, tiny_tokenizer())
    if batched:
        g = model.generate([prompt], cancel=event)[0]
    else:
        g = model.generate(prompt, cancel=event)
    assert (len(g.tokens), g.finish_reason, backend.passes) == (tokens, "cancelled", 4)


@pytest.mark.parametrize("options", [{"max_time": -1}, {"max_time": float("nan")}])
def test_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=r"max_time is .* expected"):
        scripted().generate(**options)


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="unknown option 'stops'"):
        scripted().generate(stops="x")  # type: ignore[call-overload]

"""A session whose text is ahead, used for anything between two tokens: nobody sees that it is.

Beside it goes one that runs a token, and draws, in two calls of the backend.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama2py import Cancelled, Model, PromptError
from llama2py.engine.backend import Draw, pick
from llama2py.engine.session_many import forward_many, next_tokens_many
from tests.conftest import tiny_model
from tests.support.drawing import HOT, by_hand, same


@pytest.fixture(scope="module", params=["c", "numpy"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with tiny_model(request.param) as model:
        yield model


draws = st.lists(
    st.builds(
        Draw,
        st.sampled_from([0.0, 0.5, 1.0, 4.0]),
        st.sampled_from([0.0, 0.5, 0.9, 1.0]),
        st.integers(0, (1 << 24) - 1).map(lambda n: n / (1 << 24)),
        st.sampled_from([1, 9, 299, 300]),
    ),
    min_size=1,
    max_size=20,
)
token = st.integers(0, 299)
part = st.floats(0, 1)


@dataclass(frozen=True)
class Text:
    """Some tokens of a text are taken, then something is done."""

    first: int
    draws: list[Draw]
    ends: list[int]
    take: int
    then: str
    where: float
    others: list[int]


texts = st.builds(
    Text,
    first=token,
    draws=draws,
    ends=st.lists(token, max_size=20),
    take=st.integers(0, 20),
    then=st.sampled_from(
        [
            "rest",
            "drop",
            "close",
            "rewind",
            "stay",
            "forward",
            "many",
            "next",
            "nested",
            "fork",
            "save",
            "refused",
            "cancelled",
            "interrupted",
            "shift",
        ]
    ),
    where=part,
    others=st.lists(token, min_size=1, max_size=12),
)
# These leave the session as it was, and the text goes on.
HARMLESS = {"rest", "close", "fork", "save", "refused"}


class Pair:
    """A session that may be ahead, and one that is not."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.one, self.other = model.session("shift"), model.session("shift")

    def check(self) -> None:
        assert same(self.one, self.other)

    def tell(self, text: Text) -> None:
        """The text, with what is done in the midst of it."""
        self.make_room()
        room = self.one.room
        self.generate = self.one.generate([text.first], text.draws, text.ends)
        last, left = text.first, text.draws[:room]
        for _ in range(text.take):
            last, left = self.step(last, left, text.ends)
        self.do(text.then, text)
        if text.then in HARMLESS:
            if text.then == "close":
                assert isinstance(self.generate, Generator)
                self.generate.close()
                left = []
            while left:
                last, left = self.step(last, left, text.ends)
        elif text.take:
            assert text.then == "drop" or next(self.generate, None) is None
        self.check()

    def step(self, last: int, left: list[Draw], ends: list[int]) -> tuple[int, list[Draw]]:
        """A token of each, and what draws are left."""
        token = next(self.generate, None)
        if not left:
            assert token is None
            return last, left
        assert token == by_hand(self.other, last, left[0])
        self.check()
        return token, [] if token in ends else left[1:]

    def do(self, then: str, text: Text) -> None:
        one, other = self.one, self.other
        others, at = text.others, int(text.where * one.position)
        draw = HOT[len(others)]
        if then in ("rewind", "stay"):
            for session in (one, other):
                session.rewind(at if then == "rewind" else session.position)
        elif then == "forward":
            assert one.forward(others).tobytes() == other.forward(others).tobytes()
        elif then == "many":
            assert forward_many([one], [others]).tobytes() == other.forward(others).tobytes()
        elif then == "next":
            expected = pick(self.model.backend, other.forward(others), draw)
            assert next_tokens_many([one], [others], [draw]) == [expected]
        elif then == "nested":
            expected = pick(self.model.backend, other.forward(others), draw)
            assert next(one.generate(others, [draw] * 9)) == expected
        elif then == "fork":
            with one.fork(at) as branch, other.fork(at) as like:
                assert same(branch, like)
                assert branch.forward(others[:1]).tobytes() == like.forward(others[:1]).tobytes()
        elif then == "save":
            with TemporaryDirectory() as folder:
                one.save(Path(folder) / "one")
                with self.model.load_session(Path(folder) / "one") as loaded:
                    assert same(loaded, other)
        elif then == "shift":
            one.shift()
            other.shift()
        elif then == "refused":
            with pytest.raises(PromptError):
                one.forward([300])
        elif then == "interrupted":  # before anything has run
            self.make_room()
            with pytest.raises(Cancelled):
                one.forward(others[: one.room], interrupted=lambda: True)
        elif then == "cancelled":  # when a part of it has
            self.make_room()
            self.cancel_half_way(others[: one.room])

    def make_room(self) -> None:
        for session in (self.one, self.other):
            if not session.room:
                session.shift()

    def cancel_half_way(self, tokens: list[int]) -> None:
        forward, backend = self.model.backend.forward, self.model.backend

        def cancelled(*arguments: Any) -> None:
            forward(*arguments)
            raise Cancelled("by a test")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backend, "forward", cancelled)
            with pytest.raises(Cancelled):
                self.one.forward(tokens)


def text(then: str, take: int = 3) -> Text:
    return Text(9, HOT[:16], [], take, then, 0.5, [4, 5, 6])


@settings(max_examples=100, deadline=None)
@given(told=st.lists(texts, min_size=1, max_size=6))
@example(told=[text("cancelled"), text("rest"), text("interrupted"), text("drop")])
@example(told=[text("nested"), text("many"), text("next"), text("shift")])
@example(told=[text("stay"), text("rewind"), text("forward"), text("rest", 0)])
def test_however_it_is_taken(model: Model, told: list[Text]) -> None:
    pair = Pair(model)
    with pair.one, pair.other:
        for text in told:
            pair.tell(text)

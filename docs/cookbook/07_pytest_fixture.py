"""A pytest fixture: load the model once for all tests, and use a seed to make them repeatable.

    python -m pytest 07_pytest_fixture.py

The function under test asks a model for a bedtime story. The same seed gives the same text on every
machine with SIMD and for any number of threads, so a test may compare whole texts. Usually it is
better to test the form of a text.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import llama2py


def bedtime_story(model: llama2py.Model, hero: str, seed: int | None = None) -> str:
    """The function under test."""
    prompt = f"Once upon a time, there was a {hero}."
    return prompt + model.generate(prompt, 120, temperature=0.7, seed=seed, stop="\n").text


@pytest.fixture(scope="session")
def model() -> Iterator[llama2py.Model]:
    """The built-in model: two megabytes, loaded within a tenth of a second, no network."""
    with llama2py.load(threads=1) as model:
        yield model


@pytest.mark.parametrize("hero", ["cat", "tired robot"])
def test_a_story_is_one_paragraph_about_its_hero(model: llama2py.Model, hero: str) -> None:
    story = bedtime_story(model, hero, seed=1)
    assert story.startswith(f"Once upon a time, there was a {hero}.")
    assert "\n" not in story
    assert len(story.split()) > 20


def test_the_same_seed_gives_the_same_story(model: llama2py.Model) -> None:
    assert bedtime_story(model, "cat", seed=1) == bedtime_story(model, "cat", seed=1)
    assert bedtime_story(model, "cat", seed=1) != bedtime_story(model, "cat", seed=2)


def test_a_hero_may_be_too_long(model: llama2py.Model) -> None:
    with pytest.raises(llama2py.PromptError, match="longer than the model's context"):
        bedtime_story(model, "very " * 600 + "long cat")


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-q", "-p", "no:cacheprovider"]))

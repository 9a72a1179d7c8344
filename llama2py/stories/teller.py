"""StoryTeller: complete stories, from an opening sentence to a last one."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count as count_from
from itertools import islice, starmap, tee

from .._util import Closing, counted
from ..engine.parameters import checked_path, known_keywords, whole_number
from ..errors import ParameterError
from ..generation.batch import Job, run_jobs
from ..generation.options import check_options
from ..generation.sampling import Sampler, SamplingParams, random_seed
from ..model import Model, StrPath, load
from .candidates import DROPPED_ABOVE, Candidate, best_of, subject_words
from .english import whole_sentences
from .guide import StoryGuide
from .names import BOYS, GIRLS, Disguise, disguise, with_another_hero
from .opening import opening_about, opening_with, subject_of

CANDIDATES = 8
# Tries for a story if the best candidate loops or lacks a word, the candidates included.
TRIES = 8
# Added to the seed from one try to the next, so that no try shares its seed with another story.
# It is not 2^64 / golden ratio, which `Coin` uses for seed 0: two tries would then be the same.
SEED_STRIDE = 0xD1B54A32D192ED03
MIN_MAX_WORDS, MAX_MAX_WORDS = 10, 10_000

# How candidates are drawn. A first sentence of the model's own may be unusual: it makes stories
# different. From there on, a low temperature keeps their sense.
_FIRST_SENTENCE = SamplingParams(1.0, 0.95)
_REST = SamplingParams(0.6, 0.9)
_REST_ABOUT = SamplingParams(0.5, 0.9)  # keeps to its subject
_SINGLE = SamplingParams(0.7, 0.9)  # of a story without other candidates

_NAME = r"((?:(?:Mr|Mrs|Ms|Dr)\. )?[A-Z]\w+)"
# The hero's name, the most reliable pattern first. The first word of a sentence is only taken for
# a name if a verb follows it.
_HERO = [
    re.compile(rf"\bnamed {_NAME}"),
    re.compile(
        r"^(?!(?:He|She|It|They|We|You|There|This|That|One|Everyone) )"
        rf"{_NAME}(?: and [A-Z]\w+)? (?:was|were|is|had|has|went|lived|liked|loved|wanted|saw)\b"
    ),
    re.compile(rf"(?<=[a-z,] ){_NAME}"),
]


@dataclass(frozen=True, slots=True)
class Story:
    """A complete story. ``str(story)`` is its text; a notebook renders it as a page.

    Attributes
    ----------
    text : str
        Whole sentences, the opening included, with a newline between paragraphs.
    title : str
        The subject, or the first name in the story.
    seed : int
        The seed, which produces the same story again.
    ended : bool
        True if the model ended the story. False if the story was cut after a sentence, because
        ``max_words`` or the context left no room for more, or because the story began to loop.
    """

    text: str
    title: str
    seed: int
    ended: bool

    @property
    def words(self) -> int:
        """The number of words in the text."""
        return len(self.text.split())

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        paragraphs = "".join(
            f"<p>{html.escape(line)}</p>" for line in self.text.split("\n") if line.strip()
        )
        return (
            '<article style="max-width: 40em; font-family: Georgia, serif; line-height: 1.5">'
            f"<h3>{html.escape(self.title)}</h3>{paragraphs}"
            '<p style="opacity: 0.6">'
            f"<small>{counted(self.words, 'word')}, seed {self.seed}</small></p>"
            "</article>"
        )


@dataclass(frozen=True, slots=True)
class _Start:
    """An opening and its tokens."""

    text: str
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class _Wish:
    """What stories to write: the arguments of a call, checked.

    Attributes
    ----------
    start, naming : _Start
        The opening, and the opening that names the missing words.
    first, rest : SamplingParams
        How to draw the first sentence and the others.
    words, subject : list of str
        The words that must appear, and those that should come back, with known names.
    max_words : int
        The maximum length.
    title : str
        The subject, or ''.
    opening : str
        The opening in the user's own words, or ''.
    disguise : Disguise
        The names to put back.
    recast : bool
        Whether the hero gets a name that the model did not choose.
    """

    start: _Start
    naming: _Start
    first: SamplingParams
    rest: SamplingParams
    words: list[str]
    subject: list[str]
    max_words: int
    title: str
    opening: str
    disguise: Disguise
    recast: bool


class StoryTeller(Closing):
    """Write complete stories. A context manager.

    The teller writes several candidates for each story in one batch, and returns the best one:
    without a loop or a sentence that comes twice, and of these the one that is most probable to the
    model itself. The first sentence is drawn at temperature 1.0 with top-p 0.95, the others at 0.6
    with 0.9, or at 0.5 in a story about a subject.

    Parameters
    ----------
    model : str, path-like or Model, optional
        A story model: a checkpoint's path or name, as in `load`, or a loaded model. Default: the
        built-in model.
    tokenizer : str or path-like, optional
        As in `load`. Not allowed with a loaded model.
    threads : int, optional
        As in `load`. Not allowed with a loaded model.
    temperature, top_p : float, optional
        As in `Model.stream`, for the whole story. If only one is given, the other is 0.6 or 0.9.
        Default: as above; with ``candidates=1``, 0.7 and 0.9.
    candidates : int
        Write this many texts for each story. The time grows with it: 8 candidates take about 8
        times as long as 1 in `many`, and 3 times as long in a single call. With 1 the first text is
        the story, unless it loops; the heroes then have the names that the model gives them.

    Raises
    ------
    CheckpointError, TokenizerError, EngineError, ParameterError
        As in `load`. Also ParameterError if ``tokenizer`` or ``threads`` comes with a loaded model.

    Examples
    --------
    >>> tell = StoryTeller()
    >>> story = tell("a dragon who is afraid of fire", seed=7)
    >>> story.text.startswith("Once upon a time, there was a dragon who was afraid of fire.")
    True
    """

    @known_keywords
    def __init__(
        self,
        model: StrPath | Model | None = None,
        tokenizer: StrPath | None = None,
        threads: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        candidates: int = CANDIDATES,
    ) -> None:
        self._candidates = whole_number("candidates", candidates, 1)
        self._params: SamplingParams | None = None
        if temperature is not None or top_p is not None:
            usual = _REST if self._candidates > 1 else _SINGLE
            self._params = SamplingParams(
                usual.temperature if temperature is None else temperature,
                usual.top_p if top_p is None else top_p,
            )
            if self._params.temperature == 0:
                self._candidates = 1  # every one would be the same
        if model is not None and not isinstance(model, Model):
            checked_path("model", model)
        self._owns_model = not isinstance(model, Model)
        for name, value in (("tokenizer", tokenizer), ("threads", threads)):
            if value is not None and not self._owns_model:
                raise ParameterError(
                    f"{name} cannot be set for a loaded model: pass it to load(), or pass a path"
                    " instead of the model"
                )
        self.model = model if isinstance(model, Model) else load(model, tokenizer, threads)

    @known_keywords
    def __call__(
        self,
        about: str = "",
        *,
        seed: int | None = None,
        opening: str = "",
        words: Sequence[str] = (),
        max_words: int = 300,
    ) -> Story:
        """Write a story.

        If every candidate loops, the story ends before the loop.

        Parameters
        ----------
        about : str
            The subject: ``"a dragon who is afraid of fire"``, ``"three kittens"``, ``"Lily and her
            cat"``, ``"Tell me about a sad frog"``. Candidates whose subject comes back are
            preferred. A name that the model does not know, in any script, is replaced by a known
            one while the story is written. Default: the model chooses.
        seed : int, optional
            0 to 2**64 - 1; the same seed gives the same story. Default: a random seed.
        opening : str
            The first words of the story, instead of ``about``.
        words : sequence of str
            Words that must appear, in any case, singular or plural. If every candidate lacks a
            word, the story gets a first sentence that names the missing words.
        max_words : int
            Maximum length in words, the opening included, 10 to 10000. The model's context may end
            the story earlier.

        Returns
        -------
        Story
            Always ends at the end of a sentence.

        Raises
        ------
        ParameterError
            If both ``about`` and ``opening`` are given, the opening has more words than
            ``max_words``, or a number is out of its range.
        PromptError
            If the opening is longer than the context or cannot be encoded.
        ClosedError
            If the model is closed.
        """
        seeds = iter([_seed(seed)])
        wish = self._wish(about, opening, words, max_words)
        return next(self._tell(seeds, wish, max_batch=max(self._candidates, TRIES if words else 1)))

    @known_keywords
    def many(
        self,
        count: int | None,
        *,
        seed: int | None = None,
        about: str = "",
        opening: str = "",
        words: Sequence[str] = (),
        max_words: int = 300,
        max_batch: int = 32,
        progress: bool = False,
    ) -> Iterator[Story]:
        """Write many stories, several at a time, which is much faster than one by one.

        Parameters
        ----------
        count : int or None
            Number of stories; None: an endless iterator.
        seed : int, optional
            Seed of the first story; each further story uses the next seed. A story is the same as
            from a call with its seed.
        about, opening, words, max_words
            As in a call.
        max_batch : int
            Candidates that are written at once, of one story or of several. Bounds the memory.
        progress : bool
            Show a progress bar on standard error.

        Returns
        -------
        iterator of Story
            In the order of their seeds.

        Raises
        ------
        ParameterError, PromptError, ClosedError
            As in a call. Raised by `many` itself, not when the first story is taken.
        """
        if count is not None:
            count = whole_number("count", count, 0)
        max_batch = whole_number("max_batch", max_batch, 1)
        seeds: Iterator[int] = (s % (1 << 64) for s in count_from(_seed(seed)))
        wish = self._wish(about, opening, words, max_words)
        stories = self._tell(islice(seeds, count), wish, max_batch)
        if progress:
            from .._util import progress_bar

            return iter(progress_bar(stories, total=count, unit="story"))
        return stories

    def __repr__(self) -> str:
        how = [f"candidates={self._candidates}"]
        if self._params is not None:
            how = [
                f"temperature={self._params.temperature:g}",
                f"top_p={self._params.top_p:g}",
                *how,
            ]
        return f"<StoryTeller {', '.join(how)}, {self.model!r}>"

    def close(self) -> None:
        """Free the model, unless the caller passed it in. A second call has no effect."""
        if self._owns_model:
            self.model.close()

    def _wish(self, about: str, opening: str, words: Sequence[str], max_words: int) -> _Wish:
        """Check the arguments of a call."""
        _ = self.model.backend  # raises `ClosedError` now, not at the first story
        if about and opening:
            raise ParameterError("about and opening are both given: use only one of them")
        for name, text in (("about", about), ("opening", opening)):
            if not isinstance(text, str):
                raise ParameterError(f"{name} is {text!r}, expected a str")
        max_words = whole_number("max_words", max_words, MIN_MAX_WORDS, MAX_MAX_WORDS)
        words = [words] if isinstance(words, str) else words
        if not isinstance(words, Iterable) or not all(isinstance(word, str) for word in words):
            raise ParameterError(f"words is {words!r}, expected a sequence of str")
        words = [" ".join(word.split()) for word in words]
        if "" in words:
            raise ParameterError("words has an empty word")
        about, opening = subject_of(about), opening.strip()
        names = disguise(about or opening, words, self.model.tokenizer, bool(opening))
        known = [names.put_on(word) for word in words]
        start = names.put_on(opening) or opening_about(names.put_on(about))
        first, rest = self._sampling(bool(about), bool(start))
        opening_start = self._start(start, max_words)
        named = opening_with(start, known)
        return _Wish(
            start=opening_start,
            naming=opening_start if named == start else self._start(named, max_words),
            first=first,
            rest=rest,
            words=known,
            subject=subject_words(names.put_on(about)),
            max_words=max_words,
            title=about[:1].upper() + about[1:],
            opening=opening,
            disguise=names,
            recast=self._candidates > 1 and not start,
        )

    def _sampling(
        self, has_subject: bool, has_start: bool
    ) -> tuple[SamplingParams, SamplingParams]:
        """Return how to draw the first sentence and the rest."""
        if self._params is not None:
            return self._params, self._params
        if self._candidates == 1:
            return _SINGLE, _SINGLE
        rest = _REST_ABOUT if has_subject else _REST
        return rest if has_start else _FIRST_SENTENCE, rest

    def _start(self, text: str, max_words: int) -> _Start:
        """Check and encode an opening."""
        if (n_words := len(text.split())) > max_words:
            raise ParameterError(
                f"the opening has {n_words} words, more than max_words ({max_words}):"
                " shorten it or raise max_words"
            )
        return _Start(text, self.model.prompt_tokens(text))

    def _tell(self, seeds: Iterator[int], wish: _Wish, max_batch: int) -> Iterator[Story]:
        """Write a story for each seed when it is requested from the iterator.

        The candidates of all stories are one queue: as soon as a text has ended, the next begins.
        """
        seeds, again = tee(seeds)
        numbers = range(self._candidates)
        tries = ((seed, number) for seed in again for number in numbers)
        texts = self._write(wish, wish.start, tries, max_batch, drops=len(numbers) > 1)
        for seed in seeds:
            written = list(islice(texts, len(numbers)))
            best = self._best(wish, wish.start, seed, written, max_batch)
            if not best.has_all(wish.words):
                tries = ((seed, number) for number in numbers)
                written = list(self._write(wish, wish.naming, tries, max_batch))
                best = self._best(wish, wish.naming, seed, written, max_batch)
            yield _story(best, wish, seed)

    def _best(
        self,
        wish: _Wish,
        start: _Start,
        seed: int,
        candidates: list[Candidate],
        max_batch: int,
    ) -> Candidate:
        """Return the best candidate, or the first good one of further tries if none is good."""
        words = wish.words if start is wish.start else []

        def is_good(candidate: Candidate) -> bool:
            return not candidate.looped and candidate.has_all(words)

        best = best_of(candidates, self.model, wish.max_words, words, wish.subject)
        dropped = [number for number, each in enumerate(candidates) if each.dropped]
        if dropped and (best.flaws(wish.max_words) or not best.has_all(words)):
            tries = ((seed, number) for number in dropped)
            finished = self._write(wish, start, tries, max_batch)
            candidates = [next(finished) if each.dropped else each for each in candidates]
            best = best_of(candidates, self.model, wish.max_words, words, wish.subject)
        # At temperature 0 every try is the same.
        n_tries = TRIES if wish.rest.temperature > 0 else 0
        if is_good(best) or n_tries <= len(candidates):
            return best
        tries = ((seed, number) for number in range(len(candidates), n_tries))
        texts = self._write(wish, start, tries, max_batch if words else 1)
        return next(filter(is_good, texts), best)

    def _write(
        self,
        wish: _Wish,
        start: _Start,
        tries: Iterator[tuple[int, int]],
        max_batch: int,
        drops: bool = False,
    ) -> Iterator[Candidate]:
        """Write a candidate for each seed and number; ``drops``: do not finish repetitive ones."""
        model = self.model
        words = wish.words if start is wish.start else []
        # Each sampler has its own parameters, instead of these.
        maker = check_options(model, None, wish.first.temperature, wish.first.top_p, {})

        def job(seed: int, number: int) -> Job:
            sampler = Sampler(model.backend, wish.first, (seed + number * SEED_STRIDE) % (1 << 64))
            guide = StoryGuide(
                model.tokenizer,
                start.text,
                wish.max_words,
                words,
                None if wish.rest is wish.first else (sampler, wish.rest),
                DROPPED_ABOVE if drops else None,
            )
            return maker.job_of(start.tokens, sampler, guide=guide)

        for each in run_jobs(model, starmap(job, tries), max_batch):
            guide = each.guide
            assert isinstance(guide, StoryGuide)
            before_loop = guide.text_before_loop
            looped = before_loop is not None
            whole = (start.text + each.text if before_loop is None else before_loop).strip()
            text = whole_sentences(whole, wish.max_words, start.text)
            # If the guide stopped the text because of its length, the cut has made it shorter.
            ended = each.finish_reason == "stop" and text == whole and not looped
            yield Candidate(each, start.text, text, ended, looped, guide.dropped, guide.n_first)


def _story(candidate: Candidate, wish: _Wish, seed: int) -> Story:
    """Make the story of the best candidate."""
    text = candidate.text
    if wish.recast:
        text = with_another_hero(text, seed)
    start = candidate.start
    if wish.opening and start == wish.start.text:  # its own words, whatever they are
        text = wish.opening + wish.disguise.take_off(text[len(start) :])
    else:
        text = wish.disguise.take_off(text)
    return Story(text, wish.title or _title(text), seed, candidate.ended)


def _title(text: str) -> str:
    """Return a title with the hero's name, or without one if no word is certainly a name."""
    for pattern in _HERO:
        for named in pattern.finditer(text):
            if pattern is _HERO[0] or _is_name(named[1], text):
                return f"The story of {named[1]}"
    return "A story"


def _is_name(word: str, text: str) -> bool:
    """Return whether a word with a capital is a name, as far as the text shows."""
    if "." in word or word in GIRLS or word in BOYS:  # Mr. Fox
        return True
    within = re.findall(rf"(?<=[a-z,] ){word}\b", text)  # not at the beginning of a sentence
    return len(within) > 1 and not re.search(rf"\b{word.lower()}\b", text)


def _seed(seed: int | None) -> int:
    return random_seed() if seed is None else whole_number("seed", seed, 0, 2**64 - 1)

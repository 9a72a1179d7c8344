"""StoryTeller: complete stories, from an opening sentence to a last one."""

from __future__ import annotations

import html
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count as count_from
from itertools import islice

from .._util import Closing, counted
from ..engine.parameters import checked_path, known_keywords, whole_number
from ..errors import ParameterError
from ..generation.batch import Job, run_jobs
from ..generation.sampling import Sampler, SamplingParams, random_seed
from ..model import Model, StrPath, load
from .english import has_word, whole_sentences
from .guide import StoryGuide
from .opening import opening_about, opening_with

# Tries for one story that loops, or that has words that must appear. The first good try is used.
CANDIDATES = 8
# Added to the seed from one try to the next, so that no try shares its seed with another story.
# It is not 2^64 / golden ratio, which `Coin` uses for seed 0: two tries would then be the same.
SEED_STRIDE = 0xD1B54A32D192ED03
MIN_MAX_WORDS, MAX_MAX_WORDS = 10, 10_000
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
    """The opening of a story, its tokens, the story's maximum length, its title or ''."""

    text: str
    tokens: list[int]
    max_words: int
    title: str


class StoryTeller(Closing):
    """Write complete stories. A context manager.

    Parameters
    ----------
    model : str, path-like or Model, optional
        A story model: a checkpoint's path or name, as in `load`, or a loaded model. Default: the
        built-in model.
    tokenizer : str or path-like, optional
        As in `load`. Not allowed with a loaded model.
    threads : int, optional
        As in `load`. Not allowed with a loaded model.
    temperature, top_p : float
        As in `Model.stream`. Lower values give more conventional stories.

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
        temperature: float = 0.7,
        top_p: float = 0.9,
    ) -> None:
        self._params = SamplingParams(temperature, top_p)
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

        If the model repeats itself in a loop, the teller tries again with up to 7 more seeds, which
        follow from ``seed``. If every try loops, the story ends before the loop.

        Parameters
        ----------
        about : str
            The subject: ``"a dragon who is afraid of fire"``, ``"three kittens"``, ``"Lily and her
            cat"``. Default: the model chooses.
        seed : int, optional
            0 to 2**64 - 1; the same seed gives the same story. Default: a random seed.
        opening : str
            The first words of the story, instead of ``about``.
        words : sequence of str
            Words that must appear, in any case, singular or plural. The teller makes up to 8 tries
            and returns the first story with all words. If every try lacks a word, the story gets a
            first sentence that names the missing words.
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
        return next(self._tell(iter([_seed(seed)]), about, opening, words, max_words, CANDIDATES))

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
        max_batch: int = 16,
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
            Stories that are generated at once, which bounds the memory. With ``words``: tries of
            one story that are generated at once, at most 8.
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
        stories = self._tell(islice(seeds, count), about, opening, words, max_words, max_batch)
        if progress:
            from .._util import progress_bar

            return iter(progress_bar(stories, total=count, unit="story"))
        return stories

    def __repr__(self) -> str:
        params = f"temperature={self._params.temperature:g}, top_p={self._params.top_p:g}"
        return f"<StoryTeller {params}, {self.model!r}>"

    def close(self) -> None:
        """Free the model, unless the caller passed it in. A second call has no effect."""
        if self._owns_model:
            self.model.close()

    def _tell(
        self,
        seeds: Iterator[int],
        about: str,
        opening: str,
        words: Sequence[str],
        max_words: int,
        max_batch: int,
    ) -> Iterator[Story]:
        """Check the arguments now; write each story when it is requested from the iterator."""
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
        about = " ".join(about.split())
        title = about[:1].upper() + about[1:]
        start = self._checked(opening.strip() or opening_about(about), max_words, title)
        if words:
            naming = self._checked(opening_with(start.text, words), max_words, title)
            return self._with_words(seeds, start, naming, words, min(max_batch, CANDIDATES))
        return self._plain(seeds, start, max_batch)

    def _checked(self, text: str, max_words: int, title: str) -> _Start:
        """Check and encode the opening of a story."""
        if (n_words := len(text.split())) > max_words:
            raise ParameterError(
                f"the opening has {n_words} words, more than max_words ({max_words}):"
                " shorten it or raise max_words"
            )
        return _Start(text, self.model.prompt_tokens(text), max_words, title)

    def _plain(self, seeds: Iterator[int], start: _Start, max_batch: int) -> Iterator[Story]:
        order: deque[int] = deque()  # seeds of the stories that are running

        def jobs() -> Iterator[Job]:
            for seed in seeds:
                order.append(seed)
                yield self._job(start, seed)

        for job in run_jobs(self.model, jobs(), max_batch):
            seed = order.popleft()
            yield _story(self._without_loop(job, start, seed), start, seed)

    def _without_loop(self, job: Job, start: _Start, seed: int) -> Job:
        """Return a finished job if its text has no loop, or the first of further tries without one.

        If every try loops, return the first job: its text is cut before the loop.
        """
        # At temperature 0 every seed gives the same text.
        n_tries = CANDIDATES if _loops(job) and self._params.temperature > 0 else 0
        for number in range(1, n_tries):
            (other,) = run_jobs(self.model, [self._job(start, _seed_of_try(seed, number))], 1)
            if not _loops(other):
                return other
        return job

    def _with_words(
        self, seeds: Iterator[int], start: _Start, naming: _Start, words: list[str], max_batch: int
    ) -> Iterator[Story]:
        """Try several times per seed; if every try lacks a word, let the opening name it."""
        for seed in seeds:
            tries = [
                self._job(start, _seed_of_try(seed, number), words) for number in range(CANDIDATES)
            ]
            for job in run_jobs(self.model, tries, max_batch):
                story = _story(job, start, seed)
                if all(has_word(story.text, word) for word in words) and not _loops(job):
                    break
            else:
                (job,) = run_jobs(self.model, [self._job(naming, seed)], 1)
                story = _story(self._without_loop(job, naming, seed), naming, seed)
            yield story

    def _job(self, start: _Start, seed: int, words: Sequence[str] = ()) -> Job:
        model = self.model
        return Job(
            start.tokens,
            Sampler(model.backend, self._params, seed),
            model.config.seq_len,
            StoryGuide(model.tokenizer, start.text, start.max_words, words),
        )


def _seed_of_try(seed: int, number: int) -> int:
    return (seed + number * SEED_STRIDE) % (1 << 64)


def _text_before_loop(job: Job) -> str | None:
    assert isinstance(job.guide, StoryGuide)
    return job.guide.text_before_loop


def _loops(job: Job) -> bool:
    return _text_before_loop(job) is not None


def _story(job: Job, start: _Start, seed: int) -> Story:
    before_loop = _text_before_loop(job)
    whole = (start.text + job.text if before_loop is None else before_loop).strip()
    text = whole_sentences(whole, start.max_words, start.text)
    # If the guide stopped the text because of its length, the cut has made it shorter.
    ended = job.finish_reason == "stop" and text == whole and before_loop is None
    return Story(text, start.title or _title(text), seed, ended)


def _title(text: str) -> str:
    """Return a title with the first name in a story."""
    for pattern in _HERO:
        if named := pattern.search(text):
            return f"The story of {named[1]}"
    return "A story"


def _seed(seed: int | None) -> int:
    return random_seed() if seed is None else whole_number("seed", seed, 0, 2**64 - 1)

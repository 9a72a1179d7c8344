"""StoryTeller: stories that begin as stories do and end where they end."""

from __future__ import annotations

import html
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count as count_from
from itertools import islice
from operator import index

from .._util import Closing
from ..errors import ParameterError
from ..generation.batch import Job, run_jobs
from ..generation.sampling import Coin, Sampler, SamplingParams, random_seed
from ..model import Model, StrPath, load
from .guide import StoryGuide
from .opening import opening_about, opening_with
from .words import has_word, whole_sentences

# Told for one story with words that must appear; the first that has them all is taken.
CANDIDATES = 8
# Between the seeds of the tries, so that they are far from other stories'. Not 2^64 / golden ratio,
# which the coin takes for seed 0: two tries would be one.
_STRIDE = 0xD1B54A32D192ED03
SHORTEST, LONGEST = 10, 10_000  # words
_NAME = r"((?:(?:Mr|Mrs|Ms|Dr)\. )?[A-Z]\w+)"
# Whom a story is about, the surest first. A sentence's first word is a name if it does something.
_NAMED = [
    re.compile(rf"\bnamed {_NAME}"),
    re.compile(
        r"^(?!(?:He|She|It|They|We|You|There|This|That|One|Everyone) )"
        rf"{_NAME}(?: and [A-Z]\w+)? (?:was|were|is|had|has|went|lived|liked|loved|wanted|saw)\b"
    ),
    re.compile(rf"(?<=[a-z,] ){_NAME}"),
]


@dataclass(frozen=True, slots=True)
class Story:
    """A story; ``str(story)`` is its text, and a notebook shows it as a page.

    Attributes
    ----------
    text : str
        Whole sentences, the opening included; paragraphs are parted by newlines.
    title : str
        What it is about, or whom it names first.
    seed : int
        Tells this story again.
    ended : bool
        True if the model ended it; False if it was cut behind a sentence, because there was no room
        for more.
    """

    text: str
    title: str
    seed: int
    ended: bool

    @property
    def words(self) -> int:
        """How many words the text has."""
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
            f'<p style="opacity: 0.6"><small>{self.words} words, seed {self.seed}</small></p>'
            "</article>"
        )


@dataclass(frozen=True, slots=True)
class _Start:
    """How a story begins, with its tokens, the most words it may have, and its title, if any."""

    text: str
    tokens: list[int]
    max_words: int
    title: str


class StoryTeller(Closing):
    """Tells stories; a context manager.

    Parameters
    ----------
    model : str, path-like or Model, optional
        A checkpoint of a story model, or a loaded one. Default: the one that comes with llama2py.
    tokenizer : str or path-like, optional
        As in `load`; a loaded model has its own.
    threads : int, optional
        As in `load`; a loaded model has its own.
    temperature, top_p : float
        As in `Model.stream`: lower is tamer.

    Raises
    ------
    CheckpointError, TokenizerError, EngineError, ParameterError
        As in `load`; ParameterError, too, for a tokenizer or threads beside a loaded model.

    Examples
    --------
    >>> tell = StoryTeller()
    >>> story = tell("a dragon who is afraid of fire", seed=7)
    >>> story.text.startswith("Once upon a time, there was a dragon who was afraid of fire.")
    True
    """

    def __init__(
        self,
        model: StrPath | Model | None = None,
        tokenizer: StrPath | None = None,
        threads: int | None = None,
        temperature: float = 0.7,
        top_p: float = 0.9,
    ) -> None:
        self._params = SamplingParams(temperature, top_p)
        self._owns_model = not isinstance(model, Model)
        for name, value in (("tokenizer", tokenizer), ("threads", threads)):
            if value is not None and not self._owns_model:
                raise ParameterError(
                    f"{name} is given with a loaded model, expected it in load(), or a path here"
                )
        self.model = model if isinstance(model, Model) else load(model, tokenizer, threads)

    def __call__(
        self,
        about: str = "",
        *,
        seed: int | None = None,
        opening: str = "",
        words: Sequence[str] = (),
        max_words: int = 300,
    ) -> Story:
        """Tell a story.

        Parameters
        ----------
        about : str
            What it is about: ``"a dragon who is afraid of fire"``, ``"three kittens"``, ``"Lily and
            her cat"``. Default: whatever the model likes.
        seed : int, optional
            0 to 2**64 - 1; the same seed tells the same story. Default: a fresh one.
        opening : str
            Its first words, instead of ``about``.
        words : sequence of str
            Must appear, in upper or lower case, as they are or as plurals. Of several tries the
            first that has them all is told; if none has, the first sentence names what was missing.
        max_words : int
            Most words, 10 to 10000, the opening's included. The model's context may end the story
            sooner.

        Returns
        -------
        Story
            Never ends amid a sentence.

        Raises
        ------
        ParameterError
            If both ``about`` and ``opening`` are given, the opening alone has more than
            ``max_words``, or a number is out of its range.
        PromptError
            If the opening is longer than the context or not encodable.
        ClosedError
            If the model is closed.
        """
        return next(self._tell(iter([_seed(seed)]), about, opening, words, max_words, CANDIDATES))

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
        """Tell many stories, several at a time: much faster than one after the other.

        Parameters
        ----------
        count : int or None
            How many; None: without end.
        seed : int, optional
            Of the first; the next has the next. Each is the story that a call with its seed tells.
        about, opening, words, max_words
            As in a call.
        max_batch : int
            How many at a time, which bounds the memory; with ``words``, how many tries of one.
        progress : bool
            Show a bar on standard error.

        Returns
        -------
        iterator of Story
            In order of the seeds.

        Raises
        ------
        ParameterError, PromptError, ClosedError
            As in a call, and at once.
        """
        if count is not None and index(count) < 0:
            raise ParameterError(f"count is {count}, expected a whole number from 0 up, or None")
        if index(max_batch) < 1:
            raise ParameterError(f"max_batch is {max_batch}, expected a whole number from 1 up")
        seeds: Iterator[int] = (s % (1 << 64) for s in count_from(_seed(seed)))
        stories = self._tell(islice(seeds, count), about, opening, words, max_words, max_batch)
        if progress:
            from .._util import progress_bar

            return iter(progress_bar(stories, total=count, unit="story"))
        return stories

    def close(self) -> None:
        """Free the model, unless it was handed in. Twice does no harm."""
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
        """Check everything now, tell as the iterator is asked."""
        _ = self.model.backend  # raises `ClosedError` now, not at the first story
        if about and opening:
            raise ParameterError("both about and opening are given, expected one of them")
        if not SHORTEST <= index(max_words) <= LONGEST:
            raise ParameterError(f"max_words is {max_words}, expected {SHORTEST} to {LONGEST}")
        words = [" ".join(word.split()) for word in ([words] if isinstance(words, str) else words)]
        if "" in words:
            raise ParameterError("a word that must appear is empty, expected at least one letter")
        about = " ".join(about.split())
        title = about[:1].upper() + about[1:]
        start = self._checked(opening.strip() or opening_about(about), max_words, title)
        if words:
            naming = self._checked(opening_with(start.text, words), max_words, title)
            return self._with_words(seeds, start, naming, words, min(max_batch, CANDIDATES))
        return self._plain(seeds, start, max_batch)

    def _checked(self, text: str, max_words: int, title: str) -> _Start:
        """A story's beginning, if it can be told."""
        if (n_words := len(text.split())) > max_words:
            raise ParameterError(
                f"the opening has {n_words} words, expected no more than max_words,"
                f" which is {max_words}"
            )
        return _Start(text, self.model.prompt_tokens(text), max_words, title)

    def _plain(self, seeds: Iterator[int], start: _Start, max_batch: int) -> Iterator[Story]:
        order: deque[int] = deque()  # the seeds of the stories in work

        def jobs() -> Iterator[Job]:
            for seed in seeds:
                order.append(seed)
                yield self._job(start, seed)

        for job in run_jobs(self.model, jobs(), max_batch):
            yield _story(job, start, order.popleft())

    def _with_words(
        self, seeds: Iterator[int], start: _Start, naming: _Start, words: list[str], max_batch: int
    ) -> Iterator[Story]:
        """For each seed several tries, and if all of them miss a word, an opening that has it."""
        for seed in seeds:
            tries = [
                self._job(start, (seed + number * _STRIDE) % (1 << 64), words)
                for number in range(CANDIDATES)
            ]
            for job in run_jobs(self.model, tries, max_batch):
                story = _story(job, start, seed)
                if all(has_word(story.text, word) for word in words):
                    break
            else:
                (job,) = run_jobs(self.model, [self._job(naming, seed)], 1)
                story = _story(job, naming, seed)
            yield story

    def _job(self, start: _Start, seed: int, words: Sequence[str] = ()) -> Job:
        model = self.model
        return Job(
            start.tokens,
            Sampler(model.backend, self._params, seed),
            model.config.seq_len,
            StoryGuide(model.tokenizer, start.text, start.max_words, words),
        )


def _story(job: Job, start: _Start, seed: int) -> Story:
    whole = (start.text + job.text).strip()
    text = whole_sentences(whole, start.max_words, start.text)
    # The guide stops a text only when it has more words than it may: it is cut, then.
    ended = job.finish_reason == "stop" and text == whole
    return Story(text, start.title or _title(text), seed, ended)


def _title(text: str) -> str:
    """Whom a story names first."""
    for pattern in _NAMED:
        if named := pattern.search(text):
            return f"The story of {named[1]}"
    return "A story"


def _seed(seed: int | None) -> int:
    return random_seed() if seed is None else Coin.checked(seed)

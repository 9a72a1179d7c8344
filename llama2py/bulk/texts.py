"""Rows to texts: the same function in one process, in many, and on Ray."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._util import Closing
from ..chat.encoder import DialogueEncoder
from ..chat.templates import find_template
from ..errors import Llama2pyError, ParameterError, PromptError
from ..generation.batch import Job, run_jobs
from ..generation.options import JobMaker, check_options
from ..model import MAX_BATCH, Model
from ..stories.teller import StoryTeller
from .identity import Identity, ModelSpec, load_identified
from .rows import Result, Row, Template, checked_parameters, named_row, parse_row, row_seed
from .shards import OutputFormat, ShardResult, encode
from .sources import ShardInput

_MOST_FAILED = 256  # rows with an error that are kept before the texts in work are finished
_MOST_MAKERS = 64  # sets of parameters that are kept


@dataclass(frozen=True, slots=True)
class Settings:
    """What a batch does with each row. Other processes get a pickled copy.

    Attributes
    ----------
    seed : int
        The job's seed.
    parameters : dict
        The parameters of every text for which a row has none of its own: those of
        `Model.generate`, without the ones that depend on time.
    template : str, optional
        Makes the prompt of a row's fields.
    chat_template : str, optional
        The format of turns, for rows with messages. Default: as in `Chat`.
    format : {'jsonl', 'parquet', 'openai'}
        The format of the shards.
    stories : dict, optional
        Write stories from nothing: arguments of `StoryTeller.many`.
    max_batch : int
        Texts at once. Changes only the speed.
    """

    seed: int = 0
    parameters: dict[str, Any] = field(default_factory=dict)
    template: str | None = None
    chat_template: str | None = None
    format: OutputFormat = "jsonl"
    stories: dict[str, Any] | None = None
    max_batch: int = MAX_BATCH

    def described(self) -> dict[str, Any]:
        """Return everything here that changes a text."""
        return {
            "seed": self.seed,
            **self.parameters,
            "template": self.template,
            "chat_template": self.chat_template,
            "stories": self.stories,
        }


@dataclass(slots=True)
class _Shard:
    """A shard in work."""

    given: ShardInput
    results: list[Result | None]
    missing: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a row belongs."""

    shard: _Shard
    index: int

    @property
    def number(self) -> int:
        return self.shard.given.first_row + self.index

    @property
    def line(self) -> bytes:
        return self.shard.given.lines[self.index]


class ShardMaker(Closing):
    """Make shards of texts with one model. A context manager.

    Parameters
    ----------
    model : Model
        The model.
    identity : dict
        What `load_identified` says about it.
    settings : Settings
        What to do.
    on_text : callable
        Called as ``on_text(tokens)`` after each row, for progress.

    Attributes
    ----------
    identity : dict
        As above.

    Raises
    ------
    BatchError
        If the template of the prompt is wrong.
    ParameterError
        If a parameter of the settings is wrong.
    """

    def __init__(
        self,
        model: Model,
        identity: Identity,
        settings: Settings,
        on_text: Callable[[int], object] = lambda tokens: None,
    ) -> None:
        self.identity = identity
        self._model, self._settings, self._on_text = model, settings, on_text
        self._template = None if settings.template is None else Template(settings.template)
        self._parameters = checked_parameters(settings.parameters)
        self._makers: dict[str, JobMaker] = {}
        self._encoder: DialogueEncoder | None = None
        if settings.stories is None:
            # Wrong values are refused now, not in every row.
            self._own_maker = self._new_maker(self._parameters, chat=False)

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        settings: Settings,
        on_text: Callable[[int], object] = lambda tokens: None,
    ) -> ShardMaker:
        """Load the model, and return a maker that uses it."""
        model, identity = load_identified(spec)
        return cls(model, identity, settings, on_text)

    def close(self) -> None:
        """Free the model."""
        self._model.close()

    def shards(self, given: Iterable[ShardInput | None]) -> Iterator[ShardResult]:
        """Yield the shard of each input, in order.

        Parameters
        ----------
        given : iterable of ShardInput or None
            Read when there is room for another text, so the batch stays full from one shard to the
            next. None: the next input may take a while, so finish the texts in work first.
        """
        if self._settings.stories is not None:
            for shard in given:
                if shard is not None:
                    yield self._encoded(shard, self._stories(shard, self._settings.stories))
            return
        in_work: deque[_Shard] = deque()
        for place, result in self._texts(_places(given, in_work)):
            shard_in_work = place.shard
            shard_in_work.results[place.index] = result
            shard_in_work.missing -= 1
            self._on_text(result.tokens)
            while in_work and not in_work[0].missing:
                done = in_work.popleft()
                yield self._encoded(done.given, _whole(done))

    def results(self, given: ShardInput) -> list[Result]:
        """Return the results of one input, in order."""
        in_work: deque[_Shard] = deque()
        for place, result in self._texts(_places([given], in_work)):
            place.shard.results[place.index] = result
        return _whole(in_work[0]) if in_work else []

    def _encoded(self, given: ShardInput, results: Sequence[Result]) -> ShardResult:
        data = encode(results, self._settings.format, self.identity)
        return ShardResult(
            number=given.number,
            first_row=given.first_row,
            rows=len(results),
            errors=sum(result.error is not None for result in results),
            tokens=sum(result.tokens for result in results),
            sha256=hashlib.sha256(data).hexdigest(),
            data=data,
        )

    # ---- stories ----

    def _stories(self, given: ShardInput, wish: dict[str, Any]) -> list[Result]:
        """Write stories whose seeds are consecutive: row 0 has the seed of the whole job."""
        first = row_seed(self._settings.seed, "stories", [], self._parameters)
        tell = StoryTeller(self._model, **self._parameters)
        stories = tell.many(
            given.n_rows,
            seed=(first + given.first_row) % (1 << 64),
            max_batch=self._settings.max_batch,
            **wish,
        )
        results = []
        for number, story in enumerate(stories, given.first_row):
            tokens = len(self._model.tokenizer.encode(story.text))
            reason = "stop" if story.ended else "length"
            row = Row(number, str(number))
            results.append(Result(row, story.text, reason, 0, tokens, story.seed))
            self._on_text(tokens)
        return results

    # ---- texts ----

    def _texts(self, places: Iterator[_Place | None]) -> Iterator[tuple[_Place, Result]]:
        """Yield the result of each row, as soon as it is known."""
        started: deque[tuple[_Place, Row]] = deque()
        failed: list[tuple[_Place, Result]] = []
        at_end = False

        def jobs() -> Iterator[Job]:
            nonlocal at_end
            for place in places:
                if place is None:
                    if started or failed:
                        return
                    continue
                row = None
                try:
                    row = parse_row(place.line, place.number, self._template)
                    job = self._job(row)
                except (PromptError, ParameterError) as error:
                    row = row or named_row(place.line, place.number)
                    failed.append((place, _failed(row, error)))
                    if len(failed) >= _MOST_FAILED:
                        return
                    continue
                started.append((place, row))
                yield job
            at_end = True

        while not at_end:
            try:
                for job in run_jobs(self._model, jobs(), self._settings.max_batch):
                    place, row = started.popleft()
                    yield place, _result(row, job)
                    while failed:
                        yield failed.pop()
            except (PromptError, ParameterError):
                # One text ended the batch. The others do not depend on it: each runs alone.
                while started:
                    place, row = started.popleft()
                    yield place, self._alone(row)
            while failed:
                yield failed.pop()

    def _alone(self, row: Row) -> Result:
        try:
            (job,) = run_jobs(self._model, [self._job(row)], 1)
        except (PromptError, ParameterError) as error:
            return _failed(row, error)
        return _result(row, job)

    def _job(self, row: Row) -> Job:
        parameters = {**self._parameters, **row.parameters} if row.parameters else self._parameters
        seed = parameters.get("seed")
        chat = row.messages is not None
        if seed is None:
            request: Any = row.messages if chat else row.prompt
            seed = row_seed(self._settings.seed, row.id, request, parameters)
        if row.messages is not None:
            return self._maker(parameters, chat=True).job(self._dialogue(row.messages), seed)
        assert row.prompt is not None
        maker = self._maker(parameters, chat=False) if row.parameters else self._own_maker
        return maker.job(row.prompt, seed)

    def _maker(self, parameters: dict[str, Any], chat: bool) -> JobMaker:
        key = json.dumps([chat, parameters], sort_keys=True)
        if key not in self._makers:
            if len(self._makers) >= _MOST_MAKERS:
                self._makers.clear()
            self._makers[key] = self._new_maker(parameters, chat)
        return self._makers[key]

    def _new_maker(self, parameters: dict[str, Any], chat: bool) -> JobMaker:
        options = {name: value for name, value in parameters.items() if name != "seed"}
        max_tokens = options.pop("max_tokens", None)
        temperature, top_p = options.pop("temperature", 1.0), options.pop("top_p", 0.9)
        if chat:
            encoder = self._turns()
            options["stop"] = [*encoder.stop, *options.get("stop", ())]
            options.setdefault("stop_tokens", encoder.stop_tokens)
        how = max_tokens, temperature, top_p
        # The names come from a file: check_options checks them.
        return check_options(self._model, *how, options)  # type: ignore[arg-type]

    # ---- dialogues ----

    def _turns(self) -> DialogueEncoder:
        if self._encoder is None:
            model = self._model
            controls = model.tokenizer.specials.control
            template = find_template(self._settings.chat_template, model.conventions, controls)
            self._encoder = DialogueEncoder(template, model.tokenizer, model.conventions)
        return self._encoder

    def _dialogue(self, messages: list[dict[str, Any]]) -> list[int]:
        """Encode a dialogue as `Chat` does; the text continues a last message of the assistant."""
        encoder, last = self._turns(), messages[-1]["role"]
        if last == "system":
            raise PromptError("the dialogue has no message to answer")
        for message in messages:
            if message["role"] != "assistant":
                encoder.check(message["content"])
        return encoder.tokens(*encoder.render(messages, continued=last == "assistant"))


def _places(given: Iterable[ShardInput | None], in_work: deque[_Shard]) -> Iterator[_Place | None]:
    """Yield the place of each row, and note each shard when its first row is requested."""
    for shard_input in given:
        if shard_input is None:
            yield None
            continue
        n_rows = len(shard_input.lines)
        shard = _Shard(shard_input, [None] * n_rows, n_rows)
        in_work.append(shard)
        for index in range(n_rows):
            yield _Place(shard, index)


def _whole(shard: _Shard) -> list[Result]:
    return [result for result in shard.results if result is not None]


def _failed(row: Row, error: Llama2pyError) -> Result:
    return Result(row, error=str(error))


def _result(row: Row, job: Job) -> Result:
    return Result(
        row,
        job.text if row.messages is None else job.text.strip(),
        job.finish_reason or "length",
        len(job.prompt_tokens),
        len(job.tokens),
        job.sampler.seed,
    )

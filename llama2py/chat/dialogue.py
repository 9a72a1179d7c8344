"""Chat: a dialogue with a model that was trained on dialogues."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast, get_args

from .._util import Closing, counted
from ..engine.parameters import instance, one_of, unknown_option, whole_number
from ..engine.session import SessionOverflow
from ..errors import ContextError
from ..generation.job import Job
from ..generation.options import Options, SamplingOptions, check_options
from ..generation.prefix_cache import shared
from ..generation.stream import Stream
from ..model import Model
from .templates import LLAMA2, Message, TurnEncoder, default_system, find_template

if TYPE_CHECKING:
    from typing_extensions import Unpack  # comes with type checkers

# When old exchanges are dropped, at least 1 / 4 of the context becomes free for the answer.
_FREE_SHARE = 4


def render_turn(user: str, system: str | None = None) -> str:
    """Return a user's turn in the format of Llama 2; only the first turn has a system prompt.

    Source: llama2.c's ``run.c``, which follows ``chat_completion`` in Meta's ``generation.py``.
    """
    return "".join(LLAMA2.render(user, system))


@dataclass
class _Exchange:
    """A user's turn and the answer to it."""

    user: str
    job: Job

    @property
    def has_answer(self) -> bool:
        """Whether the answer has at least one token; the dialogue forgets a turn without one."""
        return self.job.timings.generated_tokens > 0


class ChatOptions(SamplingOptions, total=False):
    """More options of `Chat`; each is the option of `Options` with this name."""

    stop: str | Iterable[str]


class Chat(Closing):
    """A dialogue with a model, which remembers the earlier turns. A context manager.

    Parameters
    ----------
    model : Model
        The chat model.
    system : str, optional
        The system prompt, which the model reads before the first turn. It can be changed later by
        setting the attribute ``system``; the next turn then runs the dialogue again with the new
        one. Default: the default of the model's ChatML template, or no system prompt. ``""``: no
        system prompt.
    temperature, top_p, seed
        As in `Model.stream`.
    max_tokens : int, optional
        Maximum number of tokens of the whole dialogue, prompts included. Default, and upper limit:
        the model's context.
    template : {'llama2', 'mistral', 'llama3', 'chatml', 'zephyr', 'plain'}, optional
        The format of the turns. Default: the template that the checkpoint's metadata names, or else
        Llama 2's, which is bit-identical to llama2.c's. ``llama3`` does not write the dates that
        Llama 3.1 and later put before the system prompt; add them to ``system`` if you want them.
        ``plain`` writes lines of ``User:`` and ``Assistant:``, for models without a chat template.
    overflow : {'error', 'shift'}
        What happens when a turn no longer fits in the context. 'error': `say` raises ContextError.
        'shift': the oldest exchanges are dropped, and a long answer drops its oldest tokens; the
        system prompt stays. The remaining dialogue is run again, which takes as long as a prompt of
        the same length. With 'shift', ``max_tokens`` applies to each turn, not to the dialogue.
    **options
        More sampling options, and ``stop``, texts that end an answer: see `Options`.

    Attributes
    ----------
    system : str or None
        The system prompt.
    template : str
        The name of the template in use.

    Raises
    ------
    ParameterError
        If the template is unknown or needs a token that the vocabulary lacks, or if a number is
        out of its range.

    Notes
    -----
    A message cannot fake a turn. Special tokens appear only where the template writes them, and a
    message that contains the text of one (``<|eot_id|>``, ``[INST]``) is refused, as in Meta's
    code.

    An answer stays in the context as the tokens that the model generated. Hugging Face's templates
    encode the whole dialogue again for each turn, which gives the same tokens unless the model
    spells a word unlike its tokenizer. For Llama 2, Meta's code also strips messages and ends an
    answer with a space; llama2.c and this class do neither.

    Examples
    --------
    >>> from llama2py import load
    >>> with Chat(load(), template="plain", seed=1, max_tokens=60) as chat:
    ...     answer = chat.say("Tell me of a dragon.").finish().text
    ...     [message["role"] for message in chat.messages]
    ['user', 'assistant']
    """

    def __init__(
        self,
        model: Model,
        system: str | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | None = None,
        max_tokens: int | None = None,
        template: str | None = None,
        overflow: SessionOverflow = "error",
        **options: Unpack[ChatOptions],
    ) -> None:
        instance("model", model, Model, "a Model: load() returns one")
        if system is not None:
            instance("system", system, str, "a str or None")
        one_of("overflow", overflow, get_args(SessionOverflow))
        if unknown := options.keys() - ChatOptions.__annotations__.keys():
            named = ("system", "temperature", "top_p", "seed", "max_tokens", "template", "overflow")
            raise unknown_option(min(unknown), [*ChatOptions.__annotations__, *named])
        if max_tokens is not None:
            max_tokens = whole_number("max_tokens", max_tokens, 0)
        context = model.config.seq_len
        conventions = model.conventions
        found = find_template(template, conventions, model.tokenizer.specials.control)
        self._encoder = TurnEncoder(found, model.tokenizer, conventions)
        self._model = model
        self.template = found.name
        self.system = system
        self._default_system = (
            default_system(conventions.chat_template) if found.name == "chatml" else None
        )
        more = cast("Options", options)  # with fewer keys
        maker = check_options(model, context, temperature, top_p, more)
        self._maker = replace(
            maker,
            stop_tokens=self._encoder.stop_tokens,
            stop=found.stop + maker.stop,
            overflow="shift" if overflow == "shift" else "stop",
        )
        self._sampler = maker.sampler(seed)
        self._session = model.session()
        self._is_closed = False
        self._max_tokens = context if max_tokens is None else min(max_tokens, context)
        self._shifts = overflow == "shift"
        self._exchanges: list[_Exchange] = []
        self._dropped = 0  # exchanges that no longer fit in the context

    @property
    def room(self) -> int:
        """How many more tokens the dialogue can take; with 'shift', how many the next turn can."""
        if self._shifts:
            return self._max_tokens
        return max(0, self._max_tokens - self._session.position)

    @property
    def messages(self) -> list[Message]:
        """The dialogue so far, in the format that other libraries use.

        The last answer may still grow. Exchanges that 'shift' has dropped are included.
        """
        system = self._system_prompt
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        for exchange in self._exchanges:
            if exchange.has_answer:
                messages.append({"role": "user", "content": exchange.user})
                answer = exchange.job.text.strip()
                messages.append({"role": "assistant", "content": answer})
        return messages

    @property
    def _system_prompt(self) -> str | None:
        return self._default_system if self.system is None else self.system

    def say(self, user: str) -> Stream:
        """Add a user's turn and start the answer.

        Parameters
        ----------
        user : str
            The user's message.

        Returns
        -------
        Stream
            The assistant's answer. It ends with the template's end token, with EOS, or when `room`
            is used up (``finish_reason`` 'length'). An answer that is not read to its end, or that
            the next turn cuts off, stays in the dialogue as far as it was read. A turn whose answer
            has no token yet is forgotten.

        Raises
        ------
        ContextError
            If the turn no longer fits in the context; the dialogue does not change.
        PromptError
            If the message contains a marker of the template, is not a str, or cannot be encoded.
        """
        system = self._system_prompt
        self._encoder.check(user)
        self._encoder.check(system or "", "system prompt")
        past = [exchange for exchange in self._exchanges if exchange.has_answer]
        tokens, dropped, kept = self._fitting(past, user, system)
        for exchange in self._exchanges[-1:]:  # an unfinished answer ends here
            exchange.job.finish_reason = exchange.job.finish_reason or "cancelled"
        self._session.rewind(min(shared(self._session.tokens, tokens), len(tokens) - 1))
        self._session.kept = kept
        turn = tokens[self._session.position :]
        room = self._max_tokens if self._shifts else max(0, self.room - len(turn) + 1)
        job = self._maker.job_of(turn, self._sampler, room)
        self._exchanges = [*past, _Exchange(user, job)]
        self._dropped = dropped
        return Stream(self._session, self._model.tokenizer, job, owns_session=False)

    def _fitting(
        self, past: list[_Exchange], user: str, system: str | None
    ) -> tuple[list[int], int, int]:
        """Encode the dialogue and this turn so that they fit in the context.

        Returns
        -------
        tokens : list of int
            The tokens of the dialogue and this turn.
        dropped : int
            How many of the oldest exchanges they leave out.
        kept : int
            How many of the first tokens a shift must keep: BOS and the system prompt.
        """
        context = self._model.config.seq_len
        dropped = self._dropped
        tokens = self._tokens(past[dropped:], user, system)
        if len(tokens) > context and self._shifts:
            while len(tokens) > context - context // _FREE_SHARE and dropped < len(past):
                dropped += 1
                tokens = self._tokens(past[dropped:], user, system)
        if len(tokens) > context:
            run = shared(self._session.tokens, tokens)
            raise ContextError(
                f"the turn does not fit: it has {counted(len(tokens) - run, 'token')}, and the"
                f" model's context has room for {context - run} more"
            )
        kept = 1
        if self._shifts:
            # Two different first messages share exactly BOS and the system prompt.
            other = "?" if user[:1] != "?" else "!"
            kept = max(1, shared(tokens, self._tokens([], other, system)))
        return tokens, dropped, kept

    def _tokens(self, past: list[_Exchange], user: str, system: str | None) -> list[int]:
        encoder = self._encoder
        if encoder.template.end is None:
            return encoder.text([(e.user, e.job.text) for e in past], user, system)
        tokens: list[int] = []
        for i, exchange in enumerate(past):
            first = i == 0
            tokens += encoder.turn(exchange.user, system if first else None, first)
            tokens += exchange.job.tokens + encoder.end()
        return tokens + encoder.turn(user, None if past else system, not past)

    def __repr__(self) -> str:
        turns = counted(sum(exchange.has_answer for exchange in self._exchanges), "turn")
        if self._is_closed:
            return f"<Chat {self.template}, {turns} (closed)>"
        return f"<Chat {self.template}, {turns}, room for {counted(self.room, 'token')}>"

    def close(self) -> None:
        """Free the memory. A second call has no effect."""
        self._is_closed = True
        self._session.close()

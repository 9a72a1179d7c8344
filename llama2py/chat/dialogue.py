"""Chat with a model that was trained on dialogues."""

from __future__ import annotations

from dataclasses import dataclass

from .._util import Closing
from ..engine.session import SessionOverflow
from ..errors import ContextError, ParameterError
from ..generation.job import Job
from ..generation.prefix_cache import shared
from ..generation.sampling import Sampler, SamplingParams
from ..generation.stream import Stream
from ..model import Model
from .templates import LLAMA2, Message, Writer, default_system, find_template

# Of the context: so much is left for an answer where older turns are dropped for it.
_FREE = 4


def render_turn(user: str, system: str | None = None) -> str:
    """What a model of Llama 2's kind reads for a turn; a system prompt belongs to the first one.

    Source: llama2.c's ``run.c``, after ``chat_completion`` in Meta's ``generation.py``.
    """
    return "".join(LLAMA2.render(user, system))


@dataclass
class _Exchange:
    """A user's turn and what came of it."""

    user: str
    job: Job

    @property
    def begun(self) -> bool:
        """Whether the answer has begun; a turn without one leaves no trace."""
        return self.job.timings.generated_tokens > 0


class Chat(Closing):
    """A dialogue: the model remembers the turns so far. A context manager.

    Parameters
    ----------
    model : Model
        Who answers.
    system : str, optional
        What the model is told before the first turn; the attribute ``system`` may be set, too, and
        later the dialogue is run again with it. Default: what the model's ChatML template has for
        that, or nothing; ``""``: nothing.
    temperature, top_p, seed
        As in `Model.stream`.
    max_tokens : int, optional
        Tokens of the whole dialogue, prompts included. Default, and at most: the context.
    template : {'llama2', 'mistral', 'llama3', 'chatml', 'zephyr', 'plain'}, optional
        How turns are written. Default: as the checkpoint's metadata says, or else Llama 2's way,
        which is llama2.c's to the bit. ``llama3`` is Llama 3's; the dates that 3.1 and later put
        before the system prompt are yours to put there. ``plain`` has lines of ``User:`` and
        ``Assistant:``, for models that were trained on none of these.
    overflow : {'error', 'shift'}
        What a turn does that does not fit in the context any more: raise ContextError, or drop the
        oldest exchanges, and in a long answer its older tokens; the system prompt stays. What is
        left is run again, which takes as long as a prompt of its length. With 'shift'
        ``max_tokens`` counts from turn to turn: each may take so many beside what is remembered.

    Raises
    ------
    ParameterError
        If the template is unknown, or needs a token that the vocabulary lacks.

    Notes
    -----
    A message cannot forge a turn: special tokens stand only where the template puts them, and a
    message that holds the text of one (``<|eot_id|>``, ``[INST]``) is refused, as by Meta's code.

    An answer stays in the context as the tokens that the model drew. Hugging Face's templates write
    the dialogue anew each turn, which gives the same tokens where the model spells as its tokenizer
    does; and of Llama 2 Meta's code strips the texts and ends an answer with a space, as llama2.c
    and this do not.

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
    ) -> None:
        if overflow not in ("error", "shift"):
            raise ParameterError(f"overflow is {overflow!r}, expected 'error' or 'shift'")
        context = model.config.seq_len
        conventions = model.conventions
        found = find_template(template, conventions, model.tokenizer.specials.control)
        self._writer = Writer(found, model.tokenizer, conventions)
        self._model = model
        self.template = found.name
        """The name of the template in use."""
        self.system = system
        self._default_system = (
            default_system(conventions.chat_template) if found.name == "chatml" else None
        )
        self._sampler = Sampler(model.backend, SamplingParams(temperature, top_p), seed)
        self._session = model.session()
        self._limit = context if max_tokens is None else min(max_tokens, context)
        self._shifts = overflow == "shift"
        self._exchanges: list[_Exchange] = []
        self._dropped = 0  # exchanges that the model remembers no more

    @property
    def room(self) -> int:
        """How many more tokens the dialogue may take; with 'shift', the next turn may."""
        return self._limit if self._shifts else max(0, self._limit - self._session.position)

    @property
    def messages(self) -> list[Message]:
        """The dialogue so far, as other libraries have it; the last answer may still grow.

        Exchanges that 'shift' has dropped are among them.
        """
        system = self._told
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        for exchange in self._exchanges:
            if exchange.begun:
                messages.append({"role": "user", "content": exchange.user})
                answer = exchange.job.text.strip()
                messages.append({"role": "assistant", "content": answer})
        return messages

    @property
    def _told(self) -> str | None:
        return self._default_system if self.system is None else self.system

    def say(self, user: str) -> Stream:
        """A user's turn.

        Parameters
        ----------
        user : str
            What the user says.

        Returns
        -------
        Stream
            The assistant's answer. The template's end token ends it, and so does EOS, and the end
            of the room (``finish_reason`` 'length'). Who breaks it off has heard just that much of
            it, also where the next turn does so; a turn whose answer has not begun leaves no trace.

        Raises
        ------
        ContextError
            If the turn does not fit in the context any more; the dialogue stays as it was.
        PromptError
            If the text holds what the template parts turns with, or is not encodable.
        """
        system = self._told
        self._writer.check(user)
        self._writer.check(system or "", "system prompt")
        past = [exchange for exchange in self._exchanges if exchange.begun]
        tokens, dropped, kept = self._fitting(past, user, system)
        for exchange in self._exchanges[-1:]:  # an answer that was not heard to its end is over
            exchange.job.finish_reason = exchange.job.finish_reason or "cancelled"
        self._session.rewind(min(shared(self._session.tokens, tokens), len(tokens) - 1))
        self._session.kept = kept
        turn = tokens[self._session.position :]
        room = self._limit if self._shifts else max(0, self.room - len(turn) + 1)
        template = self._writer.template
        job = Job(
            turn,
            self._sampler,
            max_tokens=room,
            stop_tokens=self._writer.stop_tokens,
            stop=template.stop,
            overflow="shift" if self._shifts else "stop",
        )
        self._exchanges = [*past, _Exchange(user, job)]
        self._dropped = dropped
        return Stream(self._session, self._model.tokenizer, job, owns_session=False)

    def _fitting(
        self, past: list[_Exchange], user: str, system: str | None
    ) -> tuple[list[int], int, int]:
        """The tokens of the dialogue and this turn, how many exchanges they leave out, how much of
        them is the system prompt."""
        context = self._model.config.seq_len
        dropped = self._dropped
        tokens = self._tokens(past[dropped:], user, system)
        if len(tokens) > context and self._shifts:
            while len(tokens) > context - context // _FREE and dropped < len(past):
                dropped += 1
                tokens = self._tokens(past[dropped:], user, system)
        if len(tokens) > context:
            run = shared(self._session.tokens, tokens)
            raise ContextError(
                f"this turn's {len(tokens) - run} tokens do not fit:"
                f" the model's context has room for {context - run} more"
            )
        kept = 1
        if self._shifts:
            # Whatever is said first, it begins with the same tokens: BOS and the system prompt.
            other = "?" if user[:1] != "?" else "!"
            kept = max(1, shared(tokens, self._tokens([], other, system)))
        return tokens, dropped, kept

    def _tokens(self, past: list[_Exchange], user: str, system: str | None) -> list[int]:
        writer = self._writer
        if writer.template.end is None:
            return writer.text([(e.user, e.job.text) for e in past], user, system)
        tokens: list[int] = []
        for i, exchange in enumerate(past):
            first = i == 0
            tokens += writer.turn(exchange.user, system if first else None, first)
            tokens += exchange.job.tokens + writer.end()
        return tokens + writer.turn(user, None if past else system, not past)

    def close(self) -> None:
        """Free the memory. Twice does no harm."""
        self._session.close()

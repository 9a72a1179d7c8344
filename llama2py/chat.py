"""Chat with a model that was trained on Llama 2's ``[INST]`` dialogues."""

from __future__ import annotations

from .closing import Closing
from .errors import PromptError
from .generation import Stream
from .job import Job
from .model import Model
from .sampling import Sampler, SamplingParams


def render_turn(user: str, system: str | None = None) -> str:
    """What the model reads for a user's turn; a system prompt belongs to the first one.

    Source: llama2.c's ``run.c``, after ``chat_completion`` in Meta's ``generation.py``.
    """
    if system:
        return f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST]"
    return f"[INST] {user} [/INST]"


class Chat(Closing):
    """A dialogue: the model remembers the turns so far. A context manager.

    Parameters
    ----------
    model : Model
        Who answers.
    system : str, optional
        What the model is told before the first turn; the attribute ``system`` may be set until
        then.
    temperature, top_p, seed
        As in `Model.stream`.
    max_tokens : int, optional
        Tokens of the whole dialogue, prompts included. Default, and at most: the context.
    """

    def __init__(
        self,
        model: Model,
        system: str | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        context = model.config.seq_len
        self._model = model
        self.system = system
        self._sampler = Sampler(model.backend, SamplingParams(temperature, top_p), seed)
        self._session = model.session()
        self._limit = context if max_tokens is None else min(max_tokens, context)
        self._answer: Stream | None = None
        self._answer_from = 0  # where in the context the last turn began
        self._pending: list[int] = []  # to be run before the next turn

    @property
    def room(self) -> int:
        """How many more tokens the dialogue may take."""
        return max(0, self._limit - self._session.position)

    def say(self, user: str) -> Stream:
        """A user's turn.

        Parameters
        ----------
        user : str
            What the user says.

        Returns
        -------
        Stream
            The assistant's answer. EOS ends it, and so does the end of the room
            (``finish_reason`` 'length'). Who breaks it off has heard just that much of it.

        Raises
        ------
        PromptError
            If the turn does not fit in the context any more; the dialogue stays as it was.
        """
        tokenizer = self._model.tokenizer
        system = None if self._session.position else self.system
        tokens = tokenizer.encode(render_turn(user, system), bos=True)
        tokens = [*self._end_of_last_turn(), *tokens]
        if len(tokens) > self._session.room:
            raise PromptError(
                f"this turn's {len(tokens)} tokens do not fit:"
                f" the model's context has room for {self._session.room} more"
            )
        self._answer_from = self._session.position
        self._answer = Stream(
            self._session,
            tokenizer,
            Job(
                tokens,
                self._sampler,
                max_tokens=max(0, self.room - len(tokens) + 1),
                stop_tokens=frozenset([tokenizer.eos_id]),
            ),
            owns_session=False,
        )
        return self._answer

    def _end_of_last_turn(self) -> list[int]:
        """What the last answer has sampled but not run, and the EOS that ends every answer.

        The same again as long as no later turn has begun to run.
        """
        run = self._session.position - self._answer_from
        if self._answer is not None and run:
            unrun = self._answer.tokens[run - len(self._answer.prompt_tokens) :]
            self._pending = [*unrun, self._model.tokenizer.eos_id]
            self._answer = None
        return self._pending

    def close(self) -> None:
        """Free the memory. Twice does no harm."""
        self._session.close()

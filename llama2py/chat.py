"""Chat with a model that was trained on Llama 2's ``[INST]`` dialogues."""

from __future__ import annotations

from types import TracebackType

from .generation import Stream
from .model import Model
from .sampling import Sampler, SamplingParams


def render_turn(user: str, system: str | None = None) -> str:
    """What the model reads for a user's turn; a system prompt belongs to the first one.

    Source: llama2.c's ``run.c``, after ``chat_completion`` in Meta's ``generation.py``.
    """
    if system:
        return f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST]"
    return f"[INST] {user} [/INST]"


class Chat:
    """A dialogue: the model remembers the turns so far. A context manager.

    Parameters
    ----------
    model : Model
        Who answers.
    system : str, optional
        What the model is told before the first turn; may be set until then (attribute ``system``).
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
            The assistant's answer; iterate it to its end before the next turn. EOS ends it, and so
            does the end of the room (``finish_reason`` 'length').

        Raises
        ------
        PromptError
            When iterated, if the turn does not fit in the context any more.
        """
        tokenizer = self._model.tokenizer
        tokens = tokenizer.encode(render_turn(user, self.system), bos=True)
        self.system = None
        if self._answer is not None and self._answer.finish_reason == "stop":
            tokens.insert(0, tokenizer.eos_id)  # it ended the last answer, and has not been run
        self._answer = Stream(
            self._session,
            self._sampler,
            tokenizer,
            tokens,
            max_tokens=max(0, self.room - len(tokens) + 1),
            stop_tokens=frozenset([tokenizer.eos_id]),
            owns_session=False,
        )
        return self._answer

    def close(self) -> None:
        """Free the memory. Twice does no harm."""
        self._session.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

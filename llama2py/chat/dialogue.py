"""Chat: a dialogue with a model that was trained on dialogues."""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

from .._util import Closing, counted
from ..checkpoint import Conventions
from ..config import ModelConfig
from ..engine.backend import Backend
from ..engine.parameters import checked_path, instance, one_of, unknown_option, wrong
from ..engine.session import Session
from ..errors import ContextError, ParameterError, PromptError, SessionError
from ..formats.atomic_write import replacing
from ..formats.bounded_json import Limits, parse_object
from ..formats.input_file import named, read_whole
from ..generation.job import Job
from ..generation.options import ChatOptions, JobMaker, Options, check_options
from ..generation.prefix_cache import shared
from ..generation.sampling import Sampler
from ..generation.stream import AsyncStream, Stream
from ..tokenizers.tokenizer import Tokenizer
from .encoder import DialogueEncoder
from .templates import Exact, Message, find_template, texts_of

if TYPE_CHECKING:
    from typing_extensions import Unpack  # comes with type checkers

ChatOverflow = Literal["trim", "shift", "error"]
# Old exchanges are left out when less than 1 / 8 of the context is free for the answer, until 1 / 2
# is: what remains is run again, and that should be rare.
_LEAST_FREE, _FREED = 8, 2
_FORMAT = "llama2py chat 1"
# The parameters of `Chat` that are not options of an answer.
_OWN = ("system", "messages", "template", "variables", "overflow", "session")
_LIMITS = Limits(size=64 << 20, containers=100_000, items=2_000_000)  # of a saved dialogue


class ChatModel(Protocol):
    """What a `Chat` needs from a `Model`."""

    tokenizer: Tokenizer
    stop_tokens: frozenset[int]
    conventions: Conventions

    @property
    def config(self) -> ModelConfig:
        """The model's hyperparameters."""

    @property
    def backend(self) -> Backend:
        """The engine."""

    def session(self) -> Session:
        """Return a new session."""


@dataclass
class _Answer:
    """An answer that has begun.

    Parameters
    ----------
    job : Job
        Generates it.
    text, mark : str
        The prompt's text and the mark in it: see `DialogueEncoder.render`.
    last : dict
        The last message of the prompt.
    was_said : bool
        Whether `say` added that message.
    message : dict or None
        The assistant's message, once there is one.
    prefill : str
        The beginning of the answer that the user wrote.
    content : str
        What `Chat` last wrote into the message.
    """

    job: Job
    text: str
    mark: str
    last: Message
    was_said: bool
    message: Message | None = None
    prefill: str = ""
    content: str = ""

    @property
    def has_begun(self) -> bool:
        """Whether the model has drawn a token; the dialogue forgets a turn without an answer."""
        return self.job.timings.generated_tokens > 0


@dataclass
class _Known:
    """The tokens of the dialogue so far, which the model has read or written.

    Attributes
    ----------
    text : str
        The text that they spell, as a template renders it.
    tokens : list of int
        The tokens.
    answers : dict of int to (dict, str, str)
        By the ``id`` of a message: the message, which must live as long as its id, its content, and
        the answer as the model wrote it.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    answers: dict[int, tuple[Message, str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Prompt:
    """A dialogue that fits in the context."""

    text: str
    mark: str
    tokens: list[int]
    is_growth: bool  # of what the model has read or written


class Chat(Closing):
    """A dialogue with a model, which remembers the earlier turns. A context manager.

    Parameters
    ----------
    model : Model
        The chat model.
    system : str, optional
        The system prompt. Default: none, or the template's own default.
    messages : iterable of dict, optional
        The dialogue so far: ``{"role": .., "content": ..}``, as in other libraries.
    template : str, optional
        The format of the turns: the name of a form (``llama2``, ``mistral``, ``llama3``,
        ``chatml``, ``zephyr``, ``plain``), the name of one of the model's own templates, or a Jinja
        program. Default: the model's own template. Files of llama2.c and Meta have none; their
        vocabulary decides, and the default is Llama 2's form, bit-identical to llama2.c's.
    variables : dict, optional
        What else the template sees: ``{"enable_thinking": False}``, ``{"tools": [..]}``.
    overflow : {'trim', 'shift', 'error'}
        What happens when a turn no longer fits in the context. 'trim': the oldest exchanges after
        the system prompt are left out; the attribute ``messages`` keeps them. 'shift': the same,
        and an answer that reaches the end of the context forgets its oldest tokens. 'error': `say`
        raises ContextError.
    session : Session, optional
        The session to run in, such as one from `Model.load_session`. What it has in common with the
        dialogue is not run again. It is not closed with the chat.
    **options
        ``max_tokens``, ``temperature``, ``top_p``, ``seed`` and all options of `Options` that apply
        to an answer: the defaults of each `say`.

    Attributes
    ----------
    template : str
        The name of the template in use.
    session : Session
        The session that the dialogue runs in.

    Raises
    ------
    ParameterError
        If the template is unknown, needs jinja2 and it is missing, or needs a token that the
        vocabulary lacks, or if an option is wrong.
    PromptError
        If a message is malformed.

    Notes
    -----
    A message cannot fake a turn. Special tokens appear only where the template writes them; a
    message that spells one out is encoded as ordinary characters. A message that contains a text by
    which the template marks turns (``[INST]``, ``### Response:``) is refused, as in Meta's code.

    An answer stays in the context as the tokens that the model generated, wherever the template
    renders it as the model wrote it. Each turn then only runs its own tokens.

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
        model: ChatModel,
        system: str | None = None,
        messages: Iterable[Message] = (),
        *,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        overflow: ChatOverflow = "trim",
        session: Session | None = None,
        **options: Unpack[ChatOptions],
    ) -> None:
        one_of("overflow", overflow, get_args(ChatOverflow))
        if not isinstance(getattr(model, "tokenizer", None), Tokenizer):
            raise wrong("model", model, "a Model: load() returns one")
        if system is not None:
            instance("system", system, str, "a str or None")
        self._model = model
        self._overflow: ChatOverflow = overflow
        self._options: ChatOptions = options
        maker = self._maker({})
        if variables is not None and not isinstance(variables, Mapping):
            raise wrong("variables", variables, "a mapping")
        variables = dict(variables or {})
        controls = model.tokenizer.specials.control
        has_tools = variables.get("tools") is not None
        found = find_template(template, model.conventions, controls, has_tools)
        self.template = found.name
        self._settings = {"template": template, "variables": variables, "overflow": overflow}
        self._encoder = DialogueEncoder(found, model.tokenizer, model.conventions, variables)
        self._messages = _checked(messages)
        self._answer: _Answer | None = None
        if system is not None:
            self.system = system
        self._sampler = Sampler(model.backend, maker.params, options.get("seed"))
        self._owns_session = session is None
        if session is not None:
            instance("session", session, Session, "a Session or None")
            if session.backend is not model.backend:
                raise ParameterError("the session belongs to another model")
        self.session = model.session() if session is None else session
        self._is_closed = False
        self._known = _Known()
        self._left_out: list[Message] = []  # copies of the messages that no longer fit

    # ---- the dialogue ----

    @property
    def messages(self) -> list[Message]:
        """The dialogue so far: a list that you may change between two turns.

        The next turn reads whatever is in it then. While an answer is generated, its message grows
        with each access.
        """
        self._write_answer()
        return self._messages

    @messages.setter
    def messages(self, messages: Iterable[Message]) -> None:
        self._write_answer()
        self._messages = _checked(messages)

    @property
    def system(self) -> str | None:
        """The system prompt: the content of the first message, if that is the system's.

        None: the dialogue has no system prompt, but the template may have a default.
        """
        messages = self.messages
        if messages and messages[0]["role"] == "system":
            return messages[0]["content"]
        return None

    @system.setter
    def system(self, system: str | None) -> None:
        messages = self.messages
        if messages and messages[0]["role"] == "system":
            del messages[0]
        messages[:0] = _system(system)

    @property
    def room(self) -> int:
        """How many more tokens the context can take."""
        return self.session.room

    def _write_answer(self) -> None:
        """Bring the message of the last answer up to date, unless the user has changed it."""
        answer = self._answer
        if answer is None or not answer.has_begun:
            return
        content = (answer.prefill + answer.job.text).rstrip()
        if not answer.prefill:
            content = content.lstrip()
        if answer.message is None:
            answer.message = {"role": "assistant", "content": content}
            for place, message in enumerate(self._messages):
                if message is answer.last:
                    self._messages.insert(place + 1, answer.message)
                    break
        elif answer.message["content"] == answer.content:
            answer.message["content"] = content
        else:
            return
        answer.content = content

    # ---- turns ----

    def say(self, user: str | None = None, **options: Unpack[ChatOptions]) -> Stream:
        """Add a user's turn and start the answer.

        Parameters
        ----------
        user : str, optional
            The user's message. Default: none; the model then answers the last message, or continues
            it if it is the assistant's.
        **options
            ``max_tokens``, ``stop``, ``temperature``, .., for this answer only; the defaults are
            those of the chat. ``seed`` restarts the random numbers.

        Returns
        -------
        Stream
            The assistant's answer: iterate over its pieces, or call ``finish()``. It ends with the
            template's end token, with EOS, or after ``max_tokens`` or at the end of the context
            (``finish_reason`` 'length'). An answer that is not read to its end, or that the next
            turn cuts off, stays in the dialogue as far as it was read. A turn whose answer has no
            token yet is forgotten.

        Raises
        ------
        ContextError
            If the turn does not fit in the context; the dialogue does not change.
        PromptError
            If the message contains a marker of the template, is not a str, or cannot be encoded, or
            the template refuses the dialogue.
        ParameterError
            If an option is wrong.
        """
        maker = self._maker(options)
        self._write_answer()
        before, messages = self._answer, list(self._messages)
        if before is not None and before.was_said and not before.has_begun:
            messages = [message for message in messages if message is not before.last]
        if user is not None:
            self._encoder.check(user)
            messages.append({"role": "user", "content": user})
        if not messages or messages[-1]["role"] == "system":
            raise PromptError("the dialogue has no message to answer")
        texts_of(messages)
        for message in messages:
            if message["role"] != "assistant":
                what = "system prompt" if message["role"] == "system" else "message"
                self._encoder.check(message["content"], what)
        self._learn()
        max_tokens = maker.max_tokens
        left_out, prompt = self._fitting(messages, max_tokens)
        job = self._job(maker, prompt, options)
        kept = self._kept(messages, prompt) if self._overflow == "shift" else 1
        if before is not None and before.job.finish_reason is None:
            before.job.finish_reason = "cancelled"
        job.reused = min(shared(self.session.tokens, prompt.tokens), len(prompt.tokens) - 1)
        self.session.rewind(job.reused)
        self.session.kept = kept
        self._sampler = job.sampler
        if not prompt.is_growth:
            self._known.answers.clear()
        self._messages[:] = messages
        self._left_out = [dict(message) for message in left_out]  # type: ignore[misc]
        was_said = user is not None
        self._answer = _Answer(job, prompt.text, prompt.mark, messages[-1], was_said)
        if messages[-1]["role"] == "assistant":
            self._answer.message = messages[-1]
            self._answer.prefill = self._answer.content = messages[-1]["content"]
        return Stream(self.session, self._model.tokenizer, job, owns_session=False)

    stream = say  # the name that Model has for it

    def asay(self, user: str | None = None, **options: Unpack[ChatOptions]) -> AsyncStream:
        """`say` for asyncio: ``async for piece in chat.asay(..)``, or ``await chat.asay(..)``.

        Each piece is computed in a thread while the event loop runs. The parameters are checked
        now. If the task is cancelled, the answer ends where it is.
        """
        return AsyncStream(self.say(user, **options))

    def _maker(self, options: ChatOptions) -> JobMaker:
        given: dict[str, Any] = {**self._options, **options}
        if unknown := given.keys() - ChatOptions.__annotations__.keys():
            raise unknown_option(min(unknown), [*ChatOptions.__annotations__, *_OWN])
        given.pop("seed", None)
        max_tokens = given.pop("max_tokens", None)
        how = max_tokens, given.pop("temperature", 1.0), given.pop("top_p", 0.9)
        return check_options(self._model, *how, cast("Options", given))

    def _job(self, maker: JobMaker, prompt: _Prompt, options: ChatOptions) -> Job:
        """Return the job of an answer. The random numbers go on from the last answer's."""
        if {**self._options, **options}.get("stop_tokens") is None:
            maker = replace(maker, stop_tokens=self._encoder.stop_tokens)
        overflow: Literal["shift", "stop"] = "shift" if self._overflow == "shift" else "stop"
        maker = replace(maker, stop=self._encoder.stop + maker.stop, overflow=overflow)
        seed = options.get("seed")
        sampler = self._sampler if seed is None else maker.sampler(seed)
        sampler.params = maker.params
        return maker.job_of(prompt.tokens, sampler)

    # ---- prompts ----

    def _learn(self) -> None:
        """Remember what the last answer has added to the dialogue."""
        answer = self._answer
        if answer is None or not answer.has_begun or answer.message is None:
            return
        job = answer.job
        decoder = self._model.tokenizer.decoder(previous=job.prompt_tokens[-1])
        spelled = "".join(map(decoder.feed, job.tokens)) + decoder.flush()
        self._known.text, self._known.tokens = "", []
        if spelled == job.text:  # no stop string was cut off, and the text is read to its end
            self._known.text = answer.text + self._encoder.marked(job.text, answer.mark)
            self._known.tokens = [*job.prompt_tokens, *job.tokens]
        written = answer.prefill + job.text
        self._known.answers[id(answer.message)] = (answer.message, answer.content, written)

    def _fitting(self, messages: list[Message], max_tokens: int) -> tuple[list[Message], _Prompt]:
        """Return the oldest messages to leave out, and the prompt of the others."""
        context = self._model.config.seq_len
        n_system = sum(1 for _ in _leading(messages, "system"))
        system, turns = messages[:n_system], messages[n_system:]
        left_out = len(self._left_out) if turns[: len(self._left_out)] == self._left_out else 0
        users = [i for i, message in enumerate(turns) if message["role"] == "user"]
        starts = [i for i in users[1:] if i > left_out]  # an exchange begins with its user
        prompt = self._prompt(system + turns[left_out:])
        least = min(max_tokens, context // _LEAST_FREE)
        if len(prompt.tokens) > context - least and self._overflow != "error" and starts:
            prompts: dict[int, _Prompt] = {}

            def fits(start: int) -> bool:
                prompts[start] = self._prompt(system + turns[start:])
                return len(prompts[start].tokens) <= context - context // _FREED

            at = bisect_left(starts, True, hi=len(starts) - 1, key=fits)
            left_out = starts[at]
            prompt = prompts.get(left_out) or self._prompt(system + turns[left_out:])
        if len(prompt.tokens) > context:
            run = shared(self.session.tokens, prompt.tokens)
            raise ContextError(
                f"the turn does not fit: it has {counted(len(prompt.tokens) - run, 'token')}, and"
                f" the model's context has room for {context - run} more"
            )
        return turns[:left_out], prompt

    def _prompt(self, messages: Sequence[Message]) -> _Prompt:
        """Return the tokens of a dialogue: those that are known, and new ones after them."""
        encoder, known = self._encoder, self._known
        continued = messages[-1]["role"] == "assistant"
        if known.answers:
            text, mark = encoder.render([self._exact(message) for message in messages], continued)
            rest = text.removeprefix(known.text)
            if rest != text and encoder.begins_with_token(rest):
                tokens = known.tokens + encoder.tokens(rest, mark, first=False)
                return _Prompt(text, mark, tokens, True)
            if encoder.is_one_text:
                return _Prompt(text, mark, encoder.tokens(text, mark), True)
        text, mark = encoder.render(messages, continued)
        return _Prompt(text, mark, encoder.tokens(text, mark), False)

    def _exact(self, message: Message) -> Message:
        """Return a message with the answer as the model wrote it, if nobody has changed it."""
        _, content, written = self._known.answers.get(id(message), (None, "", ""))
        if not written or content != message["content"]:
            return message
        return {"role": message["role"], "content": Exact(written)}

    def _kept(self, messages: Sequence[Message], prompt: _Prompt) -> int:
        """Return how many of the first tokens a shift must keep: BOS and the system prompt."""
        other: Message = {"role": "user", "content": "?"}
        if any(m["content"].startswith("?") for m in messages if m["role"] == "user"):
            other["content"] = "!"
        text, mark = self._encoder.render([*_leading(messages, "system"), other])
        return max(1, shared(prompt.tokens, self._encoder.tokens(text, mark)))

    # ---- files ----

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the dialogue to a file, for `Chat.load`: a JSON object of a few kilobytes.

        It holds the messages, their tokens, the options and the random numbers, but not the keys
        and values: these are computed again. An option that is an object (a logits processor, an
        event) is not saved.

        Raises
        ------
        SessionError
            If the file cannot be written.
        """
        path = checked_path("path", path)
        messages = self.messages
        self._learn()
        known = self._known
        answers = [
            [i, *known.answers[id(message)][1:]]
            for i, message in enumerate(messages)
            if id(message) in known.answers
        ]
        about = {
            "format": _FORMAT,
            "messages": messages,
            "settings": self._settings,
            "options": {k: v for k, v in self._options.items() if _is_plain(v)},
            "seed": self._sampler.seed,
            "coins": self._sampler.state,
            "left_out": len(self._left_out),
            "text": known.text,
            "tokens": known.tokens,
            "answers": answers,
        }
        text = json.dumps(about, ensure_ascii=False, indent=1)
        with replacing(path, SessionError) as file:
            file.write(text.encode(errors="surrogatepass"))

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: ChatModel, **options: Unpack[ChatOptions]
    ) -> Chat:
        """Read a dialogue that `save` has written. It goes on bit-identically.

        Parameters
        ----------
        path : str or path-like
            The file.
        model : Model
            The model.
        **options
            In place of the saved ones.

        Raises
        ------
        SessionError
            If the file is missing or malformed.
        ParameterError, PromptError
            As `Chat` does.
        """
        path = checked_path("path", path)
        saved = _read(path)
        chat = cls(
            model, None, saved["messages"], **saved["settings"], **{**saved["options"], **options}
        )
        if options.get("seed") is None:
            chat._sampler = Sampler(model.backend, chat._sampler.params, saved["seed"])
            chat._sampler.state = saved["coins"]
        tokens = saved["tokens"]
        if all(0 <= token < model.config.vocab_size for token in tokens):
            messages = chat._messages
            answers = {
                id(messages[i]): (messages[i], content, written)
                for i, content, written in saved["answers"]
            }
            chat._known = _Known(saved["text"], tokens, answers)
        n_system = sum(1 for _ in _leading(chat._messages, "system"))
        left_out = chat._messages[n_system : n_system + saved["left_out"]]
        chat._left_out = [dict(message) for message in left_out]  # type: ignore[misc]
        return chat

    def __repr__(self) -> str:
        turns = counted(sum(m["role"] == "assistant" for m in self.messages), "turn")
        if self._is_closed:
            return f"<Chat {self.template}, {turns} (closed)>"
        return f"<Chat {self.template}, {turns}, room for {counted(self.room, 'token')}>"

    def close(self) -> None:
        """Free the memory. A second call has no effect."""
        self._is_closed = True
        if self._owns_session:
            self.session.close()


def _checked(messages: Iterable[Message]) -> list[Message]:
    """Return copies of messages that have a role and a content."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise wrong("messages", messages, "a list of messages")
    found: list[Any] = list(messages)
    for number, message in enumerate(found):
        if not isinstance(message, Mapping):
            kind = type(message).__name__
            raise PromptError(f'message {number} is {kind}, expected {{"role": .., "content": ..}}')
    texts_of(found)
    return [cast("Message", dict(message)) for message in found]


def _system(system: str | None) -> list[Message]:
    return [] if system is None else [{"role": "system", "content": system}]


def _leading(messages: Iterable[Message], role: str) -> Iterable[Message]:
    for message in messages:
        if message["role"] != role:
            return
        yield message


def _is_plain(value: object) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def _read(path: Path) -> dict[str, Any]:
    """Return the fields of a saved dialogue, of the right types."""
    data = read_whole(path, _LIMITS.size, SessionError, "a saved dialogue")
    try:
        saved = parse_object(data, _LIMITS, SessionError)
    except SessionError as error:
        raise named(path, error) from None
    kinds = {
        "messages": list,
        "settings": dict,
        "options": dict,
        "seed": int,
        "coins": list,
        "left_out": int,
        "text": str,
        "tokens": list,
        "answers": list,
    }
    if saved.get("format") != _FORMAT:
        raise SessionError(f"{path}: not a dialogue that llama2py has saved")
    for name, kind in kinds.items():
        if not isinstance(saved.get(name), kind):
            raise SessionError(f"{path}: {name} is missing or malformed")
    n = len(saved["messages"])
    rows_are_right = all(
        isinstance(row, list) and [*map(type, row)] == [int, str, str] and 0 <= row[0] < n
        for row in saved["answers"]
    )
    tokens_are_right = all(type(token) is int for token in saved["tokens"])
    settings_are_right = saved["settings"].keys() <= {"template", "variables", "overflow"}
    if not (rows_are_right and tokens_are_right and settings_are_right):
        raise SessionError(f"{path}: answers, tokens or settings are malformed")
    return saved

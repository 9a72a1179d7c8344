"""Meta's API: replace ``from llama import Llama`` by ``from llama2py.meta import Llama``.

It needs no torchrun, NCCL or GPU. The functions behave as in facebookresearch/llama's
``llama/generation.py``, with three differences:

- A value outside its limits raises a `Llama2pyError` instead of an AssertionError.
- Tokens are sampled with llama2py's seeded random numbers instead of PyTorch's. The distribution is
  the same, the samples are not.
- ``logprobs[i]`` always belongs to ``tokens[i]``, and with ``echo`` the first one is 0.0. Meta's
  are shifted by one token if nothing is generated and all prompts have the same length
  (``max_gen_len`` 0, or prompts that fill ``max_seq_len``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any, TypedDict

from .chat.templates import Message as Message
from .chat.templates import Role as Role
from .chat.templates import form_of
from .engine.parameters import (
    checked_path,
    instance,
    known_keywords,
    shown,
    token_ids,
    whole_number,
    wrong,
)
from .errors import CheckpointError, ParameterError, PromptError
from .generation.batch import run_jobs
from .generation.logprobs import log_probabilities
from .generation.options import check_options
from .generation.sampling import Coin
from .model import Model, load


class CompletionPrediction(TypedDict, total=False):
    """One result of `Llama.text_completion`; ``tokens`` and ``logprobs`` only if requested."""

    generation: str
    tokens: list[str]
    logprobs: list[float]


class ChatPrediction(TypedDict, total=False):
    """One result of `Llama.chat_completion`; ``tokens`` and ``logprobs`` only if requested."""

    generation: Message
    tokens: list[str]
    logprobs: list[float]


Dialog = list[Message]

B_INST, E_INST = "[INST]", "[/INST]"
B_SYS, E_SYS = "<<SYS>>\n", "\n<</SYS>>\n\n"
SPECIAL_TAGS = [B_INST, E_INST, "<<SYS>>", "<</SYS>>"]
UNSAFE_ERROR = "Error: special tags are not allowed as part of the prompt."


class Llama:
    """A model with Meta's functions.

    Parameters
    ----------
    model : Model
        The model.
    max_seq_len : int, optional
        The most tokens of prompt and answer together, up to the model's context (the default).
    max_batch_size : int
        The most prompts in a call.
    seed : int
        The seed of all calls together, as in PyTorch: the same sequence of calls gives the same
        texts.

    Raises
    ------
    ParameterError
        If a limit is below 1, or ``max_seq_len`` above the context.
    """

    @known_keywords
    def __init__(
        self,
        model: Model,
        max_seq_len: int | None = None,
        max_batch_size: int = 32,
        seed: int = 1,
    ) -> None:
        instance("model", model, Model, "a Model: load() returns one")
        context = model.config.seq_len
        if max_seq_len is None:
            max_seq_len = context
        self.model = model
        self.tokenizer = model.tokenizer
        self.max_seq_len = whole_number("max_seq_len", max_seq_len, 1)
        if self.max_seq_len > context:
            raise wrong("max_seq_len", max_seq_len, f"1 to the model's context of {context}")
        self.max_batch_size = whole_number("max_batch_size", max_batch_size, 1)
        self._coin = Coin(seed)

    @staticmethod
    @known_keywords
    def build(
        ckpt_dir: str | PathLike[str],
        tokenizer_path: str | PathLike[str] | None,
        max_seq_len: int,
        max_batch_size: int,
        model_parallel_size: int | None = None,
        seed: int = 1,
    ) -> Llama:
        """Load a model.

        Parameters
        ----------
        ckpt_dir : str or path-like
            A checkpoint that `load` reads, or a folder with one ``.bin`` or ``.gguf`` in it.
        tokenizer_path : str or path-like, or None
            As in `load`.
        max_seq_len, max_batch_size, seed
            As in `Llama`. A ``max_seq_len`` above the model's context means the context.
        model_parallel_size : int, optional
            Ignored: there is one process.

        Raises
        ------
        CheckpointError
            If there is no checkpoint, or more than one.
        ParameterError
            If a parameter has a wrong type or is out of its range.
        """
        path = checked_path("ckpt_dir", ckpt_dir)
        if tokenizer_path is not None:
            tokenizer_path = checked_path("tokenizer_path", tokenizer_path)
        max_seq_len = whole_number("max_seq_len", max_seq_len, 1)
        if path.is_dir() and not (path / "params.json").is_file():
            found = [
                file
                for file in sorted(path.iterdir())
                if file.suffix in (".bin", ".gguf") and "tokenizer" not in file.name
            ]
            if len(found) == 1:
                path = found[0]
            elif not (path / "config.json").is_file():
                raise CheckpointError(
                    f"{path}: the folder holds {len(found) or 'no'} checkpoints, expected 1; pass"
                    " the path of a file"
                )
        model = load(path, tokenizer_path)
        return Llama(model, min(max_seq_len, model.config.seq_len), max_batch_size, seed)

    @known_keywords
    def generate(
        self,
        prompt_tokens: Sequence[Sequence[int]],
        max_gen_len: int,
        temperature: float = 0.6,
        top_p: float = 0.9,
        logprobs: bool = False,
        echo: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Continue prompts of any lengths in one batch.

        Parameters
        ----------
        prompt_tokens : sequence of sequence of int
            1 to ``max_batch_size`` prompts, each of 1 to ``max_seq_len`` tokens.
        max_gen_len : int
            The most tokens to generate for each prompt. Prompt and answer together have at most
            ``max_seq_len`` tokens.
        temperature, top_p : float
            As in `SamplingParams`, except that a ``top_p`` of 0 takes the most probable token.
        logprobs : bool
            Also return the log-probabilities, in nats, before temperature is applied.
        echo : bool
            Also return the prompts' tokens. The first one's log-probability is 0.0.

        Returns
        -------
        tuple of (list of list of int, list of list of float or None)
            The tokens and their log-probabilities, each list cut before its first EOS. With
            ``echo`` that EOS may be in the prompt.

        Raises
        ------
        ParameterError
            If there are no prompts or too many, or a number is out of its range.
        PromptError
            If a prompt is empty or too long, or a token is out of the vocabulary.
        """
        given = _listed("prompt_tokens", prompt_tokens, "a sequence of prompts, each token ids")
        prompts = [
            token_ids(f"prompt {number}", prompt, PromptError)
            for number, prompt in enumerate(given)
        ]
        if not 1 <= len(prompts) <= self.max_batch_size:
            raise ParameterError(
                f"there are {len(prompts) or 'no'} prompts, expected 1 to {self.max_batch_size}"
                " (max_batch_size)"
            )
        max_gen_len = whole_number("max_gen_len", max_gen_len)
        for number, prompt in enumerate(prompts):
            if not 1 <= len(prompt) <= self.max_seq_len:
                raise PromptError(
                    f"prompt {number} has {len(prompt)} tokens, expected 1 to {self.max_seq_len}"
                    " (max_seq_len)"
                )
        if top_p == 0:
            temperature, top_p = 0.0, 1.0
        eos = self.tokenizer.eos_id
        maker = check_options(
            self.model,
            max_gen_len,
            temperature,
            top_p,
            {"stop_tokens": [eos], "logprobs": 0 if logprobs else None},
        )
        jobs = [
            maker.job_of(
                self.model.prompt_tokens(prompt),
                maker.sampler(self._next_seed()),
                min(max_gen_len, self.max_seq_len - len(prompt)),
            )
            for prompt in prompts
        ]
        out_tokens: list[list[int]] = []
        out_logprobs: list[list[float]] = []
        for job in run_jobs(self.model, jobs, self.max_batch_size):
            tokens, values = job.tokens, [entry.logprob for entry in job.logprobs]
            if echo:
                tokens = job.prompt_tokens + tokens
                if logprobs:
                    values = self._prompt_logprobs(job.prompt_tokens) + values
                if eos in job.prompt_tokens:  # Meta cuts at the first EOS, even in the prompt
                    tokens = tokens[: tokens.index(eos)]
            out_tokens.append(tokens)
            out_logprobs.append(values[: len(tokens)])
        return out_tokens, out_logprobs if logprobs else None

    @known_keywords
    def text_completion(
        self,
        prompts: Sequence[str],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        echo: bool = False,
    ) -> list[CompletionPrediction]:
        """Continue texts. The parameters and errors are those of `generate`.

        Returns
        -------
        list of dict
            ``{"generation": text}`` for each prompt; with ``logprobs`` also ``"tokens"``, the text
            of each token, and ``"logprobs"``.
        """
        texts = _listed("prompts", prompts, "a sequence of str")
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise PromptError(f"prompt {number} is {shown(text)}, expected a str")
        tokens, values = self.generate(
            [self.tokenizer.encode(text, bos=True) for text in texts],
            self._max_tokens(max_gen_len),
            temperature,
            top_p,
            logprobs,
            echo,
        )
        if values is None:
            return [{"generation": self._decode(t)} for t in tokens]
        return [
            {
                "generation": self._decode(t),
                "tokens": [self._decode([x]) for x in t],
                "logprobs": v,
            }
            for t, v in zip(tokens, values, strict=True)
        ]

    @known_keywords
    def chat_completion(
        self,
        dialogs: Sequence[Sequence[Message]],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
    ) -> list[ChatPrediction]:
        """Answer the last message of each dialog. The other parameters are those of `generate`.

        Parameters
        ----------
        dialogs : sequence of sequence of dict
            Messages ``{"role": ..., "content": ...}``: an optional system message, then user and
            assistant in turns, ending with the user. The answer to a dialog that contains a special
            tag (such as ``[INST]`` or ``<<SYS>>``) is `UNSAFE_ERROR`.

        Returns
        -------
        list of dict
            ``{"generation": {"role": "assistant", "content": text}}`` for each dialog; with
            ``logprobs`` also ``"tokens"`` and ``"logprobs"``.

        Raises
        ------
        PromptError
            If the roles are out of order, or for the reasons in `generate`.
        ParameterError
            If the model has another chat template than Llama 2's, as far as its files say so.
        """
        self._check_template()
        dialogs = [
            _checked_dialog(number, dialog)
            for number, dialog in enumerate(_listed("dialogs", dialogs, "a sequence of dialogs"))
        ]
        unsafe = [
            any(tag in message["content"] for tag in SPECIAL_TAGS for message in dialog)
            for dialog in dialogs
        ]
        tokens, values = self.generate(
            [self._dialog_tokens(dialog) for dialog in dialogs],
            self._max_tokens(max_gen_len),
            temperature,
            top_p,
            logprobs,
        )
        answers: list[ChatPrediction] = []
        for number, t in enumerate(tokens):
            content = UNSAFE_ERROR if unsafe[number] else self._decode(t)
            answer: ChatPrediction = {"generation": {"role": "assistant", "content": content}}
            if values is not None:
                answer["tokens"] = [self._decode([x]) for x in t]
                answer["logprobs"] = values[number]
            answers.append(answer)
        return answers

    def _check_template(self) -> None:
        """Refuse a model whose dialogues have another format than Llama 2's."""
        jinja = self.model.conventions.chat_template
        controls = self.tokenizer.specials.control
        if jinja is None:
            is_llama2 = form_of(controls) == "llama2"
        else:
            is_llama2 = all(tag in jinja for tag in SPECIAL_TAGS)
        if not is_llama2:
            raise ParameterError(
                "chat_completion writes dialogues in Llama 2's format ([INST]), and this model has"
                " another chat template: use llama2py.Chat"
            )

    def _dialog_tokens(self, dialog: Sequence[Message]) -> list[int]:
        """Encode each exchange between a BOS and an EOS, the last one without an answer."""
        turns = list(dialog)
        if len(turns) > 1 and turns[0]["role"] == "system":
            content = B_SYS + turns[0]["content"] + E_SYS + turns[1]["content"]
            turns[:2] = [{"role": turns[1]["role"], "content": content}]
        roles = [message["role"] for message in turns]
        if len(roles) % 2 == 0 or roles != [
            ("user", "assistant")[i % 2] for i in range(len(roles))
        ]:
            raise PromptError(
                f"the roles of a dialog are {', '.join(m['role'] for m in dialog) or 'missing'},"
                " expected an optional system, then user and assistant in turns, ending with user"
            )
        texts = [message["content"].strip() for message in turns]
        tokens: list[int] = []
        for user, answer in zip(texts[:-1:2], texts[1::2], strict=True):
            exchange = f"{B_INST} {user} {E_INST} {answer} "
            tokens += self.tokenizer.encode(exchange, bos=True, eos=True)
        return tokens + self.tokenizer.encode(f"{B_INST} {texts[-1]} {E_INST}", bos=True)

    def _decode(self, tokens: list[int]) -> str:
        """Decode without the space before the first word, as sentencepiece does."""
        return self.tokenizer.decode([self.tokenizer.bos_id, *tokens])

    def _max_tokens(self, max_gen_len: int | None) -> int:
        return self.max_seq_len - 1 if max_gen_len is None else max_gen_len

    def _prompt_logprobs(self, tokens: list[int]) -> list[float]:
        with self.model.session() as session:
            return [0.0, *(float(value) for value in log_probabilities(session, tokens))]

    def _next_seed(self) -> int:
        """Draw a seed of 48 bits from the random numbers that all calls share."""
        high, low = (int(self._coin.flip() * 2**24) for _ in range(2))
        return high << 24 | low


def _listed(name: str, value: Any, expected: str) -> list[Any]:
    """Return the elements of a sequence that is neither a str nor bytes."""
    if isinstance(value, str | bytes | bytearray) or not isinstance(value, Iterable):
        raise wrong(name, value, expected)
    return list(value)


def _checked_dialog(number: int, dialog: Any) -> list[Message]:
    """Return the messages of a dialog."""
    messages = _listed(f"dialog {number}", dialog, "a sequence of messages")
    for message in messages:
        texts = [message.get("role"), message.get("content")] if isinstance(message, dict) else [0]
        if not all(isinstance(text, str) for text in texts):
            raise PromptError(
                f"dialog {number} holds {shown(message)}, expected a dict with a role and content"
            )
    return messages

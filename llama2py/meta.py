"""Meta's call: ``from llama2py.meta import Llama`` where a program has ``from llama import Llama``.

Neither torchrun nor NCCL nor a GPU is needed. The functions mean what facebookresearch/llama's
``llama/generation.py`` means by them, but for these three:

- Limits raise a `Llama2pyError` instead of an AssertionError.
- Texts come from llama2py's seeded coin, not from PyTorch's: the distribution is the same, the
  draws are not.
- A log-probability always belongs to the token it stands at, and with ``echo`` the first is 0.0.
  Meta's are one token off where nothing is generated and all prompts have one length
  (``max_gen_len`` 0, or prompts that fill ``max_seq_len``).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from os import PathLike
from pathlib import Path
from typing import TypedDict

from .chat.templates import Message as Message
from .chat.templates import Role as Role
from .errors import CheckpointError, ParameterError, PromptError
from .generation.batch import run_jobs
from .generation.job import Job
from .generation.logprobs import log_probabilities
from .generation.sampling import Coin, Sampler, SamplingParams
from .model import Model, load


class CompletionPrediction(TypedDict, total=False):
    """What `Llama.text_completion` gives; ``tokens`` and ``logprobs`` where asked for."""

    generation: str
    tokens: list[str]
    logprobs: list[float]


class ChatPrediction(TypedDict, total=False):
    """What `Llama.chat_completion` gives; ``tokens`` and ``logprobs`` where asked for."""

    generation: Message
    tokens: list[str]
    logprobs: list[float]


Dialog = list[Message]

B_INST, E_INST = "[INST]", "[/INST]"
B_SYS, E_SYS = "<<SYS>>\n", "\n<</SYS>>\n\n"
SPECIAL_TAGS = [B_INST, E_INST, "<<SYS>>", "<</SYS>>"]
UNSAFE_ERROR = "Error: special tags are not allowed as part of the prompt."


class Llama:
    """A model behind Meta's functions.

    Parameters
    ----------
    model : Model
        Who answers.
    max_seq_len : int, optional
        Most tokens of prompt and answer together. Default, and at most: the model's context.
    max_batch_size : int
        Most prompts in a call.
    seed : int
        Of all calls together, as PyTorch's: the same calls give the same texts.

    Raises
    ------
    ParameterError
        If a limit is below 1, or ``max_seq_len`` above the context.
    """

    def __init__(
        self,
        model: Model,
        max_seq_len: int | None = None,
        max_batch_size: int = 32,
        seed: int = 1,
    ) -> None:
        context = model.config.seq_len
        max_seq_len = context if max_seq_len is None else index(max_seq_len)
        if not 1 <= max_seq_len <= context:
            raise ParameterError(
                f"max_seq_len is {max_seq_len}, expected 1 to the model's context of {context}"
            )
        if index(max_batch_size) < 1:
            raise ParameterError(
                f"max_batch_size is {max_batch_size}, expected a whole number from 1 up"
            )
        self.model = model
        self.tokenizer = model.tokenizer
        self.max_seq_len, self.max_batch_size = max_seq_len, max_batch_size
        self._coin = Coin(seed)

    @staticmethod
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
            As in `Llama`; a ``max_seq_len`` above the model's context is the context.
        model_parallel_size : int, optional
            Not used: there is one process.

        Raises
        ------
        CheckpointError
            If there is no checkpoint, or more than one.
        """
        path = Path(ckpt_dir)
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
                    f"{path}: {len(found)} checkpoints in this folder, expected one"
                )
        model = load(path, tokenizer_path)
        return Llama(model, min(max_seq_len, model.config.seq_len), max_batch_size, seed)

    def generate(
        self,
        prompt_tokens: Sequence[Sequence[int]],
        max_gen_len: int,
        temperature: float = 0.6,
        top_p: float = 0.9,
        logprobs: bool = False,
        echo: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Continue prompts of any lengths, at once.

        Parameters
        ----------
        prompt_tokens : sequence of sequence of int
            At most ``max_batch_size``, each of 1 to ``max_seq_len`` tokens.
        max_gen_len : int
            Most tokens to generate for each; prompt and answer hold at most ``max_seq_len``.
        temperature, top_p : float
            As in `SamplingParams`, but that a ``top_p`` of 0 takes the most probable token.
        logprobs : bool
            Give the log-probabilities, too: the model's own, before temperature.
        echo : bool
            Give the prompts' tokens, too. The first one's log-probability is 0.0.

        Returns
        -------
        tuple of (list of list of int, list of list of float or None)
            The tokens and their log-probabilities, each cut before its first EOS; with ``echo``
            that may be one of the prompt.

        Raises
        ------
        ParameterError
            If there are too many prompts, none, or a number is out of its range.
        PromptError
            If a prompt is empty or too long, or a token is out of the vocabulary.
        """
        prompts = [[index(token) for token in prompt] for prompt in prompt_tokens]
        if not 1 <= len(prompts) <= self.max_batch_size:
            raise ParameterError(
                f"there are {len(prompts)} prompts, expected 1 to max_batch_size,"
                f" {self.max_batch_size}"
            )
        if index(max_gen_len) < 0:
            raise ParameterError(f"max_gen_len is {max_gen_len}, expected a number from 0 up")
        for number, prompt in enumerate(prompts):
            if not 1 <= len(prompt) <= self.max_seq_len:
                raise PromptError(
                    f"prompt {number} has {len(prompt)} tokens, expected 1 to max_seq_len,"
                    f" {self.max_seq_len}"
                )
        params = SamplingParams(0.0, 1.0) if top_p == 0 else SamplingParams(temperature, top_p)
        eos = self.tokenizer.eos_id
        jobs = [
            Job(
                self.model.prompt_tokens(prompt),
                Sampler(self.model.backend, params, self._next_seed()),
                min(max_gen_len, self.max_seq_len - len(prompt)),
                stop_tokens=frozenset([eos]),
                top_logprobs=0 if logprobs else None,
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
                    values = self._of_prompt(job.prompt_tokens) + values
                if eos in job.prompt_tokens:  # Meta's cut looks for the first EOS of all
                    tokens = tokens[: tokens.index(eos)]
            out_tokens.append(tokens)
            out_logprobs.append(values[: len(tokens)])
        return out_tokens, out_logprobs if logprobs else None

    def text_completion(
        self,
        prompts: Sequence[str],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        echo: bool = False,
    ) -> list[CompletionPrediction]:
        """Continue texts. Parameters and errors are those of `generate`.

        Returns
        -------
        list of dict
            ``{"generation": text}`` for each; with ``logprobs`` also ``"tokens"``, the text of each
            token, and ``"logprobs"``.
        """
        tokens, values = self.generate(
            [self.tokenizer.encode(prompt, bos=True) for prompt in prompts],
            self._limit(max_gen_len),
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

    def chat_completion(
        self,
        dialogs: Sequence[Sequence[Message]],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
    ) -> list[ChatPrediction]:
        """Answer the last message of each dialog. Other parameters are those of `generate`.

        Parameters
        ----------
        dialogs : sequence of sequence of dict
            ``{"role": .., "content": ..}``: perhaps a system message, then user and assistant in
            turns, a user's last. A dialog that holds a special tag (``[INST]``, ``<<SYS>>`` ..) is
            answered with `UNSAFE_ERROR`.

        Returns
        -------
        list of dict
            ``{"generation": {"role": "assistant", "content": text}}`` for each; with ``logprobs``
            also ``"tokens"`` and ``"logprobs"``.

        Raises
        ------
        PromptError
            If the roles are out of order, and as `generate` does.
        """
        unsafe = [
            any(tag in message["content"] for tag in SPECIAL_TAGS for message in dialog)
            for dialog in dialogs
        ]
        tokens, values = self.generate(
            [self._dialog_tokens(dialog) for dialog in dialogs],
            self._limit(max_gen_len),
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

    def _dialog_tokens(self, dialog: Sequence[Message]) -> list[int]:
        """Each exchange between a BOS and an EOS, the last without its answer."""
        turns = list(dialog)
        if len(turns) > 1 and turns[0]["role"] == "system":
            content = B_SYS + turns[0]["content"] + E_SYS + turns[1]["content"]
            turns[:2] = [{"role": turns[1]["role"], "content": content}]
        roles = [message["role"] for message in turns]
        if len(roles) % 2 == 0 or roles != [
            ("user", "assistant")[i % 2] for i in range(len(roles))
        ]:
            raise PromptError(
                f"the roles of a dialog are {', '.join(m['role'] for m in dialog) or 'none'},"
                " expected perhaps system, then user and assistant in turns, and user last"
            )
        texts = [message["content"].strip() for message in turns]
        tokens: list[int] = []
        for user, answer in zip(texts[:-1:2], texts[1::2], strict=True):
            exchange = f"{B_INST} {user} {E_INST} {answer} "
            tokens += self.tokenizer.encode(exchange, bos=True, eos=True)
        return tokens + self.tokenizer.encode(f"{B_INST} {texts[-1]} {E_INST}", bos=True)

    def _decode(self, tokens: list[int]) -> str:
        """As sentencepiece does it, which takes the space off a first word."""
        return self.tokenizer.decode([self.tokenizer.bos_id, *tokens])

    def _limit(self, max_gen_len: int | None) -> int:
        return self.max_seq_len - 1 if max_gen_len is None else max_gen_len

    def _of_prompt(self, tokens: list[int]) -> list[float]:
        with self.model.session() as session:
            return [0.0, *(float(value) for value in log_probabilities(session, tokens))]

    def _next_seed(self) -> int:
        """48 bits of the coin that all calls share."""
        high, low = (int(self._coin.flip() * 2**24) for _ in range(2))
        return high << 24 | low

"""``llama2py run``: print a story, or chat. The flags are llama2.c's."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..chat.dialogue import Chat
from ..chat.templates import TEMPLATES
from ..errors import PromptError
from ..generation.job import Timings
from ..generation.sampling import random_seed
from ..generation.stream import Stream
from ..model import Model, load
from . import options
from .loading import loading_bar

if TYPE_CHECKING:
    from .options import Subparsers


_T = "0: always the most probable token; the higher the wilder (default 1.0)"
_P = "draw from the most probable tokens that sum up to this; 1: from all (default 0.9)"
_S = "the same seed tells the same story; 0: a new one each time (default 0)"
_N = "tokens to run, the prompt's included; 0: as many as the context holds (default 256)"
_I = "the beginning of the story; - reads it from standard input"
_Z = "tokenizer.bin, .model or .json (default: the model's own, or the 32000-token one of Llama 2)"
_M = "chat is for models trained on dialogues (default generate)"
_TEMPLATE = "how turns are written in chat (default: as the model's metadata says, or llama2)"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "run",
        help="print a story, or chat",
        description="Print a story that a checkpoint tells, or chat with it. "
        "The story goes to standard output, its speed to standard error.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", nargs="?", help=options.CHECKPOINT)
    add("-t", "--temperature", type=options.temperature, default=1.0, metavar="T", help=_T)
    add("-p", "--top-p", type=options.top_p, default=0.9, metavar="P", help=_P)
    add("-s", "--seed", type=options.seed, default=0, metavar="N", help=_S)
    add("-n", "--steps", type=options.whole_number, default=256, metavar="N", help=_N)
    add("-i", "--prompt", metavar="TEXT", help=_I)
    add("-z", "--tokenizer", type=Path, metavar="FILE", help=_Z)
    add("-m", "--mode", choices=("generate", "chat"), default="generate", help=_M)
    add("-y", "--system-prompt", metavar="TEXT", help="the system prompt, in chat")
    add("--template", choices=sorted(TEMPLATES), help=_TEMPLATE)
    add("--threads", type=options.threads, metavar="N", help="default: the physical cores")
    add("--dtype", choices=options.DTYPES, help=options.DTYPE)
    add("--cache-dtype", choices=options.CACHE_DTYPES, default="float32", help=options.CACHE_DTYPE)
    add("--backend", choices=("c", "numpy"), default="c", help="the engine, or the slow reference")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the model, then tell or chat."""
    seed = args.seed if args.seed > 0 else random_seed()
    where = args.checkpoint, args.tokenizer, args.threads, args.backend, args.dtype
    with loading_bar() as progress:
        model = load(*where, args.cache_dtype, progress)
    with model:
        steps = args.steps if 0 < args.steps < model.config.seq_len else model.config.seq_len
        prompt = _prompt(args.prompt)
        if args.mode == "chat":
            sampling = (args.temperature, args.top_p, seed)
            with Chat(model, None, *sampling, max_tokens=steps, template=args.template) as chat:
                return _chat(chat, prompt, args.system_prompt)
        return _tell(model, prompt or "", steps, args.temperature, args.top_p, seed)


def _tell(
    model: Model, prompt: str, steps: int, temperature: float, top_p: float, seed: int
) -> int:
    """Print prompt and story as they come, then how fast that was."""
    # llama2.c's steps are the tokens behind BOS: the prompt's, cut if need be, then the story's.
    prompt_tokens = model.tokenizer.encode(prompt)
    max_tokens = max(0, steps - len(prompt_tokens) + 1)
    stream = model.stream(prompt_tokens, max_tokens, temperature, top_p, seed)
    code = 0
    try:
        _write(model.tokenizer.decode(prompt_tokens[: steps + 1]))
        if max_tokens:
            for piece in stream:
                _write(piece)
    except KeyboardInterrupt:
        code = 130
    finally:
        stream.close()
    _write("\n")
    _report(stream.timings, seed)
    return code


def _chat(chat: Chat, first: str | None, system: str | None) -> int:
    """Turn by turn until the input or the room ends."""
    answer: Stream | None = None
    code = 0
    try:
        if system is None:  # an empty line: the template's own, if it has one
            system = _ask("Enter system prompt (optional): ") or None
        chat.system = system
        if first is not None:
            answer = _turn(chat, first)
        while chat.room:
            user = _ask("User: ")
            try:
                answer = _turn(chat, user)
            except PromptError as error:  # not the end: a shorter or cleaner one may do
                _say(f"llama2py: {error}")
        _say("llama2py: the dialogue has used up its tokens (-n, or the model's context)")
    except EOFError:
        _write("\n")
    except KeyboardInterrupt:
        _write("\n")
        code = 130
    if answer is not None:
        _report(answer.timings, answer.seed)
    return code


def _turn(chat: Chat, user: str) -> Stream:
    """Print the answer to what the user says."""
    answer = chat.say(user)
    _write("Assistant: ")
    lead = " "  # the space of the first word
    for piece in answer:
        _write(piece.removeprefix(lead))
        lead = ""
    _write("\n")
    return answer


def _prompt(text: str | None) -> str | None:
    """The prompt, from standard input for ``-`` (less the newline that ends it)."""
    if text != "-":
        return text
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"the prompt on standard input is not UTF-8 (byte {error.start}), expected UTF-8 text"
        ) from None


def _ask(question: str) -> str:
    """A line from standard input; EOFError at its end."""
    _write(question)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()  # a story is read while it is told


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _report(timings: Timings, seed: int) -> None:
    if timings.tokens_per_second:
        _say(f"achieved tok/s: {timings.tokens_per_second:f}")
    if timings.generated_tokens:
        _say(
            f"prompt tok/s: {timings.prompt_tokens_per_second:.1f}"
            f" ({timings.prompt_tokens} tokens), first token after"
            f" {timings.first_token_seconds * 1000:.1f} ms, seed {seed}"
        )

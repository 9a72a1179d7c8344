"""``llama2py run``: print a story, or chat. The short flags are llama2.c's."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from typing import Any

from ..chat.templates import TEMPLATES
from ..errors import PromptError
from ..generation.sampling import random_seed
from ..model import Model
from . import INTERRUPTED, USAGE, options
from .chat_mode import chat, report, say, write
from .loading import load_model, looks_like_model
from .options import Subparsers, sampling_number

_TEMPERATURE = "0: always the most probable token; higher values: more random (default 1.0)"
_TOP_P = "draw from the most probable tokens that sum up to P; 1: from all tokens (default 0.9)"
_TOP_K = "draw from the N most probable tokens; 0: from all tokens (default 0)"
_MIN_P = "draw from tokens at least P times as probable as the best; 0: from all (default 0)"
_REPETITION = "above 1: tokens of the prompt and the text become less probable (default 1)"
_FREQUENCY = "subtracted from a token's logit each time the token is generated (default 0)"
_PRESENCE = "subtracted from the logits of tokens that were generated (default 0)"
_STOP = "end the text before TEXT; repeatable"
_SEED = "the same seed gives the same story; 0: a random seed (default 0)"
_STEPS = (
    "number of tokens, including the prompt; 0: as many as the context holds (default 256)."
    " In chat: the tokens of each answer (default 0)"
)
_PROMPT = "the beginning of the story, or the first message in chat; -: read it from standard input"
_MODE = "chat needs a model that was trained on dialogues (default generate)"
_TEMPLATE = "the format of turns in chat (default: the model's own template, or llama2)"
# The options of `SamplingParams` that have a flag of the same name.
_SAMPLING = ("top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "run",
        help="print a story, or chat",
        description="Print the text that a model generates, or chat with it. The text goes to "
        "standard output, its speed and its seed to standard error.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", nargs="?", help=options.CHECKPOINT)
    temperature, top_p = sampling_number("temperature"), sampling_number("top_p")
    add("-t", "--temperature", type=temperature, default=1.0, metavar="T", help=_TEMPERATURE)
    add("-p", "--top-p", type=top_p, default=0.9, metavar="P", help=_TOP_P)
    add("-s", "--seed", type=options.seed, default=0, metavar="N", help=_SEED)
    add("-n", "--steps", type=options.natural_number, metavar="N", help=_STEPS)
    add("-i", "--prompt", metavar="TEXT", help=_PROMPT)
    add("-m", "--mode", choices=("generate", "chat"), default="generate", help=_MODE)
    add("-y", "--system-prompt", metavar="TEXT", help="the system prompt in chat")
    add("--template", choices=sorted(TEMPLATES), help=_TEMPLATE)
    add("--stop", action="append", default=[], metavar="TEXT", help=_STOP)
    add("--top-k", type=options.natural_number, default=0, metavar="N", help=_TOP_K)
    add("--min-p", type=sampling_number("min_p"), default=0.0, metavar="P", help=_MIN_P)
    for name, default, text in (
        ("repetition_penalty", 1.0, _REPETITION),
        ("frequency_penalty", 0.0, _FREQUENCY),
        ("presence_penalty", 0.0, _PRESENCE),
    ):
        flag, kind = f"--{name.replace('_', '-')}", sampling_number(name)
        add(flag, type=kind, default=default, metavar="X", help=text)
    options.add_loading_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the model, then generate or chat."""
    name = args.checkpoint
    if name is not None and not looks_like_model(name) and not os.path.lexists(name):
        text = shlex.quote(name)
        say(f"llama2py run: there is no model {text}; to use it as a prompt: -i {text}")
        return USAGE
    prompt = _prompt(args.prompt)
    with load_model(args) as model:
        context = model.config.seq_len
        args.seed = args.seed or random_seed()
        if args.mode == "chat":
            options = {"temperature": args.temperature, "top_p": args.top_p, "seed": args.seed}
            return chat(model, args, prompt, options | _sampling(args))
        args.steps = min(256 if args.steps is None else args.steps or context, context)
        return _generate(model, args, prompt or "")


def _sampling(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in _SAMPLING} | {"stop": args.stop}


def _generate(model: Model, args: argparse.Namespace, prompt: str) -> int:
    """Print the prompt and the text as it comes, then its speed."""
    # llama2.c's steps count the tokens after BOS: the prompt's, cut if necessary, then the text's.
    prompt_tokens = model.tokenizer.encode(prompt)
    max_tokens = max(0, args.steps - len(prompt_tokens) + 1)
    how = args.temperature, args.top_p, args.seed
    stream = model.stream(prompt_tokens, max_tokens, *how, **_sampling(args))
    code = 0
    try:
        write(model.tokenizer.decode(prompt_tokens[: args.steps + 1]))
        if max_tokens:
            for piece in stream:
                write(piece)
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        stream.close()
    write("\n")
    report(stream.timings, args.seed)
    return code


def _prompt(text: str | None) -> str | None:
    """Return the prompt; ``-`` reads it from standard input, without its final line break.

    A byte order mark is dropped, and every line ends with \\n, as Windows writes neither.
    """
    if text != "-":
        return text
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"the prompt on standard input is not UTF-8 (byte {error.start}): convert it to UTF-8"
        ) from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    return text.removesuffix("\n")

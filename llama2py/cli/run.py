"""``llama2py run``: print a story, or chat. The short flags are llama2.c's.

The defaults are llama2.c's for every model but the built-in one, which has its own.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from time import perf_counter
from typing import Any

from .._data import Sampling, builtin_sampling
from .._util import counted
from ..chat.templates import TEMPLATES
from ..errors import ParameterError, PromptError
from ..generation.sampling import random_seed
from ..hub import BUILTIN
from ..model import Model
from ..stories.opening import is_wish
from ..stories.teller import CANDIDATES, MAX_MAX_WORDS, StoryTeller
from . import INTERRUPTED, USAGE, options
from .chat_mode import chat, report, say, write
from .loading import load_model, looks_like_model
from .options import Subparsers, sampling_number

_TEMPERATURE = (
    "0: always the most probable token; higher values: more random (default 1.0; built-in model:"
    " 0.6)"
)
_TOP_P = "draw from the most probable tokens that sum up to P; 1: from all tokens (default 0.9)"
_TOP_K = "draw from the N most probable tokens; 0: from all tokens (default 0)"
_MIN_P = "draw from tokens at least P times as probable as the best; 0: from all (default 0)"
_REPETITION = "above 1: tokens of the prompt and the text become less probable (default 1)"
_FREQUENCY = "subtracted from a token's logit each time the token is generated (default 0)"
_PRESENCE = "subtracted from the logits of tokens that were generated (default 0)"
_STOP = "end the text before TEXT; repeatable"
_SEED = "the same seed gives the same story; 0: a random seed (default 0)"
_STEPS = (
    "number of tokens, including the prompt; 0: as many as the context holds (default 256; built-in"
    " model: 0). In chat: the tokens of each answer (default 0)"
)
_CANDIDATES = (
    "write N stories and print the best, as the command story does; 1: print a text as it is"
    " generated (default 1; built-in model: 8 unless a flag for sampling, -n, --stop or --backend"
    " numpy is given)"
)
_PROMPT = "the beginning of the story, or the first message in chat; -: read it from standard input"
_SPECIAL = "special tokens that the prompt spells out, such as <|im_start|>, are these tokens"
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
    add("-t", "--temperature", type=temperature, metavar="T", help=_TEMPERATURE)
    add("-p", "--top-p", type=top_p, metavar="P", help=_TOP_P)
    add("-s", "--seed", type=options.seed, default=0, metavar="N", help=_SEED)
    add("-n", "--steps", type=options.natural_number, metavar="N", help=_STEPS)
    add("-i", "--prompt", metavar="TEXT", help=_PROMPT)
    add("--candidates", type=options.count, metavar="N", help=_CANDIDATES)
    add("--special", action="store_true", help=_SPECIAL)
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
    if args.special and args.mode == "chat":
        say("llama2py run: --special is for -m generate; a chat template has its own tokens")
        return USAGE
    prompt = _prompt(args.prompt)
    n_candidates = _candidates(args)
    is_builtin_story = name in (None, BUILTIN) and args.mode == "generate"
    defaults = builtin_sampling() if is_builtin_story else Sampling()
    args.seed = args.seed or random_seed()
    with load_model(args) as model:
        if n_candidates > 1:
            return _tell(model, args, prompt or "", n_candidates)
        if args.temperature is None:
            args.temperature = defaults.temperature
        if args.top_p is None:
            args.top_p = defaults.top_p
        if args.mode == "chat":
            how = {"temperature": args.temperature, "top_p": args.top_p, "seed": args.seed}
            return chat(model, args, prompt, how | _sampling(args))
        if args.steps is None:
            args.steps = defaults.steps
        context = model.config.seq_len
        args.steps = min(args.steps or context, context)
        return _generate(model, args, prompt or "")


def _candidates(args: argparse.Namespace) -> int:
    """Return how many candidates to write; 1: print a text as it is generated.

    Raises
    ------
    ParameterError
        If several candidates are requested together with a flag that only a single text takes.
    """
    single = [
        flag
        for flag, value, default in (
            ("-n", args.steps, None),
            ("-m chat", args.mode == "chat", False),
            ("--special", args.special, False),
            ("--special", args.special, False),
            ("--stop", args.stop, []),
            ("--top-k", args.top_k, 0),
            ("--min-p", args.min_p, 0),
            ("--repetition-penalty", args.repetition_penalty, 1),
            ("--frequency-penalty", args.frequency_penalty, 0),
            ("--presence-penalty", args.presence_penalty, 0),
        )
        if value != default
    ]
    if args.candidates is None:
        # The NumPy backend takes seconds for eight candidates: its text appears as it is generated.
        has_own = args.checkpoint in (None, BUILTIN) and args.backend != "numpy"
        has_sampling = bool(single) or args.temperature is not None or args.top_p is not None
        return CANDIDATES if has_own and not has_sampling else 1
    if args.candidates > 1 and single:
        raise ParameterError(f"--candidates {args.candidates} does not go with {single[0]}")
    n_candidates: int = args.candidates
    return n_candidates


def _tell(model: Model, args: argparse.Namespace, prompt: str, n_candidates: int) -> int:
    """Print the best of several stories that begin with the prompt, or are about its wish."""
    start = perf_counter()
    tell = StoryTeller(
        model, temperature=args.temperature, top_p=args.top_p, candidates=n_candidates
    )
    how = {"about": prompt} if is_wish(prompt) else {"opening": prompt}
    story = tell(seed=args.seed, max_words=MAX_MAX_WORDS, **how)
    write(f"{story.text}\n")
    say(
        f"the best of {counted(n_candidates, 'candidate')} in {perf_counter() - start:.2f} s,"
        f" {counted(story.words, 'word')}, seed {story.seed}"
    )
    return 0


def _sampling(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in _SAMPLING} | {"stop": args.stop}


def _generate(model: Model, args: argparse.Namespace, prompt: str) -> int:
    """Print the prompt and the text as it comes, then its speed."""
    # llama2.c's steps count the tokens after BOS: the prompt's, cut if necessary, then the text's.
    prompt_tokens = _prompt_tokens(model, prompt, args.special)
    max_tokens = max(0, args.steps - len(prompt_tokens) + 1)
    how = args.temperature, args.top_p, args.seed
    stream = model.stream(prompt_tokens, max_tokens, *how, **_sampling(args))
    code = 0
    try:
        is_whole = args.special and len(prompt_tokens) <= args.steps + 1
        shown = prompt if is_whole else model.tokenizer.decode(prompt_tokens[: args.steps + 1])
        write(shown)
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


def _prompt_tokens(model: Model, prompt: str, special: bool) -> list[int]:
    """Encode a prompt; say so if it spells out special tokens that are not to be such."""
    tokenizer = model.tokenizer
    tokens = tokenizer.encode(prompt, special=special)
    if special and tokens[:2] == [tokenizer.bos_id] * 2:
        return tokens[1:]  # the prompt has its own BOS
    found = [] if special else tokenizer.controls_in(prompt)
    if found:
        say(
            f"llama2py: the prompt holds the text of {', '.join(found)}: with --special, it becomes"
            f" {'that token' if len(found) == 1 else 'those tokens'}"
        )
    return tokens


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

"""llama2.c as a Python package: a small LLaMA with a C hot loop.

>>> import llama2py
>>> tell = llama2py.StoryTeller()
>>> print(tell("a dragon who is afraid of fire", seed=7))  # doctest: +ELLIPSIS
Once upon a time, there was a dragon who was afraid of fire. ...
>>> model = llama2py.load()  # the built-in story model, or load("stories15M.bin")
>>> model.generate("Once upon a time", seed=1).finish_reason
'stop'
"""

from typing import TYPE_CHECKING

from .config import ModelConfig
from .engine.session import Session
from .errors import (
    Cancelled,
    CheckpointError,
    ClosedError,
    ConfigError,
    ContextError,
    CorpusError,
    DownloadError,
    EngineError,
    Llama2pyError,
    ParameterError,
    PromptError,
    SessionError,
    TokenizerError,
    TooBigError,
    TrainingError,
)
from .generation.job import Timings
from .generation.logprobs import TokenLogprob
from .generation.options import Options
from .generation.sampling import SamplingParams
from .generation.stream import Generation, Stream
from .model import Model, load
from .tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from .chat.dialogue import Chat
    from .conversion import convert
    from .hub import download
    from .scoring import Score, score_texts
    from .stories.teller import Story, StoryTeller

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "Chat",
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "ContextError",
    "CorpusError",
    "DownloadError",
    "EngineError",
    "Generation",
    "Llama2pyError",
    "Model",
    "ModelConfig",
    "Options",
    "ParameterError",
    "PromptError",
    "SamplingParams",
    "Score",
    "Session",
    "SessionError",
    "Story",
    "StoryTeller",
    "Stream",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "TokenizerError",
    "TooBigError",
    "TrainingError",
    "convert",
    "download",
    "load",
    "score_texts",
]

# What a program that loads and generates does without, and need not wait for.
_ON_USE = {
    "Chat": "chat.dialogue",
    "Score": "scoring",
    "Story": "stories.teller",
    "StoryTeller": "stories.teller",
    "convert": "conversion",
    "download": "hub",
    "score_texts": "scoring",
}

if not TYPE_CHECKING:  # to a type checker a name is there or not

    def __getattr__(name: str) -> object:
        if name not in _ON_USE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f".{_ON_USE[name]}", __name__), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

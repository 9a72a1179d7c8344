"""Run small LLaMA models from Python on a fast C engine, bit for bit reproducibly.

>>> import llama2py
>>> tell = llama2py.StoryTeller()
>>> print(tell("a dragon who is afraid of fire", seed=7))  # doctest: +ELLIPSIS
Once upon a time, there was a dragon who was afraid of fire. ...
>>> model = llama2py.load()  # the built-in story model, or load("stories15M.bin")
>>> model.generate("Once upon a time", seed=1).finish_reason
'stop'
"""

TYPE_CHECKING = False  # type checkers know the name; importing typing would take milliseconds
if TYPE_CHECKING:
    from . import errors as errors
    from . import ray as ray
    from .chat.dialogue import Chat
    from .chat.templates import Message
    from .config import CacheDtype, Dtype, ModelConfig
    from .conversion import convert
    from .engine.backend import Logits
    from .engine.session import Session
    from .errors import (
        BatchError,
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
        UnknownOptionError,
    )
    from .generation.job import FinishReason, Overflow, Timings
    from .generation.logits import LogitsProcessor
    from .generation.logprobs import TokenLogprob
    from .generation.options import ChatOptions, Options
    from .generation.sampling import SamplingParams
    from .generation.scoring import Score, score_texts
    from .generation.stream import AsyncStream, Generation, Stream
    from .hub import download
    from .model import Model, load
    from .stories.teller import Story, StoryTeller
    from .tokenizers.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "AsyncStream",
    "BatchError",
    "CacheDtype",
    "Cancelled",
    "Chat",
    "ChatOptions",
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "ContextError",
    "CorpusError",
    "DownloadError",
    "Dtype",
    "EngineError",
    "FinishReason",
    "Generation",
    "Llama2pyError",
    "Logits",
    "LogitsProcessor",
    "Message",
    "Model",
    "ModelConfig",
    "Options",
    "Overflow",
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
    "UnknownOptionError",
    "convert",
    "download",
    "load",
    "score_texts",
]

# Where each name is defined. A module is imported when one of its names is first used. So a program
# only waits for what it uses, and the command line can handle Ctrl-C almost from its first moment.
_MODULES = {
    "chat.dialogue": ("Chat",),
    "chat.templates": ("Message",),
    "config": ("CacheDtype", "Dtype", "ModelConfig"),
    "conversion": ("convert",),
    "engine.backend": ("Logits",),
    "engine.session": ("Session",),
    "errors": (
        "BatchError",
        "Cancelled",
        "CheckpointError",
        "ClosedError",
        "ConfigError",
        "ContextError",
        "CorpusError",
        "DownloadError",
        "EngineError",
        "Llama2pyError",
        "ParameterError",
        "PromptError",
        "SessionError",
        "TokenizerError",
        "TooBigError",
        "TrainingError",
        "UnknownOptionError",
    ),
    "generation.job": ("FinishReason", "Overflow", "Timings"),
    "generation.logits": ("LogitsProcessor",),
    "generation.logprobs": ("TokenLogprob",),
    "generation.options": ("ChatOptions", "Options"),
    "generation.sampling": ("SamplingParams",),
    "generation.scoring": ("Score", "score_texts"),
    "generation.stream": ("AsyncStream", "Generation", "Stream"),
    "hub": ("download",),
    "model": ("Model", "load"),
    "stories.teller": ("Story", "StoryTeller"),
    "tokenizers.tokenizer": ("Tokenizer",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # hidden from type checkers, which would then accept any name

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in ("errors", "ray"):
            return import_module(f".{name}", __name__)
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

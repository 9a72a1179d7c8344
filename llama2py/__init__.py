"""llama2.c as a Python package: a small LLaMA with a C hot loop.

>>> import llama2py
>>> tell = llama2py.StoryTeller()
>>> print(tell("a dragon who is afraid of fire", seed=7))  # doctest: +ELLIPSIS
Once upon a time, there was a dragon who was afraid of fire. ...
>>> model = llama2py.load()  # the built-in story model, or load("stories15M.bin")
>>> model.generate("Once upon a time", seed=1).finish_reason
'stop'
"""

from .chat import Chat
from .config import ModelConfig
from .conversion import convert
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
from .generation import Generation, Stream
from .job import Timings
from .logprobs import TokenLogprob
from .model import Model, load
from .request import Options
from .sampling import SamplingParams
from .scoring import Score, score_texts
from .session import Session
from .story import Story, StoryTeller
from .tokenizer import Tokenizer

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
    "load",
    "score_texts",
]

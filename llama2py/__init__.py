"""llama2.c as a Python package: a small LLaMA with a C hot loop.

>>> import llama2py
>>> model = llama2py.load("stories15M.bin")  # doctest: +SKIP
>>> print(model.generate("Once upon a time", seed=1).text)  # doctest: +SKIP
"""

from .chat import Chat
from .config import ModelConfig
from .errors import (
    Cancelled,
    CheckpointError,
    ClosedError,
    ConfigError,
    EngineError,
    Llama2pyError,
    ParameterError,
    PromptError,
    TokenizerError,
)
from .generation import Generation, Stream, Timings
from .model import Model, load
from .session import Session
from .tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "Chat",
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "EngineError",
    "Generation",
    "Llama2pyError",
    "Model",
    "ModelConfig",
    "ParameterError",
    "PromptError",
    "Session",
    "Stream",
    "Timings",
    "Tokenizer",
    "TokenizerError",
    "load",
]

"""The exceptions of llama2py, one class per kind of problem.

A message is one sentence that says where the problem is (which file or parameter), what is wrong,
and what to do. The library raises exceptions and never prints.
"""


class Llama2pyError(Exception):
    """The base class of every exception that llama2py raises on purpose."""


class ConfigError(Llama2pyError):
    """The hyperparameters of a model contradict each other, or the engine does not support them."""


class CheckpointError(Llama2pyError):
    """A checkpoint file is missing, malformed, truncated, or of an unknown format."""


class DownloadError(Llama2pyError):
    """A model cannot be downloaded: unknown name, no connection, or a damaged file."""


class TokenizerError(Llama2pyError):
    """A tokenizer file is missing, malformed, or does not match the model's vocabulary."""


class PromptError(Llama2pyError):
    """A prompt or a token sequence cannot be run: not text, not in the vocabulary, too long."""


class ContextError(PromptError):
    """There are more tokens than the model's context holds."""


class SessionError(Llama2pyError):
    """A session is in use, or a saved one is missing, malformed, truncated, or another model's."""


class ParameterError(Llama2pyError, ValueError):
    """An argument has a wrong type or lies outside its range, such as a ``top_p`` of 1.5."""


class UnknownOptionError(ParameterError, TypeError):
    """There is no option with this name; the message suggests the right one."""


class EngineError(Llama2pyError):
    """The engine cannot run: unsupported instruction set, or not enough memory."""


class TooBigError(EngineError):
    """The weights of a model need more memory than is free.

    Attributes
    ----------
    dtype : str or None
        A dtype whose weights would fit, if there is one.
    """

    def __init__(self, message: str, dtype: str | None = None) -> None:
        super().__init__(message)
        self.dtype = dtype


class ClosedError(Llama2pyError):
    """A model or a session was used after ``close()``."""


class Cancelled(Llama2pyError):
    """A forward pass was stopped: by its ``interrupted`` callback, or by closing its session."""


class CorpusError(Llama2pyError):
    """A text to train on or to score is missing, not UTF-8, or without a story."""


class TrainingError(Llama2pyError):
    """A training run cannot start, or cannot resume an earlier run."""


class BatchError(Llama2pyError):
    """A batch of rows cannot start, continue, or be written; its finished shards are kept."""

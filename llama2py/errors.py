"""What can go wrong, one class per kind of trouble.

Every message is one sentence that says which file (where there is one), what is wrong, and what
was expected. The library raises; it never prints.
"""


class Llama2pyError(Exception):
    """The parent of every error that llama2py raises on purpose."""


class ConfigError(Llama2pyError):
    """The numbers of a model contradict each other or lie outside what the engine computes."""


class CheckpointError(Llama2pyError):
    """A checkpoint file is missing, malformed, cut short, or of a kind that is not read."""


class DownloadError(Llama2pyError):
    """A model cannot be downloaded: no such name, no connection, a file that came damaged."""


class TokenizerError(Llama2pyError):
    """A tokenizer file is missing, malformed, or of another vocabulary than the model's."""


class PromptError(Llama2pyError):
    """A prompt or a token sequence cannot be run: not text, out of the vocabulary, too long."""


class ContextError(PromptError):
    """There are more tokens than the model's context holds."""


class SessionError(Llama2pyError):
    """A session is in use, or a saved one is missing, malformed, cut short or another model's."""


class ParameterError(Llama2pyError, ValueError):
    """An argument lies outside its range (a temperature of nan, a top_p of 1.5)."""


class UnknownOptionError(ParameterError, TypeError):
    """There is no option of this name; the message suggests the right one."""


class EngineError(Llama2pyError):
    """The engine cannot do what was asked: no such instruction set, no memory."""


class TooBigError(EngineError):
    """A model's weights are more than the memory that is free.

    Attributes
    ----------
    dtype : str or None
        One as which they would fit.
    """

    def __init__(self, message: str, dtype: str | None = None) -> None:
        super().__init__(message)
        self.dtype = dtype


class ClosedError(Llama2pyError):
    """A model or a session was used after ``close()``."""


class Cancelled(Llama2pyError):
    """A forward pass was stopped half-way: another thread closed its session."""


class CorpusError(Llama2pyError):
    """A text to train on or to score is missing, not UTF-8, or holds no story."""


class TrainingError(Llama2pyError):
    """A training run cannot start, or cannot go on where an earlier one stopped."""

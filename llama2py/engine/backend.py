"""The interface that the C engine and the NumPy reference share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from ..config import CacheDtype, Dtype, ModelConfig

Logits: TypeAlias = NDArray[np.float32]
Floats: TypeAlias = NDArray[np.float32]


class Draw(NamedTuple):
    """How to draw one token. The C engine takes the fields in this order.

    Attributes
    ----------
    temperature, top_p, coin : float
        As in `Backend.sample`. With a temperature of 0, `Backend.argmax` chooses the token.
    n_tokens : int
        Draw from the first ``n_tokens`` logits only; the others are padding.
    """

    temperature: float
    top_p: float
    coin: float
    n_tokens: int


class Cache(Protocol):
    """The KV cache of one session, in the backend's own layout."""

    def copy(self, n_positions: int) -> Cache:
        """Return a new cache with the same first ``n_positions`` positions."""

    def read(self, n_positions: int) -> tuple[Floats, Floats]:
        """Return the keys and values of the first positions.

        Returns
        -------
        tuple of two ndarrays, float32, shape (n_layers, n_kv_heads, n_positions, head_dim)
        """

    def write(self, keys: Floats, values: Floats) -> None:
        """Set the keys and values of the first positions; shapes as in `read`."""

    def close(self) -> None:
        """Free the memory. Closing twice does no harm."""


class Backend(Protocol):
    """Packed weights, and what can be computed with them.

    Attributes
    ----------
    config : ModelConfig
        The shape of the model.
    dtype : {'float32', 'bfloat16', 'int8', 'int4'}
        The type of the weight matrices.
    cache_dtype : {'float32', 'bfloat16'}
        The type of the keys and values in a KV cache.
    isa : str
        The instruction set in use.
    threads : int
        The threads of a forward pass.
    nbytes : int
        Bytes of the weights.
    cache_bytes : int
        Bytes of the KV cache of one session at full length.
    non_finite : int
        How many weights are NaN or infinite (of int8 and int4: how many scales).
    ahead : int
        How many tokens of one text to draw in one `run`.
    """

    config: ModelConfig
    dtype: Dtype
    cache_dtype: CacheDtype
    isa: str
    threads: int
    nbytes: int
    cache_bytes: int
    non_finite: int
    ahead: int = 1

    def new_cache(self) -> Cache:
        """Return an empty KV cache for ``config.seq_len`` positions."""

    @overload
    def run(
        self,
        tokens: Sequence[int],
        caches: Sequence[Any],
        positions: Sequence[int],
        rows: Sequence[int],
        draws: None = None,
    ) -> Logits: ...

    @overload
    def run(
        self,
        tokens: Sequence[int],
        caches: Sequence[Any],
        positions: Sequence[int],
        rows: Sequence[int],
        draws: Sequence[Sequence[Draw]],
        stop_tokens: Sequence[int] = (),
    ) -> list[list[int]]: ...

    def run(
        self,
        tokens: Sequence[int],
        caches: Sequence[Any],
        positions: Sequence[int],
        rows: Sequence[int],
        draws: Sequence[Sequence[Draw]] | None = None,
        stop_tokens: Sequence[int] = (),
    ) -> Logits | list[list[int]]:
        """Run a batch of tokens, and return logits or draw tokens from them.

        Parameters
        ----------
        tokens, caches, positions : sequence, length n
            Token i is run at ``positions[i]`` of ``caches[i]``, which `new_cache` made. The tokens
            of one cache are in order of position. All earlier positions of that cache have been
            run, in this call or before.
        rows : sequence of int
            The indices of the tokens whose logits are wanted.
        draws : sequence of sequence of Draw, optional
            For each of ``rows``, how to draw the tokens that follow it: at least one. With more
            than one, the row must be the last token of its cache: the first token is drawn and run
            at the next position, the second token is drawn from its logits, and so on.
        stop_tokens : sequence of int
            Draw no token after one of these.

        Returns
        -------
        ndarray, float32, shape (len(rows), vocab_size)
            Without ``draws``: the logits of the rows.
        list of list of int
            With ``draws``: for each row the tokens drawn. The last of them has not been run.
        """

    def digest(self) -> bytes:
        """Return a checksum of the weights that distinguishes this model from others."""

    def argmax(self, logits: Logits) -> int:
        """Return the first index of the largest of logits (vocab_size,)."""

    def sample(self, logits: Logits, temperature: float, top_p: float, coin: float) -> int:
        """Draw a token from logits (vocab_size,), which may be overwritten.

        The token comes from ``softmax(logits / temperature)``, cut to the smallest set of most
        probable tokens whose sum exceeds ``top_p`` (0 or 1: no cut). ``coin`` is in [0, 1).
        """

    def close(self) -> None:
        """Free the weights. Closing twice does no harm. Its caches must not be used afterwards."""


def draw_token(backend: Backend, logits: Logits, draw: Draw) -> int:
    """Draw one token from logits (vocab_size,), which may be overwritten."""
    logits = logits[: draw.n_tokens]
    if draw.temperature == 0:
        return backend.argmax(logits)
    return backend.sample(logits, draw.temperature, draw.top_p, draw.coin)


def draw_rows(
    backend: Backend,
    tokens: Sequence[int],
    caches: Sequence[Any],
    positions: Sequence[int],
    rows: Sequence[int],
    draws: Sequence[Sequence[Draw]],
    stop_tokens: Sequence[int] = (),
) -> list[list[int]]:
    """Draw tokens as `Backend.run` does, for a backend that only computes logits itself."""
    logits = backend.run(tokens, caches, positions, rows)  # (len(rows), vocab_size)
    drawn: list[list[int]] = []
    for row, row_logits, row_draws in zip(rows, logits, draws, strict=True):
        text = [draw_token(backend, row_logits, row_draws[0])]
        for n, draw in enumerate(row_draws[1:], 1):
            if text[-1] in stop_tokens:
                break
            (next_logits,) = backend.run(text[-1:], [caches[row]], [positions[row] + n], [0])
            text.append(draw_token(backend, next_logits, draw))
        drawn.append(text)
    return drawn

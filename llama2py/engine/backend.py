"""What computes logits: the interface that the C engine and the NumPy reference share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..config import CacheDtype, Dtype, ModelConfig

Logits: TypeAlias = NDArray[np.float32]
Floats: TypeAlias = NDArray[np.float32]


class Draw(NamedTuple):
    """How a backend is to draw one token; the C engine takes the fields in this order.

    Attributes
    ----------
    temperature, top_p, coin : float
        As in `Backend.sample`; with a temperature of 0, as in `Backend.argmax`.
    n_tokens : int
        From the first so many logits.
    """

    temperature: float
    top_p: float
    coin: float
    n_tokens: int


class Cache(Protocol):
    """The keys and values of one session, in the backend's own form."""

    def copy(self, n_positions: int) -> Cache:
        """Another one with the same first positions."""

    def read(self, n_positions: int) -> tuple[Floats, Floats]:
        """Keys and values of the first positions, (n_layers, n_kv_heads, n, head_dim) each."""

    def write(self, keys: Floats, values: Floats) -> None:
        """Set those of the first positions, in the same form."""

    def close(self) -> None:
        """Free the memory. Twice does no harm."""


class Backend(Protocol):
    """Packed weights, and the operations on them.

    Attributes
    ----------
    config : ModelConfig
        The shape.
    dtype : {'float32', 'bfloat16', 'int8', 'int4'}
        What the matrices are made of.
    cache_dtype : {'float32', 'bfloat16'}
        What sessions keep keys and values in.
    isa : str
        The instruction set in use.
    threads : int
        Threads of a forward pass.
    nbytes : int
        Memory of the weights.
    cache_bytes : int
        Memory of one session at full length.
    non_finite : int
        Weights (of int8 and int4: scales) that are NaN or infinite.
    ahead : int
        How many tokens of one text `generate` should draw at once.
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
        """An empty cache of ``config.seq_len`` positions."""

    def forward(
        self,
        tokens: Sequence[int],
        caches: Sequence[Any],
        positions: Sequence[int],
        logits_rows: Sequence[int],
    ) -> Logits:
        """Run a batch of tokens: token i at ``positions[i]`` of ``caches[i]``, made by `new_cache`.

        Tokens of one cache stand in order of position, and all earlier positions of it have been
        run, in this call or before.

        Returns
        -------
        ndarray, float32, shape (len(logits_rows), vocab_size)
            The logits behind those tokens of the batch.
        """

    def next_tokens(
        self,
        tokens: Sequence[int],
        caches: Sequence[Any],
        positions: Sequence[int],
        logits_rows: Sequence[int],
        draws: Sequence[Draw],
    ) -> list[int]:
        """Run a batch, and draw a token from each row of its logits.

        Here by `forward` and `pick`; a backend may have a shorter way to the same tokens.

        Parameters
        ----------
        draws : sequence of Draw
            One for each of ``logits_rows``.
        """
        logits = self.forward(tokens, caches, positions, logits_rows)
        return [pick(self, row, draw) for row, draw in zip(logits, draws, strict=True)]

    def generate(
        self, token: int, cache: Any, position: int, draws: Sequence[Draw], ends: Sequence[int]
    ) -> list[int]:
        """Go on with a text: run a token, draw the next one, run that, and so on.

        Here by `next_tokens`; a backend may have a shorter way to the same tokens.

        Parameters
        ----------
        token, cache, position
            As in `forward`, of one text.
        draws : sequence of Draw
            One for each token, at least one.
        ends : sequence of int
            Tokens of the vocabulary; behind one of these no more are drawn.

        Returns
        -------
        list of int
            The last one has not been run.
        """
        drawn = [token]
        for n, draw in enumerate(draws):
            drawn += self.next_tokens(drawn[-1:], [cache], [position + n], [0], [draw])
            if drawn[-1] in ends:
                break
        return drawn[1:]

    def digest(self) -> bytes:
        """Tells these weights from others, as far as no few tokens' logits do: the embeddings."""

    def argmax(self, logits: Logits) -> int:
        """The first index of the largest of logits (vocab_size,)."""

    def sample(self, logits: Logits, temperature: float, top_p: float, coin: float) -> int:
        """Draw a token from logits (vocab_size,), which may be overwritten.

        From ``softmax(logits / temperature)``, cut to the smallest set of most probable tokens
        whose sum exceeds ``top_p`` (0 or 1: not cut), by a coin in [0, 1).
        """

    def close(self) -> None:
        """Free the weights. Twice does no harm; caches must not be used after."""


def pick(backend: Backend, logits: Logits, draw: Draw) -> int:
    """Draw a token from logits (vocab_size,), which may be overwritten."""
    logits = logits[: draw.n_tokens]
    if draw.temperature == 0:
        return backend.argmax(logits)
    return backend.sample(logits, draw.temperature, draw.top_p, draw.coin)

"""The C engine as a `Backend`."""

from __future__ import annotations

import atexit
import math
from _thread import start_new_thread
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from operator import lt
from threading import current_thread, main_thread
from typing import Any

import numpy as np

from .._util import amount
from ..checkpoint import (
    Checkpoint,
    QuantizedTensor,
    StoredTensor,
    Tensor,
    int8_group_size,
    own_dtype,
)
from ..config import CacheDtype, Dtype
from ..errors import Cancelled, ClosedError, EngineError
from .backend import Draw, Floats, Logits
from .c_config import c_arrays, c_config, packed_bytes, tensor_number
from .cpu import default_threads
from .extension import ffi, lib
from .isa import choose_isa
from .memory import check_memory

# A pass of more multiplications may take some hundredths of a second: Ctrl-C must interrupt it.
LONG_WORK = 1_000_000_000
# Bytes that the tokens drawn in one call of C may read: some milliseconds, too short to interrupt.
# Python's caches are cold after each call, which would take a large part of a small model's time.
_AHEAD_BYTES = 120_000_000
_MOST_AHEAD = 32

_SMALLEST_BUFFERS = 32, 8, _MOST_AHEAD, 16  # tokens, rows, draws, stop tokens

# Milliseconds after which the main thread handles signals while it waits for a pass.
_SIGNALS_EVERY = 20

_STORED = {
    np.dtype(np.float32): lib.L2P_FLOAT32,
    np.dtype(np.float16): lib.L2P_FLOAT16,
    np.dtype(np.uint16): lib.L2P_BFLOAT16,
}

atexit.register(lib.l2p_release)  # ends the engine's threads


class EngineCache:
    """A session's keys and values in the engine's memory."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        session = lib.l2p_session_new(engine.handle)
        if session == ffi.NULL:
            config = engine.config
            raise EngineError(
                f"no memory for a session: its keys and values of {config.seq_len} positions take"
                f" {engine.cache_bytes / 2**20:.0f} MiB"
            )
        self._session: Any = ffi.gc(session, lib.l2p_session_free)
        self.cancel: Any = ffi.new("int32_t *")  # the engine reads it once a layer
        self._pass: Any = None  # a flag that it has ended, and its `cancel`

    @property
    def handle(self) -> Any:
        """The C pointer."""
        if self._session is None:
            raise ClosedError("the session is closed")
        if self._pass is not None:
            self._end_pass()
        return self._session

    def note_pass(self, ended: Any, cancel: Any) -> None:
        """Note that a thread of its own runs a pass over this cache."""
        self._pass = ended, cancel

    def forget_pass(self) -> None:
        """Note that it has ended."""
        self._pass = None

    def _end_pass(self) -> None:
        """Wait for the pass of another thread, which may still write here."""
        ended, cancel = self._pass
        if current_thread() is main_thread():  # which does not wait any more: it was interrupted
            cancel[0] = 1
        while not lib.l2p_wait_flag(ended, _SIGNALS_EVERY):
            pass
        self._pass = None
        if self._session is not None:
            cancel[0] = 0

    def copy(self, n_positions: int) -> EngineCache:
        model, session = self._engine.handle, self.handle  # alive during the copy
        made = EngineCache(self._engine)
        error = lib.l2p_session_copy(made.handle, session, n_positions)
        del model
        _check(error, f"a copy of {n_positions} positions")
        return made

    def read(self, n_positions: int) -> tuple[Floats, Floats]:
        keys, values = (np.empty(self._shape(n_positions), np.float32) for _ in range(2))
        self._move(lib.l2p_session_read, keys, values)
        return keys, values

    def write(self, keys: Floats, values: Floats) -> None:
        keys, values = (np.array(array, np.float32, order="C") for array in (keys, values))
        n_positions = keys.shape[2]
        if not keys.shape == values.shape == self._shape(n_positions):
            raise EngineError(f"keys of shape {keys.shape}, expected {self._shape(n_positions)}")
        self._move(lib.l2p_session_write, keys, values)

    def _shape(self, n_positions: int) -> tuple[int, ...]:
        config = self._engine.config
        return (config.n_layers, config.n_kv_heads, n_positions, config.head_dim)

    def _move(self, call: Callable[..., int], keys: Floats, values: Floats) -> None:
        """Read or write all positions of arrays of the shape that `_shape` returns."""
        model, session = self._engine.handle, self.handle  # alive during the copy
        buffers = [ffi.from_buffer("float[]", a, require_writable=True) for a in (keys, values)]
        error = call(session, keys.shape[2], *buffers)
        del model
        _check(error, f"a copy of {keys.shape[2]} positions")

    def close(self) -> None:
        self.cancel[0] = 1  # a call that runs in another thread ends soon
        self._session = None  # frees the memory, when no call uses it


class _Buffers:
    """Memory for the arguments of one `l2p_forward`.

    Engines use it again: to allocate it for each token takes as long as a layer of a small model.
    """

    def __init__(self, n_tokens: int, n_rows: int, n_draws: int, n_stop_tokens: int) -> None:
        self.size = n_tokens, n_rows, n_draws, n_stop_tokens
        self.tokens, self.positions = (ffi.new("int32_t[]", n_tokens) for _ in range(2))
        self.sessions = ffi.new("l2p_session *[]", n_tokens)
        self.rows, self.n_draws, self.n_drawn = (ffi.new("int32_t[]", n_rows) for _ in range(3))
        self.draws, self.drawn = ffi.new("l2p_draw[]", n_draws), ffi.new("int32_t[]", n_draws)
        self.stop_tokens = ffi.new("int32_t[]", n_stop_tokens)
        self.cancel = ffi.new("int32_t *")
        self.batch = ffi.new(
            "l2p_batch *",
            {
                "tokens": self.tokens,
                "sessions": self.sessions,
                "positions": self.positions,
                "rows": self.rows,
                "n_draws": self.n_draws,
                "draws": self.draws,
                "stop_tokens": self.stop_tokens,
                "drawn": self.drawn,
                "n_drawn": self.n_drawn,
            },
        )


class Engine:
    """Weights packed for one instruction set. See `Backend` for the methods.

    Parameters
    ----------
    checkpoint : Checkpoint
        Where the weights come from. Its pages are released tensor by tensor, so that memory peaks
        at the packed model plus one tensor. May be closed afterwards.
    threads : int, optional
        Threads of a forward pass; by default the physical cores.
    dtype : {'float32', 'bfloat16', 'int8', 'int4'}, optional
        The type of the packed matrices; by default the checkpoint's. All threads convert and
        quantize them while packing, with the same result as `checkpoint.convert_matrix`.
    cache_dtype : {'float32', 'bfloat16'}
        The type of keys and values. bfloat16 halves the memory of a session, and what a token late
        in the context reads.
    progress : callable, optional
        Called after each tensor with the number of weights packed so far and in all.

    Raises
    ------
    TooBigError
        If the packed weights are larger than the free memory; nothing is read then.
    EngineError
        If the instruction set forced by ``LLAMA2PY_ISA`` is not available, or memory is short.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        threads: int | None = None,
        dtype: Dtype | None = None,
        cache_dtype: CacheDtype = "float32",
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> None:
        self.config = checkpoint.config
        self._n_params = checkpoint.config.n_params
        self.dtype: Dtype = dtype or own_dtype(checkpoint)
        self.cache_dtype: CacheDtype = cache_dtype
        self.cache_bytes = self.config.cache_bytes // (1 if cache_dtype == "float32" else 2)
        self.threads = threads or default_threads()
        isa = choose_isa()
        self.isa = ffi.string(lib.l2p_isa_name(isa)).decode("ascii")
        check_memory(checkpoint, self.dtype, self.cache_bytes)
        self.nbytes = packed_bytes(checkpoint, self.dtype)
        arrays = c_arrays(self.config)  # alive during the call
        c_shape, model = (
            c_config(checkpoint, self.dtype, cache_dtype, arrays),
            ffi.new("l2p_model **"),
        )
        error = lib.l2p_model_new(c_shape, isa, model)
        _check(error, f"the weights of {checkpoint.path}, {amount(self.nbytes)}")
        self._model: Any = ffi.gc(model[0], lib.l2p_model_free)
        self.ahead = max(1, min(_MOST_AHEAD, _AHEAD_BYTES // (self.nbytes + self.cache_bytes)))
        self.non_finite = 0
        self._buffers: list[_Buffers] = []  # that no call uses
        group_size, done = int8_group_size(checkpoint), 0
        for name, tensors in checkpoint.tensors.items():
            for layer, tensor in enumerate(tensors):
                self._pack(name, layer, tensor, group_size)
                done += math.prod(tensor.shape)
                progress(done, self._n_params)

    def _pack(self, name: str, layer: int, tensor: Tensor, group_size: int) -> None:
        where, bad = (tensor_number(name), layer), ffi.new("int64_t *")
        if not self._pack_from_file(where, tensor, group_size, bad):
            # Some tensors make their arrays on use; these live until the engine has read them.
            arrays: tuple[np.ndarray[Any, Any], ...]
            if isinstance(tensor, QuantizedTensor) and tensor.bits == 4 and self.dtype == "int4":
                values, scales = tensor.parts()
                kind, arrays = lib.L2P_INT4, (values, scales.astype(np.float16))
            elif isinstance(tensor, QuantizedTensor) and tensor.group_size == group_size:
                kind, arrays = lib.L2P_INT8, tensor.parts()
            elif isinstance(tensor, StoredTensor) and len(tensor.shape) == 2 and tensor.is_plain:
                stored = tensor.stored
                kind, arrays = _STORED[stored.dtype], (stored,)  # widened as it is packed
            else:
                kind = lib.L2P_FLOAT32
                arrays = (np.ascontiguousarray(tensor.dequantize()),)
            addresses = [*map(_address, arrays), ffi.NULL][:2]
            error = lib.l2p_model_set(self.handle, *where, kind, *addresses, self.threads, bad)
            _check(error, f"tensor {name}")
        self.non_finite += bad[0]

    def _pack_from_file(
        self, where: tuple[int, int], tensor: Tensor, group_size: int, bad: Any
    ) -> bool:
        """Pack a matrix whose rows lie in a file, without a copy; False if they do not."""
        rows, scales = tensor.rows_in_file, None
        if rows is None:
            return False
        if isinstance(tensor, QuantizedTensor):
            if tensor.group_size != group_size:
                return False
            kind, scales = lib.L2P_INT8, tensor.scales  # alive during the call
        elif self.dtype == "int8" and tensor.shape[1] % group_size:
            return False  # a group that is quantized reaches from one row into the next
        else:
            kind = _STORED[rows.dtype]
        source = rows.file.fileno(), rows.offset, ffi.NULL if scales is None else _address(scales)
        error = lib.l2p_model_read(self.handle, *where, kind, *source, self.threads, bad)
        if error == lib.L2P_READ_FAILED:
            rows.read()  # raises an error that says why
        _check(error, f"the tensor at byte {rows.offset} of {rows.file.path}")
        return True

    @property
    def handle(self) -> Any:
        """The C pointer."""
        if self._model is None:
            raise ClosedError("the model is closed")
        return self._model

    def new_cache(self) -> EngineCache:
        return EngineCache(self)

    def run(
        self,
        tokens: Sequence[int],
        caches: Sequence[EngineCache],
        positions: Sequence[int],
        rows: Sequence[int],
        draws: Sequence[Sequence[Draw]] | None = None,
        stop_tokens: Sequence[int] = (),
    ) -> Any:
        if not len(tokens) == len(caches) == len(positions):
            raise EngineError(
                f"a batch of {len(tokens)} tokens has {len(caches)} caches"
                f" and {len(positions)} positions"
            )
        if draws is not None and len(draws) != len(rows):
            raise EngineError(f"{len(draws)} lists of draws for {len(rows)} rows")
        sessions = [cache.handle for cache in caches]  # alive during the call
        flat = list(chain.from_iterable(draws or ()))
        buffers = self._take_buffers(len(tokens), len(rows), len(flat), len(stop_tokens))
        n = len(tokens)
        buffers.tokens[0:n] = tokens
        buffers.sessions[0:n] = sessions
        buffers.positions[0:n] = positions
        batch = buffers.batch
        batch.n_tokens, batch.n_rows, batch.n_stop_tokens = n, len(rows), len(stop_tokens)
        buffers.rows[0 : len(rows)] = rows
        if draws is None:
            logits = np.empty((len(rows), self.config.vocab_size), np.float32)
            batch.logits = c_logits = ffi.from_buffer("float[]", logits, require_writable=True)
            self._forward(buffers, caches, n, [sessions, c_logits])
            result: Any = logits
        else:
            batch.logits = ffi.NULL
            counts = list(map(len, draws))
            buffers.n_draws[0 : len(counts)] = counts
            buffers.draws[0 : len(flat)] = flat
            buffers.stop_tokens[0 : len(stop_tokens)] = stop_tokens
            self._forward(buffers, caches, n + len(flat) - len(rows), [sessions])
            drawn, n_drawn = ffi.unpack(buffers.drawn, len(flat)), buffers.n_drawn
            begins = accumulate(counts, initial=0)
            result = [
                drawn[at : at + n_drawn[i]] for i, at in zip(range(len(rows)), begins, strict=False)
            ]
        self._buffers.append(buffers)  # not after an exception: another thread may still use them
        return result

    def _take_buffers(self, *size: int) -> _Buffers:
        """Return buffers that nobody uses, of this size (as `_Buffers`) or larger."""
        try:
            buffers = self._buffers.pop()
        except IndexError:
            buffers = _Buffers(*map(max, size, _SMALLEST_BUFFERS))
        if any(map(lt, buffers.size, size)):
            buffers = _Buffers(*map(max, size, buffers.size))
        return buffers

    def _forward(
        self, buffers: _Buffers, caches: Sequence[EngineCache], n_tokens: int, alive: list[Any]
    ) -> None:
        """Call `l2p_forward`; Ctrl-C can interrupt it if it may take long."""
        # A batch of several sessions goes on when one of them is closed.
        cancel = caches[0].cancel if len(set(caches)) == 1 else buffers.cancel
        arguments = (self.handle, buffers.batch, self.threads, cancel)
        if self._n_params * n_tokens < LONG_WORK or current_thread() is not main_thread():
            error = lib.l2p_forward(*arguments)
        else:
            alive.append(buffers)
            error = _run_aside(lib.l2p_forward, arguments, alive, caches)
        _check(error, "a forward pass")

    def digest(self) -> bytes:
        out = ffi.new("uint64_t[4]")
        lib.l2p_model_digest(self.handle, out)  # all of them
        return bytes(ffi.buffer(out))

    def argmax(self, logits: Logits) -> int:
        values = ffi.from_buffer("float[]", logits)
        return int(lib.l2p_argmax(self.handle, values, len(values)))

    def sample(self, logits: Logits, temperature: float, top_p: float, coin: float) -> int:
        values = ffi.from_buffer("float[]", logits, require_writable=True)
        scratch = ffi.new("int32_t[]", len(values))
        return int(
            lib.l2p_sample(self.handle, values, len(values), temperature, top_p, coin, scratch)
        )

    def read_seconds(self) -> float:
        """Measure how long all threads together take to read the packed weights; for `bench`."""
        return float(lib.l2p_time_reading(self.handle, self.threads))

    def close(self) -> None:
        self._model = None  # frees the memory, now or when the call of another thread ends


def _run_aside(
    call: Callable[..., int],
    arguments: tuple[Any, ...],
    alive: list[Any],
    caches: Sequence[EngineCache],
) -> int:
    """Run a forward pass in a thread of its own, while the main thread handles signals.

    An exception that a signal handler raises, such as Ctrl-C's, ends the pass within a layer. It
    may come between any two instructions here, and another one while the first is handled. So the
    caches know of the pass before it begins, and whoever uses one next ends the pass first. No
    lock is held here that a handler could need.
    """
    errors: list[int] = []
    ended, cancel = ffi.new("int32_t *"), arguments[-1]

    def run() -> None:
        try:
            errors.append(call(*arguments))
        finally:
            lib.l2p_set_flag(ended)
            alive.clear()  # until here, whatever becomes of the caller

    started: list[int] = []
    try:
        for cache in set(caches):
            cache.note_pass(ended, cancel)
        # One call of C: no signal handler runs after the thread has started and before we know it.
        started.extend(map(start_new_thread, [run], [()]))
        while not lib.l2p_wait_flag(ended, _SIGNALS_EVERY):
            pass
    except BaseException as error:
        if started:
            cancel[0] = 1
            lib.l2p_wait_flag(ended, 10_000)  # longer if it waits for another thread's pass
            raise
        ended[0] = 1  # nothing runs
        if type(error) is RuntimeError and "start new thread" in str(error):
            return call(*arguments)  # the system gives no thread
        raise
    for cache in set(caches):
        cache.forget_pass()
    return errors[0]


def _address(array: np.ndarray[Any, Any]) -> Any:
    """Return where a C-contiguous array's bytes are; the caller keeps the array alive."""
    return ffi.cast("void *", array.ctypes.data)


def _check(error: int, what: str) -> None:
    if error == lib.L2P_NO_MEMORY:
        raise EngineError(f"no memory left for {what}")
    if error == lib.L2P_CANCELLED:
        raise Cancelled(f"{what} was cancelled: its session has been closed meanwhile")
    if error != lib.L2P_OK:
        raise EngineError(f"{what} got an argument that the engine refuses (error {error})")

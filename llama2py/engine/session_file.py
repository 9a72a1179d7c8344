"""A session in a file: its tokens, their keys and values, and whose they are.

The file, little-endian: the magic, uint32 version, uint32 n, 32 bytes of the model's fingerprint,
int32 tokens[n], float32 keys[n_layers][n_kv_heads][n][head_dim], values of the same shape, 32
bytes SHA-256 of all that is before them.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np

from ..config import ModelConfig
from ..errors import SessionError
from ..formats.atomic_write import replacing
from .backend import Backend, Cache

MAGIC = b"llama2py session"
VERSION = 1
_HEADER = struct.Struct(f"<{len(MAGIC)}sII32s")
_DIGEST = 32  # bytes of SHA-256
_PROBE = 32  # tokens

_fingerprints: WeakKeyDictionary[Backend, bytes] = WeakKeyDictionary()


def fingerprint(backend: Backend) -> bytes:
    """32 bytes that tell a model from others: its config, its weights, and how it computes.

    How, the logits behind a few tokens tell: an instruction set with the same bits is the same
    model, the portable kernels are not, nor are int8 weights packed for another dot product.
    Reads all weights, once for a model.
    """
    known = _fingerprints.get(backend)
    if known is None:
        config = backend.config
        n = min(_PROBE, config.seq_len, config.vocab_size)
        tokens = [i * config.vocab_size // n for i in range(n)]
        cache = backend.new_cache()
        try:
            logits = backend.run(tokens, [cache] * n, range(n), range(n))
        finally:
            cache.close()
        about = repr((astuple(config), backend.dtype)).encode() + backend.digest()
        known = hashlib.sha256(about + logits.astype("<f4").tobytes()).digest()
        _fingerprints[backend] = known
    return known


def write_session(path: Path, backend: Backend, cache: Cache, tokens: Sequence[int]) -> None:
    """Write the first ``len(tokens)`` positions of a cache, whole or not at all.

    Raises
    ------
    SessionError
        If the file cannot be written.
    """
    keys, values = cache.read(len(tokens))
    digest = hashlib.sha256()
    parts = (
        _HEADER.pack(MAGIC, VERSION, len(tokens), fingerprint(backend)),
        np.asarray(tokens, "<i4").tobytes(),
        np.ascontiguousarray(keys, "<f4").data,
        np.ascontiguousarray(values, "<f4").data,
    )
    with replacing(path, SessionError) as file:
        for part in parts:
            digest.update(part)
            file.write(part)
        file.write(digest.digest())


def read_session(path: Path, backend: Backend) -> tuple[Cache, list[int]]:
    """Read what `write_session` has written.

    Returns
    -------
    Cache
        A new one with these positions.
    list of int
        The tokens.

    Raises
    ------
    SessionError
        If the file is missing, malformed, cut short, changed, or another model's.
    EngineError
        If there is no memory for the cache.
    """
    try:
        if not path.is_file():
            problem = "this is no regular file" if path.exists() else "no such file"
            raise SessionError(f"{path}: {problem}, expected a saved session")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(_HEADER.size)
            n = _check_header(path, head, size, backend.config)
            if head[-_DIGEST:] != fingerprint(backend):
                raise SessionError(
                    f"{path}: this session is of another model, or of the same one computed"
                    " otherwise (dtype, cache_dtype, backend, portable kernels)"
                    ", expected one of this model"
                )
            body = file.read(size - _HEADER.size)
    except OSError as error:
        raise SessionError(f"{path}: cannot be read: {error.strerror or error}") from None
    content = memoryview(body)[:-_DIGEST]
    digest = hashlib.sha256(head)
    digest.update(content)
    if len(body) != size - _HEADER.size or digest.digest() != body[-_DIGEST:]:
        raise SessionError(f"{path}: its checksum is wrong, expected the file as it was written")
    config = backend.config
    tokens = np.frombuffer(content[: 4 * n], "<i4").tolist()
    if not all(0 <= token < config.vocab_size for token in tokens):
        raise SessionError(f"{path}: a token is out of the vocabulary of {config.vocab_size}")
    shape = (2, config.n_layers, config.n_kv_heads, n, config.head_dim)
    keys, values = np.frombuffer(content[4 * n :], "<f4").reshape(shape)
    cache = backend.new_cache()
    cache.write(keys, values)
    return cache, tokens


def _check_header(path: Path, head: bytes, size: int, config: ModelConfig) -> int:
    """The number of tokens, if the file is of the size that belongs to it."""
    if len(head) < _HEADER.size or not head.startswith(MAGIC):
        raise SessionError(
            f"{path}: this is no session of llama2py, or a cut one ({size} bytes), expected one"
        )
    _, version, n, _ = _HEADER.unpack(head)
    if version != VERSION:
        raise SessionError(f"{path}: version {version} of saved sessions, expected {VERSION}")
    if n > config.seq_len:
        raise SessionError(f"{path}: {n} tokens, expected at most the context's {config.seq_len}")
    expected = _HEADER.size + 4 * n + 8 * config.n_layers * config.kv_dim * n + _DIGEST
    if size != expected:
        raise SessionError(f"{path}: {size} bytes, expected {expected} for {n} tokens")
    return int(n)

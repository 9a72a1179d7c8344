"""A session in a file: its tokens, their keys and values, and the model they belong to.

The file, little-endian: the magic, uint32 version, uint32 n, 32 bytes of the model's fingerprint,
int32 tokens[n], float32 keys[n_layers][n_kv_heads][n][head_dim], values of the same shape, and 32
bytes of SHA-256 over everything before.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np

from ..config import ModelConfig, RopeScaling
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
    """Return 32 bytes that identify a model: its config, its weights, and how it computes.

    The logits after a few tokens stand for how it computes. Instruction sets with the same bits
    give the same fingerprint; the portable kernels and int8 weights packed for another dot product
    give others. Reads all weights, once for each model.
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
        about = repr((_numbers(config), backend.dtype)).encode() + backend.digest()
        known = hashlib.sha256(about + logits.astype("<f4").tobytes()).digest()
        _fingerprints[backend] = known
    return known


def _numbers(config: ModelConfig) -> tuple[object, ...]:
    """The numbers of a model: a LLaMA's, and the optional steps of others.

    A LLaMA has the numbers that it had before there were optional steps, so that its older session
    files remain valid.
    """
    names = [field.name for field in fields(config)]
    first = names.index("qkv_bias")
    scaling = config.rope_scaling
    numbers = [*astuple(config)[:first]]
    if scaling is not None:
        numbers[names.index("rope_scaling")] = astuple(scaling)[:6]
    usual = {field.name: field.default for field in fields(config)[first:]}
    own = [(name, getattr(config, name)) for name in usual if getattr(config, name) != usual[name]]
    if scaling is not None and astuple(scaling)[6:] != astuple(RopeScaling("linear"))[6:]:
        own.append(("rope_scaling", astuple(scaling)))
    return (*numbers, *own)


def write_session(path: Path, backend: Backend, cache: Cache, tokens: Sequence[int]) -> None:
    """Write the tokens and their positions of a KV cache, as a whole or not at all.

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
    """Read a file that `write_session` has written.

    Returns
    -------
    Cache
        A new KV cache with these positions.
    list of int
        The tokens.

    Raises
    ------
    SessionError
        If the file is missing, malformed, truncated or changed, or belongs to another model.
    EngineError
        If there is not enough memory for the KV cache.
    """
    try:
        if not path.is_file():
            problem = "not a regular file" if path.exists() else "no such file"
            raise SessionError(f"{path}: {problem}, expected a saved session")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(_HEADER.size)
            n = _check_header(path, head, size, backend.config)
            if head[-_DIGEST:] != fingerprint(backend):
                raise SessionError(
                    f"{path}: this session belongs to another model, or to this one with another"
                    " dtype, cache_dtype, backend, or with the portable kernels"
                )
            body = file.read(size - _HEADER.size)
    except OSError as error:
        raise SessionError(f"{path}: cannot be read: {error.strerror or error}") from None
    content = memoryview(body)[:-_DIGEST]
    digest = hashlib.sha256(head)
    digest.update(content)
    if len(body) != size - _HEADER.size or digest.digest() != body[-_DIGEST:]:
        raise SessionError(
            f"{path}: the checksum is wrong: the file has changed since it was written"
        )
    config = backend.config
    tokens = np.frombuffer(content[: 4 * n], "<i4").tolist()
    if not all(0 <= token < config.vocab_size for token in tokens):
        raise SessionError(
            f"{path}: a token is outside the vocabulary ({config.vocab_size} tokens)"
        )
    shape = (2, config.n_layers, config.n_kv_heads, n, config.head_dim)
    keys, values = np.frombuffer(content[4 * n :], "<f4").reshape(shape)
    cache = backend.new_cache()
    cache.write(keys, values)
    return cache, tokens


def _check_header(path: Path, head: bytes, size: int, config: ModelConfig) -> int:
    """Return the number of tokens, if the file has the right size for it."""
    if len(head) < _HEADER.size or not head.startswith(MAGIC):
        raise SessionError(
            f"{path}: not a saved session of llama2py, or a truncated one ({size} bytes)"
        )
    _, version, n, _ = _HEADER.unpack(head)
    if version != VERSION:
        raise SessionError(f"{path}: the file has version {version}, expected {VERSION}")
    if n > config.seq_len:
        raise SessionError(f"{path}: {n} tokens, expected at most the context's {config.seq_len}")
    expected = _HEADER.size + 4 * n + 8 * config.n_layers * config.kv_dim * n + _DIGEST
    if size != expected:
        raise SessionError(f"{path}: {size} bytes, expected {expected} for {n} tokens")
    return int(n)

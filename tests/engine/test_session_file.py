"""Sessions in files: the same bits, no other model's, and no trust in what the file says."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py import ClosedError, Model, ModelConfig, SessionError
from llama2py.checkpoint import DenseTensor
from llama2py.engine.isa import isa_names
from llama2py.engine.native import Engine
from llama2py.engine.reference import Reference
from tests.conftest import TINY, in_memory, random_checkpoint, tiny_model, tiny_tokenizer

TOKENS = [1, 270, 33, 259, 5, 299, 0, 271, *range(3, 43)]
# Heads of whole blocks of 16, and a context that is no multiple of 16.
WIDE = ModelConfig(64, 48, 2, 2, 1, 300, 50)

MAKES: dict[str, Callable[[], Model]] = {
    "c": tiny_model,
    "numpy": lambda: tiny_model("numpy"),
    "int8": lambda: Model(Engine(random_checkpoint(TINY, 4)), tiny_tokenizer()),
    "wide": lambda: Model(Engine(random_checkpoint(WIDE)), tiny_tokenizer()),
}


def saved(model: Model, path: Path, tokens: list[int]) -> bytes:
    with model.session() as session:
        if tokens:
            session.forward(tokens)
        session.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 47])
@pytest.mark.parametrize("kind", MAKES)
def test_a_loaded_session_continues_with_the_same_bits(kind: str, n: int, tmp_path: Path) -> None:
    """In another model of the same weights, as another process has it."""
    path = tmp_path / "a.session"
    with MAKES[kind]() as model, model.session() as straight:
        saved(model, path, TOKENS[:n])
        if n:
            straight.forward(TOKENS[:n])
        expected = straight.forward([7, 8, 9], all_logits=True)
    with MAKES[kind]() as other, other.load_session(str(path)) as session:
        assert (session.position, session.tokens) == (n, TOKENS[:n])
        with session.fork() as fork:
            for one in (session, fork):
                assert one.forward([7, 8, 9], all_logits=True).tobytes() == expected.tobytes()
        session.rewind(n // 2)
        assert session.tokens == TOKENS[: n // 2]


@pytest.mark.parametrize("config", [TINY, WIDE])
def test_the_engines_keys_are_the_references(config: ModelConfig) -> None:
    """Two layouts of memory, one form on the way out and in."""
    checkpoint = random_checkpoint(config)
    found = []
    backends: list[Any] = [Engine(checkpoint), Reference(checkpoint)]
    for backend in backends:
        cache = backend.new_cache()
        backend.run(TOKENS[:20], [cache] * 20, range(20), [19])
        found.append(cache.read(20))
        other = backend.new_cache()
        other.write(*found[-1])
        for ours, theirs in zip(other.read(20), found[-1], strict=True):
            assert ours.tobytes() == theirs.tobytes()
    for ours, theirs in zip(*found, strict=True):
        shape = (config.n_layers, config.n_kv_heads, 20, config.head_dim)
        assert ours.shape == theirs.shape == shape
        assert np.allclose(ours, theirs, rtol=0, atol=1e-4)
    assert not np.allclose(found[0][0], found[0][1])


def test_any_simd_kernels_continue_a_session(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LLAMA2PY_ISA", raising=False)
    path = tmp_path / "a.session"
    saved(tiny_model(), path, TOKENS)
    with tiny_model() as model, model.load_session(path) as session:
        expected = session.forward([9])
    for isa in isa_names():
        monkeypatch.setenv("LLAMA2PY_ISA", isa)
        with tiny_model() as model:
            if isa == "portable" and isa_names()[0] != "portable":
                with pytest.raises(SessionError, match="portable kernels"):
                    model.load_session(path)
            else:
                assert model.load_session(path).forward([9]).tobytes() == expected.tobytes()


# ---- another model's ----


def changed(name: str, how: str) -> Model:
    """The tiny model with one tensor that is not what it was."""
    tensors = dict(random_checkpoint(TINY).tensors)
    layers = list(tensors[name])
    values = layers[-1].dequantize().copy()
    if how == "sign":
        values[-1] = -values[-1]
    elif how == "zero":
        values[...] = 0
    else:
        values = values[::-1].copy()
    layers[-1] = DenseTensor(values)
    tensors[name] = tuple(layers)
    return Model(Engine(in_memory(TINY, tensors)), tiny_tokenizer())


@pytest.mark.parametrize("how", ["sign", "zero", "order"])
@pytest.mark.parametrize("name", sorted(random_checkpoint(TINY).tensors))
def test_a_session_of_a_model_with_one_other_tensor_is_refused(
    name: str, how: str, tmp_path: Path
) -> None:
    saved(tiny_model(), tmp_path / "a.session", TOKENS)
    with pytest.raises(SessionError, match="this session belongs to another model"):
        changed(name, how).load_session(tmp_path / "a.session")


def test_a_session_of_another_dtype_or_backend_is_refused(tmp_path: Path) -> None:
    saved(tiny_model(), tmp_path / "a.session", TOKENS)
    checkpoint = random_checkpoint(TINY)
    others: list[Any] = [
        Engine(checkpoint, dtype="bfloat16"),
        Engine(checkpoint, cache_dtype="bfloat16"),
        Reference(checkpoint),
        Engine(random_checkpoint(TINY, seed=1)),
    ]
    for other in others:
        with pytest.raises(SessionError, match="belongs to another model"):
            Model(other, tiny_tokenizer()).load_session(tmp_path / "a.session")
    with pytest.raises(SessionError, match=r"expected .* for 48 tokens"):
        MAKES["wide"]().load_session(tmp_path / "a.session")


def test_keys_and_values_of_bfloat16_come_back_as_they_were(tmp_path: Path) -> None:
    model = Model(Engine(random_checkpoint(TINY), cache_dtype="bfloat16"), tiny_tokenizer())
    saved(model, tmp_path / "a.session", TOKENS)
    with model.session() as whole, model.load_session(tmp_path / "a.session") as loaded:
        whole.forward(TOKENS)
        assert np.array_equal(loaded.forward([5]), whole.forward([5]))


# ---- hostile files ----

MODEL = tiny_model()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return saved(MODEL, tmp_path_factory.mktemp("saved") / "a.session", TOKENS[:3])


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(SessionError) as raised:
        MODEL.load_session(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_file_has_the_documented_layout(whole: bytes) -> None:
    magic, version, n = struct.unpack_from("<16sII", whole)
    assert (magic, version, n) == (b"llama2py session", 1, 3)
    assert struct.unpack_from("<3i", whole, 24 + 32) == tuple(TOKENS[:3])
    # Keys and values of 2 layers, 2 heads of 6.
    assert len(whole) == 24 + 32 + 4 * 3 + 2 * 4 * (2 * 2 * 3 * 6) + 32
    assert hashlib.sha256(whole[:-32]).digest() == whole[-32:]


def test_a_file_cut_anywhere_is_refused(whole: bytes, tmp_path: Path) -> None:
    for size in range(len(whole)):
        refusal(tmp_path / "cut.session", whole[:size])
    refusal(tmp_path / "long.session", whole + b"\0")


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_file_with_any_changed_byte_is_refused(
    data: st.DataObject, whole: bytes, tmp_path_factory: Any
) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "changed.session"
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
    refusal(path, whole[:at] + bytes([byte]) + whole[at + 1 :])


@settings(deadline=None, max_examples=200)
@given(junk=st.binary(max_size=400), with_magic=st.booleans())
def test_any_bytes_are_refused(junk: bytes, with_magic: bool, tmp_path_factory: Any) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "junk.session"
    refusal(path, b"llama2py session" * with_magic + junk)


def signed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def test_wrong_fields_with_a_right_checksum_are_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lie.session"
    body = whole[:-32]
    lie = signed(body[:56] + struct.pack("<i", 300) + body[60:])
    assert "outside the vocabulary" in refusal(path, lie)
    assert "version 2" in refusal(path, signed(body[:16] + struct.pack("<I", 2) + body[20:]))
    many = signed(body[:20] + struct.pack("<I", 0xFFFFFFFF) + body[24:])
    assert "4294967295 tokens, expected at most the context's 64" in refusal(path, many)
    assert "bytes, expected" in refusal(path, signed(body[:20] + struct.pack("<I", 4) + body[24:]))


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="no such file"):
        MODEL.load_session(tmp_path / "none.session")
    with pytest.raises(SessionError, match="not a regular file"):
        MODEL.load_session(tmp_path)
    with MODEL.session() as session:
        with pytest.raises(SessionError, match="cannot be written"):
            session.save(tmp_path / "no" / "folder")
        with pytest.raises(SessionError, match="not a regular file"):
            session.save(tmp_path)


def test_an_older_file_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.session"
    before = saved(MODEL, path, TOKENS[:3])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with MODEL.session() as session:
        session.forward(TOKENS[:5])
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(SessionError, match="No space left"):
                session.save(path)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["a.session"]
        session.save(path)
        assert len(path.read_bytes()) > len(before)


def test_saving_a_closed_session_is_an_error(tmp_path: Path) -> None:
    model = tiny_model()
    session = model.session()
    session.save(tmp_path / "a.session")
    session.close()
    with pytest.raises(ClosedError):
        session.save(tmp_path / "b.session")
    model.close()
    with pytest.raises(ClosedError):
        model.load_session(tmp_path / "a.session")

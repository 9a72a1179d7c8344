"""The package gives llama2.c's recorded tokens, texts and logits."""

from __future__ import annotations

import hashlib
import json
import platform
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llama2py
from llama2py._data import bundled_tokenizer
from llama2py.engine.isa import isa_names
from llama2py.generation.sampling import Sampler, SamplingParams
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.tokenizer import Tokenizer
from tests.conftest import ModelFiles
from tests.support.golden import BOS, Case, run
from tests.support.tiny_models import write_tiny_models

GOLDEN = Path(__file__).resolve().parent / "golden"
CHECKPOINTS = ["stories260K", "stories260K_q80", "15M", "15M_q80"]
ENGINE = ["default", *isa_names()]

# The portable kernels call libm's expf, as llama2.c does; another libm may round it differently.
same_libm = pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64",
    reason="the logits were recorded with Linux x86-64's libm",
)


@pytest.fixture(scope="module")
def cases(test_data: Path) -> list[Case]:
    recorded = json.loads((test_data / "golden" / "llama2c.json").read_text(encoding="utf-8"))
    return [Case(**case) for case in recorded]


@pytest.fixture(scope="module")
def logits(test_data: Path) -> dict[str, NDArray[np.float32]]:
    with np.load(test_data / "golden" / "llama2c_logits.npz") as recorded:
        return dict(recorded)


def load(files: ModelFiles, kernels: str) -> llama2py.Model:
    """Load with an instruction set, with 'numpy', or with the engine's own choice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LLAMA2PY_ISA", raising=False)
        if kernels in isa_names():
            patch.setenv("LLAMA2PY_ISA", kernels)
        model = llama2py.load(
            files.checkpoint, files.tokenizer, backend="numpy" if kernels == "numpy" else "c"
        )
    assert model.backend.isa == (isa_names()[0] if kernels == "default" else kernels)
    return model


def spoken(tokenizer: Tokenizer, tokens: list[int]) -> list[bytes]:
    """The bytes of each token but the first, as in run.c's decode(); BOS ends a story."""
    pieces = []
    for previous, token in pairwise(tokens):
        if token == BOS:
            break
        piece = tokenizer.piece(token)
        if previous == BOS:
            piece = piece.removeprefix(b" ")
        if 3 <= token < 259:
            piece = bytes([token - 3])
        pieces.append(piece)
    return pieces


def printed(piece: bytes) -> bytes:
    """What run.c's safe_printf() prints: no NUL or later bytes, no lone unprintable byte."""
    piece = piece.split(b"\0")[0]
    if len(piece) == 1 and not (0x20 <= piece[0] < 0x7F or piece in b"\t\n\v\f\r"):
        return b""
    return piece


def test_the_made_checkpoints_are_the_recorded_ones(
    test_data: Path, model_files: dict[str, ModelFiles]
) -> None:
    """Their hashes are those in golden/README.md."""
    readme = (test_data / "golden" / "README.md").read_text(encoding="utf-8")
    for name in ("15M", "15M_q80"):
        digest = hashlib.sha256(model_files[name].checkpoint.read_bytes()).hexdigest()
        assert f"sha256 {digest}" in readme, name


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_tiny_models(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("checkpoint", ["tiny", "tiny_q80"])
@pytest.mark.parametrize("kernels", ENGINE)
def test_a_fresh_clone_generates_llama2cs_tokens(
    kernels: str, checkpoint: str, tiny_models: dict[str, Path]
) -> None:
    """No outside file is needed: the weights are random, the tokens llama2.c's own."""
    recorded = json.loads((GOLDEN / "tiny.json").read_text(encoding="utf-8"))
    cases = [Case(**case) for case in recorded if case["checkpoint"] == checkpoint]
    assert len(cases) >= 5
    with load(ModelFiles(tiny_models[checkpoint], None), kernels) as model:
        fused = checkpoint == "tiny" and model.backend.isa != "portable"
        for case in cases:
            if fused and case.temperature > 1:  # so flat that a fused sum's last bit decides
                continue
            tokens, _ = run(model, case)
            assert tokens[: len(case.tokens)] == case.tokens, case
            assert tokens[len(case.tokens) :] in ([], [BOS]), case


def test_a_fresh_clone_encodes_as_llama2c() -> None:
    tokenizer = load_tokenizer(bundled_tokenizer())
    rows = json.loads((GOLDEN / "encodings.json").read_text(encoding="utf-8"))
    assert len(rows) > 200
    for row in rows:
        assert tokenizer.encode(row["text"]) == row["tokens"], row["text"]
        assert tokenizer.decode(row["tokens"]) == row["text"]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("kernels", ENGINE)
def test_tokens_and_text(
    kernels: str, checkpoint: str, cases: list[Case], model_files: dict[str, ModelFiles]
) -> None:
    """Every recorded case, with every set of kernels."""
    chosen = [case for case in cases if case.checkpoint == checkpoint]
    assert chosen
    with load(model_files[checkpoint], kernels) as model:
        tokenizer = model.tokenizer
        for case in chosen:
            tokens, text = run(model, case)
            assert tokens == case.tokens, case
            pieces = spoken(tokenizer, tokens)
            out = b"".join(map(printed, pieces)) + b"\n"
            assert out.decode(errors="surrogateescape") == case.stdout, case
            # What the reference drops, we put together: emoji come out whole.
            prompt_length = len(tokenizer.encode(case.prompt))
            ours = b"".join(pieces[prompt_length - 1 :]) if text else b""
            assert text == ours.decode(errors="replace"), case


@pytest.mark.parametrize("checkpoint", ["stories260K", "15M"])
def test_tokens_with_numpy(
    checkpoint: str, cases: list[Case], model_files: dict[str, ModelFiles]
) -> None:
    """NumPy picks the recorded token after every recorded beginning, so its story is the same.

    One pass for each case: much quicker than generating, and the same by induction.
    """
    with load(model_files[checkpoint], "numpy") as model:
        for case in cases:
            prompt = model.tokenizer.encode(case.prompt)
            if case.checkpoint != checkpoint or len(prompt) >= len(case.tokens):
                continue
            params = SamplingParams(case.temperature, case.topp)
            sampler = Sampler(model.backend, params, case.seed)
            with model.session() as session:
                rows = session.forward(case.tokens[:-1], all_logits=True)
            picked = [sampler.sample(row) for row in rows[len(prompt) - 1 :]]
            assert prompt + picked == case.tokens, case


def test_dropped_bytes_occur(cases: list[Case], model_files: dict[str, ModelFiles]) -> None:
    """Without them, the test above would not cover them."""
    tokenizer = load(model_files["stories260K"], "default").tokenizer
    pieces = [
        piece
        for case in cases
        if case.checkpoint == "stories260K"
        for piece in spoken(tokenizer, case.tokens)
    ]
    assert any(printed(piece) != piece for piece in pieces)


def logits_of(model: llama2py.Model, recorded: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits per position while greedily continuing, one token at a time."""
    tokens = model.tokenizer.encode("Once upon a time")
    rows: list[NDArray[np.float32]] = []
    with model.session() as session:
        for position in range(len(recorded)):
            if position == len(tokens):
                tokens.append(int(np.argmax(rows[-1])))
            rows.append(session.forward([tokens[position]]))
    return np.stack(rows)


@same_libm
@pytest.mark.parametrize(
    ("checkpoint", "kernels"),
    [
        ("stories260K", "portable"),
        ("15M", "portable"),
        *(("stories260K_q80", isa) for isa in isa_names()),
    ],
)
def test_exact_numerics_give_the_very_bits(
    checkpoint: str, kernels: str, logits: dict[str, Any], model_files: dict[str, ModelFiles]
) -> None:
    """Float32 with the portable kernels, int8 with all of them."""
    with load(model_files[checkpoint], kernels) as model:
        ours = logits_of(model, logits[checkpoint])
    assert ours.tobytes() == logits[checkpoint].tobytes()


@pytest.mark.parametrize("kernels", [*isa_names(), "numpy"])
@pytest.mark.parametrize("checkpoint", ["stories260K", "15M"])
def test_fast_numerics_are_close(
    checkpoint: str, kernels: str, logits: dict[str, Any], model_files: dict[str, ModelFiles]
) -> None:
    """Float32 with fused multiply-add and sums in another order: 1e-4 apart at most."""
    with load(model_files[checkpoint], kernels) as model:
        ours = logits_of(model, logits[checkpoint])
    np.testing.assert_allclose(ours, logits[checkpoint], rtol=0, atol=1e-4)


@pytest.mark.parametrize("isa", [isa for isa in isa_names() if isa != "portable"])
def test_fused_numerics_are_the_same_on_every_machine(
    isa: str, model_files: dict[str, ModelFiles]
) -> None:
    """A hash stands in for another machine, with another instruction set, at another time.

    It was recorded from this engine. Where it changes, every user's seed gives another story.
    """
    with load(model_files["stories260K"], isa) as model, model.session() as session:
        tokens = model.tokenizer.encode("Once upon a time, there was a little girl named Lily.")
        rows = session.forward(tokens * 8, all_logits=True)
    digest = hashlib.sha256(rows.astype("<f4").tobytes()).hexdigest()
    assert digest == "b840e737fb622bede1cfe93ce49c682e186693cfeb31125c1a22e8c479467ddf"

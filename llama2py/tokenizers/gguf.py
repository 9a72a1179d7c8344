"""The vocabulary inside a GGUF file: sentencepiece's with scores, or byte level with merges.

Source: the GGUF specification, and ``llama-vocab.cpp`` of github.com/ggml-org/llama.cpp for the
patterns behind the names of ``tokenizer.ggml.pre``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import TokenizerError
from ..formats.gguf_metadata import GGUFArray, read_gguf_metadata
from .merge_tokenizer import ByteLevel, MergeTokenizer
from .pretokenize import DIGITS, GPT2, LLAMA3, QWEN2, TEKKEN, UNTOLD
from .sentencepiece import UNUSED, specials_of, tokenizer_of_pieces
from .tokenizer import BOS, EOS, UNK, Tokenizer

MAX_TOKENS = 1 << 20

# By tokenizer.ggml.pre: the patterns, and whether a word that is a piece is taken as it is.
PRE: dict[bytes, tuple[tuple[str, ...], bool]] = {
    b"default": (UNTOLD, False),
    **dict.fromkeys([b"gpt-2", b"gpt2", b"phi-2", b"mellum", b"trillion"], ((GPT2,), False)),
    **dict.fromkeys(
        [b"llama-bpe", b"llama3", b"llama-v3", b"falcon3", b"midm-2.0", b"pixtral"],
        ((LLAMA3,), True),
    ),
    b"smaug-bpe": ((LLAMA3,), False),
    **dict.fromkeys(
        [b"smollm", b"starcoder", b"refact", b"codeshell", b"minerva-7b"], ((DIGITS, GPT2), False)
    ),
    **dict.fromkeys([b"qwen2", b"deepseek-r1-qwen", b"megrez", b"stablelm2"], ((QWEN2,), False)),
    b"tekken": ((TEKKEN,), True),
}


class _Metadata:
    """Looks up what begins with ``tokenizer.ggml.``."""

    def __init__(self, pairs: Mapping[str, Any]) -> None:
        self.pairs = pairs

    def get(self, name: str, default: Any = None) -> Any:
        return self.pairs.get("tokenizer.ggml." + name, default)

    def column(self, name: str, kind: type, length: int | None = None) -> list[Any]:
        """An array, one item a token where ``length`` is given."""
        found = self.get(name)
        if isinstance(found, GGUFArray) and len(found) <= 2 * MAX_TOKENS:
            items = found.tolist()
            if all(type(item) is kind for item in items):
                if length is not None and len(items) != length:
                    raise TokenizerError(
                        f"{length} tokens have {len(items)} {_PLURAL[name]}, expected one each"
                    )
                return items
        raise TokenizerError(
            f"tokenizer.ggml.{name} is missing or of another type,"
            f" expected an array of {kind.__name__}"
        )

    def flag(self, name: str, default: bool) -> bool:
        """Yes or no."""
        found = self.get(name, default)
        if type(found) is not bool:
            raise TokenizerError(f"tokenizer.ggml.{name} is {found!r:.80}, expected a bool")
        return found

    def token(self, name: str, default: int | None = None) -> int:
        """The id of a token that has a part to play."""
        found = self.get(name + "_token_id", default)
        if type(found) is not int:
            raise TokenizerError(
                f"tokenizer.ggml.{name}_token_id is {found!r:.80}, expected the id of a token"
            )
        return found


_PLURAL = {"scores": "scores", "token_type": "types"}


def read_gguf_vocabulary(path: str | Path) -> Tokenizer:
    """Take the vocabulary out of a GGUF file (v2 or v3, with or without tensors).

    Raises
    ------
    TokenizerError
        If the file is missing or malformed, or its vocabulary is of a kind that is not read.
    """
    pairs = read_gguf_metadata(path, TokenizerError).pairs
    try:
        return _tokenizer(_Metadata(pairs))
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def _tokenizer(metadata: _Metadata) -> Tokenizer:
    model = metadata.get("model")
    if model == b"llama":
        return _sentencepiece(metadata)
    if model == b"gpt2":
        return _byte_level(metadata)
    raise TokenizerError(
        f"tokenizer.ggml.model is {model!r:.80}, expected b'llama' (sentencepiece)"
        " or b'gpt2' (byte level)"
    )


def _sentencepiece(metadata: _Metadata) -> Tokenizer:
    if metadata.get("add_space_prefix", True) is not True:
        raise TokenizerError(
            "tokenizer.ggml.add_space_prefix is not true, expected the space that llama2.c adds"
        )
    for name, expected in [("unknown", UNK), ("bos", BOS)]:
        token = metadata.token(name, expected)
        if token != expected:
            raise TokenizerError(
                f"tokenizer.ggml.{name}_token_id is {token!r}, expected {expected}"
            )
    tokens = metadata.column("tokens", bytes)
    scores = metadata.column("scores", float, len(tokens))
    types = metadata.column("token_type", int, len(tokens))
    tokens = [b"" if kind == UNUSED else token for token, kind in zip(tokens, types, strict=True)]
    return tokenizer_of_pieces(
        tokens, scores, types, metadata.token("eos", EOS), metadata.flag("add_bos_token", True)
    )


def _byte_level(metadata: _Metadata) -> Tokenizer:
    pre = metadata.get("pre", b"default")
    if not isinstance(pre, bytes) or pre not in PRE:
        raise TokenizerError(
            f"tokenizer.ggml.pre is {pre!r:.80}, expected {b', '.join(PRE).decode()}"
        )
    patterns, whole_first = PRE[pre]
    tokens = metadata.column("tokens", bytes)
    types = metadata.column("token_type", int, len(tokens))
    pieces = [
        "" if kind == UNUSED else token.decode(errors="replace")
        for token, kind in zip(tokens, types, strict=True)
    ]
    merges: list[tuple[str, str]] = []
    for merge in metadata.column("merges", bytes):
        left, space, right = merge.decode(errors="replace").partition(" ")
        if not space or not left or not right or " " in right:
            raise TokenizerError(
                f"merge {len(merges)} is {merge!r:.80}, expected two pieces and a space"
            )
        merges.append((left, right))
    bos = metadata.token("bos", metadata.get("eos_token_id"))
    return MergeTokenizer(
        pieces,
        merges,
        ByteLevel(patterns),
        bos_id=bos,
        eos_id=metadata.token("eos", bos),
        specials=specials_of(pieces, types),
        whole_first=whole_first,
        adds_bos=metadata.flag("add_bos_token", whole_first),  # llama.cpp's default, too
    )

"""The vocabulary in a GGUF file's metadata: sentencepiece's with scores, or byte level with merges.

Source: the GGUF specification; ``llama-vocab.cpp`` of github.com/ggml-org/llama.cpp for the
patterns that the names in ``tokenizer.ggml.pre`` stand for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import TokenizerError
from ..formats.gguf_metadata import GGUFArray
from .bpe import MAX_MERGES, MAX_TOKENS
from .merge_tokenizer import ByteLevel, MergeTokenizer
from .pretokenize import DIGITS, GPT2, LLAMA3, LLAMACPP_DEFAULT, QWEN2, TEKKEN
from .scores_and_merges import spelled, to_scores
from .sentencepiece import (
    NORMAL,
    UNUSED,
    set_special_types,
    specials_of,
    tokenizer_of_pieces,
    types_of,
)
from .tokenizer import BOS, EOS, UNK, Tokenizer

# tokenizer.ggml.pre: the patterns, and whether a word that is a piece becomes that piece at once.
PRE: dict[bytes, tuple[tuple[str, ...], bool]] = {
    b"default": (LLAMACPP_DEFAULT, False),
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


# ---- reading ----


class _Metadata:
    """Checked access to the pairs whose keys begin with ``tokenizer.ggml.``."""

    def __init__(self, pairs: Mapping[str, Any]) -> None:
        self.pairs = pairs

    def get(self, name: str, default: Any = None) -> Any:
        return self.pairs.get("tokenizer.ggml." + name, default)

    def column(
        self, name: str, kind: type, length: int | None = None, limit: int = MAX_TOKENS
    ) -> list[Any]:
        """Return an array as a list. If ``length`` is given, it must have that many items."""
        found = self.get(name)
        if isinstance(found, GGUFArray) and len(found) > limit:
            raise TokenizerError(
                f"tokenizer.ggml.{name} has {len(found)} items, expected at most {limit}"
            )
        if isinstance(found, GGUFArray):
            items = found.tolist()
            if all(type(item) is kind for item in items):
                if length is not None and len(items) != length:
                    raise TokenizerError(
                        f"tokenizer.ggml.{name} has {len(items)} items for {length} tokens"
                    )
                return items
        raise TokenizerError(
            f"tokenizer.ggml.{name} is missing or of another type,"
            f" expected an array of {kind.__name__}"
        )

    def flag(self, name: str, default: bool) -> bool:
        found = self.get(name, default)
        if type(found) is not bool:
            raise TokenizerError(f"tokenizer.ggml.{name} is {found!r:.80}, expected a bool")
        return found

    def token(self, name: str, default: int | None = None) -> int:
        """Return the id of BOS, EOS or unknown."""
        found = self.get(name + "_token_id", default)
        if type(found) is not int:
            raise TokenizerError(
                f"tokenizer.ggml.{name}_token_id is {found!r:.80}, expected the id of a token"
            )
        return found


def tokenizer_of_pairs(pairs: Mapping[str, Any]) -> Tokenizer:
    """Make a tokenizer from the metadata of a GGUF file.

    Parameters
    ----------
    pairs : mapping of str to value
        The pairs of the file, as `read_gguf_metadata` returns them.

    Raises
    ------
    TokenizerError
        Without a file name: if the vocabulary is malformed, or of a kind that is not supported.
    """
    metadata = _Metadata(pairs)
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
            "tokenizer.ggml.add_space_prefix is not true: llama2.c always adds that space"
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
    bos = metadata.token("bos", metadata.get("eos_token_id"))
    return MergeTokenizer(
        pieces,
        _merges(metadata.column("merges", bytes, limit=MAX_MERGES)),
        ByteLevel(patterns),
        bos_id=bos,
        eos_id=metadata.token("eos", bos),
        specials=specials_of(pieces, types),
        whole_first=whole_first,
        adds_bos=metadata.flag("add_bos_token", whole_first),  # the default is llama.cpp's
    )


def _merges(merges: list[bytes]) -> Iterator[tuple[str, str]]:
    for rank, merge in enumerate(merges):
        left, space, right = merge.decode(errors="replace").partition(" ")
        if not space or not left or not right or " " in right:
            raise TokenizerError(f"merge {rank} is {merge!r:.80}, expected two pieces and a space")
        yield left, right


# ---- writing ----


def gguf_pairs(tokenizer: Tokenizer, template: str | None = None) -> dict[str, Any]:
    """Return a vocabulary as the ``tokenizer.*`` pairs of a GGUF file.

    GGUF knows only one way to put a space before a text; `export.space_changes` says where another
    one is lost.

    Parameters
    ----------
    tokenizer : Tokenizer
        Any vocabulary.
    template : str, optional
        The chat template of the model.

    Raises
    ------
    TokenizerError
        Without a file name: if the format has no name for this kind of vocabulary.
    """
    if isinstance(tokenizer, MergeTokenizer) and isinstance(tokenizer.kind, ByteLevel):
        about = _byte_level_pairs(tokenizer, tokenizer.kind)
    else:
        tokenizer = to_scores(tokenizer, any_prefix=True)
        texts = spelled(tokenizer)
        about = {
            "model": b"llama",
            "pre": b"default",
            "tokens": _named(texts),
            "scores": [tokenizer.score(token) for token in range(len(texts))],
            "token_type": types_of(tokenizer, texts),
            "unknown_token_id": UNK,
            "add_space_prefix": True,
        }
    about |= {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "add_bos_token": tokenizer.adds_bos,
        "add_eos_token": False,
    }
    pairs = {f"tokenizer.ggml.{name}": value for name, value in about.items()}
    if template is not None:
        pairs["tokenizer.chat_template"] = template.encode()
    return pairs


def _byte_level_pairs(tokenizer: MergeTokenizer, kind: ByteLevel) -> dict[str, Any]:
    if kind.form or kind.prefix:
        what = f"normalizes texts to {kind.form}" if kind.form else "puts a space before a text"
        raise TokenizerError(f"the vocabulary {what}, which GGUF cannot say: write it as hf")
    names = (b"gpt-2", b"llama-bpe", b"smaug-bpe", b"smollm", b"qwen2", b"tekken", b"default")
    wanted = (kind.patterns, tokenizer.whole_first)
    pre = next((name for name in names if PRE[name] == wanted), None)  # the others are synonyms
    if pre is None:
        raise TokenizerError(
            "GGUF has no name for how the vocabulary cuts a text into words, expected the way of"
            " GPT-2, Llama 3, SmolLM, Qwen 2 or Mistral Nemo"
        )
    texts = [tokenizer.piece(token).decode() for token in range(len(tokenizer))]
    types = [NORMAL if text else UNUSED for text in texts]
    set_special_types(types, tokenizer.specials)
    return {
        "model": b"gpt2",
        "pre": pre,
        "tokens": _named(texts),
        "token_type": types,
        "merges": [" ".join(merge).encode() for merge in tokenizer.merges],
    }


def _named(texts: list[str]) -> list[bytes]:
    """Return the texts as GGUF has them: padding needs a text of its own, and its type marks it."""
    return [(text or f"[PAD{token}]").encode() for token, text in enumerate(texts)]

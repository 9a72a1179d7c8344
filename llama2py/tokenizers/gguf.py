"""The vocabulary in a GGUF file's metadata: sentencepiece's with scores, or byte level with merges.

Source: the GGUF specification; ``llama-vocab.cpp`` of github.com/ggml-org/llama.cpp for the
patterns that the names in ``tokenizer.ggml.pre`` stand for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ..checkpoint.conventions import GGUF_ENDS
from ..errors import TokenizerError
from ..formats.gguf_metadata import GGUFFields
from .bpe import MAX_MERGES, MAX_TOKENS
from .merge_tokenizer import ByteLevel, MergeTokenizer
from .pretokenize import (
    DEEPSEEK_CODER,
    DEEPSEEK_LLM,
    DIGITS,
    GPT2,
    GPT4O,
    LLAMA3,
    LLAMACPP_DEFAULT,
    QWEN2,
    TEKKEN,
)
from .scores_and_merges import spelled, to_scores
from .sentencepiece import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    set_special_types,
    specials_of,
    tokenizer_of_pieces,
    types_of,
)
from .tokenizer import BOS, EOS, UNK, Matching, Tokenizer

T = TypeVar("T")

_ENDS = frozenset(text.encode() for text in GGUF_ENDS)
# The special tokens of Phi-3 that leave the white space after them.
_NOT_STRIPPING = frozenset([b"<unk>", b"<s>", b"<|endoftext|>"])
# Byte-level tokens that can begin a text, where a file names none.
_USUAL = ("<|begin_of_text|>", "<s>", "<|endoftext|>", "</s>", "<|end_of_text|>")

# tokenizer.ggml.pre: the patterns, and whether a word that is a piece becomes that piece at once.
# The first name of each entry is the one that is written.
PRE: dict[bytes, tuple[tuple[str, ...], bool]] = {
    name: about
    for names, about in [
        ("default", (LLAMACPP_DEFAULT, False)),
        (
            "gpt-2 gpt2 phi-2 mellum trillion mpt olmo jais gigachat a.x-4.0 exaone4"
            " granite-docling",
            ((GPT2,), False),
        ),
        (
            "llama-bpe llama3 llama-v3 falcon3 falcon-h1 midm-2.0 pixtral lfm2 glm4",
            ((LLAMA3,), True),
        ),
        ("smaug-bpe dbrx chatglm-bpe", ((LLAMA3,), False)),
        (
            "smollm starcoder refact codeshell minerva-7b command-r exaone mellum2",
            ((DIGITS, GPT2), False),
        ),
        (
            "qwen2 deepseek-r1-qwen megrez stablelm2 hunyuan solar-open kormo f2llmv2",
            ((QWEN2,), False),
        ),
        ("tekken", ((TEKKEN,), True)),
        ("gpt-4o llama4 kanana2", ((GPT4O,), False)),
        ("deepseek-llm", (DEEPSEEK_LLM, False)),
        ("deepseek-coder", (DEEPSEEK_CODER, False)),
    ]
    for name in names.encode().split()
}


# ---- reading ----


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
    fields = GGUFFields(pairs, TokenizerError, "tokenizer.ggml.")
    model = fields.text("model", None)
    if model == b"llama":
        name = GGUFFields(pairs, TokenizerError).text("general.name", b"").lower()
        return _sentencepiece(fields, strips=b"phi-3" in name or b"phi3" in name)
    if model == b"gpt2":
        return _byte_level(fields)
    raise fields.wrong("model", "b'llama' (sentencepiece) or b'gpt2' (byte level)")


def _sentencepiece(fields: GGUFFields, strips: bool) -> Tokenizer:
    """Make a tokenizer; ``strips`` if its special tokens take the white space after them."""
    tokens = fields.list("tokens", bytes, MAX_TOKENS)
    types = _types(fields, tokens)
    tokens = [b"" if kind == UNUSED else token for token, kind in zip(tokens, types, strict=True)]
    matching = {}
    if strips:  # llama.cpp's rule for Phi-3, whose files do not say so
        matching = {
            token.decode(errors="replace"): Matching(rstrip=True)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, USER_DEFINED, UNKNOWN) and token not in _NOT_STRIPPING
        }
    tokenizer = tokenizer_of_pieces(
        tokens,
        _scores(fields, len(tokens)),
        types,
        _token(fields, "eos_token_id", len(tokens), EOS),
        fields.flag("add_bos_token", True),
        "each" if fields.flag("add_space_prefix", True) else "none",
        _token(fields, "bos_token_id", len(tokens), BOS),
        matching,
    )
    tokenizer.unk_id = _token(fields, "unknown_token_id", len(tokens), UNK)
    return tokenizer


def _token(fields: GGUFFields, name: str, n_tokens: int, default: T) -> int | T:
    """Return the id of a token. As in llama.cpp, an id that no token has counts as missing."""
    token = fields.integer(name, None)
    return default if token is None or not 0 <= token < n_tokens else token


def _scores(fields: GGUFFields, n_tokens: int) -> list[float]:
    if "scores" not in fields:
        return [0.0] * n_tokens
    scores = fields.list("scores", (float, int), MAX_TOKENS)
    if len(scores) < n_tokens:
        raise TokenizerError(f"{n_tokens} tokens have {len(scores)} scores")
    return [float(score) for score in scores[:n_tokens]]


def _types(fields: GGUFFields, tokens: list[bytes]) -> list[int]:
    """Return the type of every token. One that ends a turn is a control token, whatever it says."""
    types = [NORMAL] * len(tokens)
    if "token_type" in fields:
        types = fields.list("token_type", int, MAX_TOKENS)
        if len(types) < len(tokens):
            raise TokenizerError(f"{len(tokens)} tokens have {len(types)} types")
    return [CONTROL if token in _ENDS else kind for token, kind in zip(tokens, types, strict=False)]


def _byte_level(fields: GGUFFields) -> Tokenizer:
    pre = fields.text("pre", b"default")
    if pre not in PRE:
        raise fields.wrong("pre", b", ".join(PRE).decode())
    patterns, whole_first = PRE[pre]
    tokens = fields.list("tokens", bytes, MAX_TOKENS)
    types = _types(fields, tokens)
    pieces = [
        "" if kind == UNUSED else token.decode(errors="replace")
        for token, kind in zip(tokens, types, strict=True)
    ]
    specials = specials_of(pieces, types)
    eos_id = _token(fields, "eos_token_id", len(tokens), None)
    bos_id = _token(fields, "bos_token_id", len(tokens), eos_id)
    if bos_id is None:  # llama.cpp would take token 11, which only fits Falcon
        bos_id = next((pieces.index(text) for text in _USUAL if text in pieces), None)
    if bos_id is None:
        raise fields.wrong("bos_token_id", "the id of a token")
    tokenizer = MergeTokenizer(
        pieces,
        _merges(fields.list("merges", bytes, MAX_MERGES)),
        ByteLevel(patterns, whole_first=whole_first, closes_gaps=False),
        bos_id=bos_id,
        eos_id=bos_id if eos_id is None else eos_id,
        specials=replace(specials, pieces=frozenset(specials.ids())),
        # The default is llama.cpp's.
        adds_bos=fields.flag("add_bos_token", whole_first and pre not in (b"glm4",)),
    )
    if "pre" not in fields:
        tokenizer.warnings = (
            "tokenizer.ggml.pre is missing, so texts are cut into words by llama.cpp's default"
            " rules: the tokens may not be those that the model was trained with",
        )
        tokenizer.notes += tokenizer.warnings
    return tokenizer


def _merges(merges: list[bytes]) -> Iterator[tuple[str, str]]:
    for rank, merge in enumerate(merges):
        left, space, right = merge.decode(errors="replace").partition(" ")
        if not space or not left or not right or " " in right:
            raise TokenizerError(f"merge {rank} is {merge!r:.80}, expected two pieces and a space")
        yield left, right


# ---- writing ----


def gguf_pairs(tokenizer: Tokenizer, template: str | None = None) -> dict[str, Any]:
    """Return a vocabulary as the ``tokenizer.*`` pairs of a GGUF file.

    GGUF can only say whether a space is put before a text; `export.space_changes` says where that
    is not enough.

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
            "unknown_token_id": tokenizer.unk_id,
            "add_space_prefix": tokenizer.prefix != "none",
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
    wanted = (kind.patterns, kind.whole_first)
    pre = next((name for name, about in PRE.items() if about == wanted), None)
    if pre is None:
        raise TokenizerError(
            "the vocabulary cuts texts into words in a way that GGUF has no name for: write it as"
            " hf"
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

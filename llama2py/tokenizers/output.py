"""Vocabularies as other programs read them: tokenizer.json, tokenizer.model, and GGUF's pairs.

Source: the formats as ``tokenizers``, ``sentencepiece`` and llama.cpp have them; how transformers
makes a tokenizer.json of a Llama's tokenizer.model.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from ..errors import TokenizerError
from .bpe import N_BYTES
from .gguf import PRE
from .merge_tokenizer import SPACE_MARK, ByteLevel, Characters, MergeTokenizer
from .pretokenize import DIGITS, GPT2
from .scores import spelled, to_merges, to_scores
from .sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from .tokenizer import EOS, UNK, Tokenizer

Json = dict[str, Any]


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    """The text of every id, without the padding at the end.

    Raises
    ------
    TokenizerError
        Without a file's name: if the pieces are none that other formats hold.
    """
    if isinstance(tokenizer, MergeTokenizer):
        texts = [tokenizer.piece(token).decode() for token in range(len(tokenizer))]
    else:
        texts = spelled(tokenizer)
    while texts and not texts[-1]:
        texts.pop()
    return texts


# ---- tokenizer.json ----


def tokenizer_json(tokenizer: Tokenizer) -> bytes:
    """A vocabulary as a tokenizer.json.

    Raises
    ------
    TokenizerError
        Without a file's name: if two tokens are the same text.
    """
    texts = pieces_of(tokenizer)
    vocabulary = {text: token for token, text in enumerate(texts)}
    if len(vocabulary) != len(texts) or "" in vocabulary:
        raise TokenizerError(
            "two tokens have the same text or one has none, expected one text each"
        )
    if isinstance(tokenizer, MergeTokenizer):
        kind, merges, whole_first = tokenizer.kind, tokenizer.merges, tokenizer.whole_first
        unknown = texts[tokenizer.unk_id] if tokenizer.has_unknown else None
        first: dict[str, int] = {}
    else:
        kind, merges, whole_first = Characters(), to_merges(tokenizer, texts), False
        unknown = texts[UNK]
        first = {texts[token]: token for token in range(EOS + 1)}
    control = {**first, **tokenizer.specials.control}
    added = [
        {
            "id": token,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": text in control,
        }
        for text, token in sorted(
            {**control, **tokenizer.specials.added}.items(), key=lambda pair: pair[1]
        )
    ]
    plain = not any(" " in part for merge in merges for part in merge)
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            **(_byte_level(kind) if isinstance(kind, ByteLevel) else _characters(kind)),
            "post_processor": _template(tokenizer, texts),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": unknown,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": isinstance(kind, Characters),
                "byte_fallback": isinstance(kind, Characters),
                "ignore_merges": whole_first,
                "vocab": vocabulary,
                # The older of two spellings, which all versions read.
                "merges": [" ".join(merge) if plain else list(merge) for merge in merges],
            },
        },
        ensure_ascii=False,
    ).encode()


def _byte_level(kind: ByteLevel) -> Json:
    steps: list[Json] = []
    for pattern in kind.patterns:
        if pattern == DIGITS:
            steps.append({"type": "Digits", "individual_digits": True})
        else:
            steps.append(
                {
                    "type": "Split",
                    "pattern": {"Regex": pattern},
                    "behavior": "Isolated",
                    "invert": False,
                }
            )
    letters = {"type": "ByteLevel", "add_prefix_space": kind.prefix, "trim_offsets": True}
    own_pattern = kind.patterns[-1:] == (GPT2,)  # the one that ByteLevel knows by itself
    if own_pattern:
        steps.pop()
    steps.append({**letters, "use_regex": own_pattern})
    return {
        "normalizer": {"type": kind.form} if kind.form else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {**letters, "add_prefix_space": True, "use_regex": True},
    }


def _characters(kind: Characters) -> Json:
    marks = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    normalizer: list[Json] = [marks]
    splitter: Json | None = None
    if kind.prefix != "none":
        if kind.prefix_once:
            scheme = {"each": "always", "first": "first"}[kind.prefix]
            splitter = {"type": "Metaspace", "replacement": SPACE_MARK}
            splitter |= {"prepend_scheme": scheme, "split": False}
        else:
            normalizer.insert(0, {"type": "Prepend", "prepend": SPACE_MARK})
    spaces = {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}
    decoders: list[Json] = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if kind.prefix != "none":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizer},
        "pre_tokenizer": splitter,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _template(tokenizer: Tokenizer, texts: list[str]) -> Json | None:
    """What puts BOS before a text."""
    if not tokenizer.adds_bos:
        return None
    bos = texts[tokenizer.bos_id]

    def part(name: str, id: str, type_id: int) -> Json:
        return {name: {"id": id, "type_id": type_id}}

    one = [part("SpecialToken", bos, 0), part("Sequence", "A", 0)]
    return {
        "type": "TemplateProcessing",
        "single": one,
        "pair": [*one, part("SpecialToken", bos, 1), part("Sequence", "B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
    }


def tokenizer_config(tokenizer: Tokenizer, seq_len: int, template: str | None = None) -> bytes:
    """The tokenizer_config.json that goes with `tokenizer_json`.

    Parameters
    ----------
    tokenizer : Tokenizer
        The vocabulary.
    seq_len : int
        Context of the model.
    template : str, optional
        Its chat template.
    """
    texts = pieces_of(tokenizer)
    about: Json = {
        # tokenizer.json as it is; transformers 5 makes another one of it for LlamaTokenizer.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.adds_bos,
        "add_eos_token": False,
        "bos_token": texts[tokenizer.bos_id],
        "eos_token": texts[tokenizer.eos_id],
        "clean_up_tokenization_spaces": False,
        "model_max_length": seq_len,
    }
    if getattr(tokenizer, "has_unknown", True):
        about["unk_token"] = texts[tokenizer.unk_id]
    if template is not None:
        about["chat_template"] = template
    return json.dumps(about, indent=2, ensure_ascii=False).encode() + b"\n"


# ---- sentencepiece's pieces, and GGUF ----


def _types(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    """Sentencepiece's type of every token of a vocabulary with scores."""
    types = [NORMAL if text else UNUSED for text in texts]
    types[: EOS + 1] = [UNKNOWN, CONTROL, CONTROL]
    types[tokenizer.first_byte : tokenizer.first_byte + N_BYTES] = [BYTE] * N_BYTES
    for token in tokenizer.specials.added.values():
        types[token] = USER_DEFINED
    for token in tokenizer.specials.control.values():
        types[token] = CONTROL
    return types


def _field(number: int, value: int | float | bytes) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def sentencepiece_model(tokenizer: Tokenizer) -> bytes:
    """A vocabulary with scores as a tokenizer.model.

    Raises
    ------
    TokenizerError
        Without a file's name: if it has no scores, or sentencepiece has no room for a piece.
    """
    tokenizer = to_scores(tokenizer)
    texts = pieces_of(tokenizer)
    if "" in texts:
        raise TokenizerError(f"token {texts.index('')} has no text, expected one of every token")
    parts = []
    for token, (text, kind) in enumerate(zip(texts, _types(tokenizer, texts), strict=True)):
        if kind == USER_DEFINED:  # sentencepiece looks for it where spaces are marks already
            text = text.replace(" ", SPACE_MARK)
        piece = _field(1, text.encode()) + _field(2, tokenizer.score(token))
        parts.append(_field(1, piece if kind == NORMAL else piece + _field(3, kind)))
    trainer = _field(3, 2) + _field(4, len(texts)) + _field(35, 1)  # BPE, byte_fallback
    trainer += _field(40, 0) + _field(41, 1) + _field(42, 2) + _field(43, -1)  # no padding token
    # identity; a space before a text; spaces stay, as marks.
    normalizer = _field(1, b"identity") + _field(3, 1) + _field(4, 0) + _field(5, 1)
    return b"".join(parts) + _field(2, trainer) + _field(3, normalizer)


def gguf_pairs(tokenizer: Tokenizer, template: str | None = None) -> dict[str, Any]:
    """A vocabulary as the pairs ``tokenizer.*`` of a GGUF file, with a chat template.

    Where spaces come before a text the format has one way only: see `other_spaces`.

    Raises
    ------
    TokenizerError
        Without a file's name: if it is of a kind that the format has no name for.
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
            "token_type": _types(tokenizer, texts),
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
        what = f"puts a text into {kind.form}" if kind.form else "puts a space before a text"
        raise TokenizerError(f"the vocabulary {what}, which GGUF cannot say, expected hf")
    names = (b"gpt-2", b"llama-bpe", b"smaug-bpe", b"smollm", b"qwen2", b"tekken", b"default")
    wanted = (kind.patterns, tokenizer.whole_first)
    pre = next((name for name in names if PRE[name] == wanted), None)  # others mean the same
    if pre is None:
        raise TokenizerError(
            "GGUF has no name for how the vocabulary cuts a text into words, expected the way of"
            " GPT-2, Llama 3, SmolLM, Qwen 2 or Mistral Nemo"
        )
    texts = [tokenizer.piece(token).decode() for token in range(len(tokenizer))]
    types = [NORMAL if text else UNUSED for text in texts]
    for token in tokenizer.specials.added.values():
        types[token] = USER_DEFINED
    for token in tokenizer.specials.control.values():
        types[token] = CONTROL
    return {
        "model": b"gpt2",
        "pre": pre,
        "tokens": _named(texts),
        "token_type": types,
        "merges": [" ".join(merge).encode() for merge in tokenizer.merges],
    }


def _named(texts: list[str]) -> list[bytes]:
    """Padding needs a text of its own there; its type says that it is none."""
    return [(text or f"[PAD{token}]").encode() for token, text in enumerate(texts)]

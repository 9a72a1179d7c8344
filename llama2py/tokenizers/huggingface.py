"""Hugging Face's ``tokenizer.json``: byte pair encoding with merges, by characters or by bytes.

The reader supports what models of the Llama family use and refuses everything else by name: a
tokenizer that is almost right is worse than none.

Source: the format as ``tokenizers`` writes it, github.com/huggingface/tokenizers; and how
transformers turns a Llama's tokenizer.model into a tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import TokenizerError
from ..formats.bounded_json import Limits, parse_object
from ..formats.input_file import read_whole
from .bpe import MAX_MERGES, MAX_TOKENS
from .merge_tokenizer import SPACE_MARK, ByteLevel, Characters, MergeTokenizer
from .pretokenize import DIGITS, GPT2, KNOWN_PATTERNS, WHOLE_PATTERNS
from .scores_and_merges import texts_of, to_merges
from .tokenizer import PLAIN, Matching, Specials, Tokenizer
from .tokenizer_config import CONFIG, AddedToken, TokenizerConfig, read_tokenizer_config

MAX_FILE_SIZE = 64 << 20  # bytes; Llama 3's has 17 MB
# Counted before the file is parsed: an empty list takes two bytes in it, and sixty in memory.
# Newer files have a list of two pieces for each merge.
MAX_CONTAINERS = MAX_MERGES + 50_000
MAX_ITEMS = MAX_TOKENS + 2 * MAX_MERGES + 50_000  # commas
MAX_COLONS = MAX_TOKENS + 100_000  # names, and the colons in pieces
_SMALL = 50_000  # containers or items that a file of any size may have
_BYTES_PER_CONTAINER, _BYTES_PER_ITEM = 16, 7  # at least, in a larger file
# The texts of BOS and EOS where no tokenizer_config.json names them.
_USUAL = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]", "<|bos|>", "<|endoftext|>"),
    "eos": ("</s>", "<|end_of_text|>", "<eos>", "[EOS]", "<|eos|>", "<|endoftext|>"),
}
_KINDS = {dict: "object", list: "array", str: "string", int: "whole number", bool: "boolean"}

Json = dict[str, Any]


# ---- reading ----


def read_tokenizer_json(path: Path) -> MergeTokenizer:
    """Read a tokenizer.json, and the files beside it: see `tokenizer_config`.

    Raises
    ------
    TokenizerError
        If a file is malformed, or needs what is not supported.
    """
    file, config = _read(path), read_tokenizer_config(path.parent)
    try:
        return _tokenizer(file, config)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def _read(path: Path) -> Json:
    """Read a file that contains one JSON object, if it is not more than a vocabulary needs."""
    text = read_whole(path, MAX_FILE_SIZE, TokenizerError, "a JSON file")
    limits = Limits(
        MAX_FILE_SIZE,
        containers=min(MAX_CONTAINERS, max(_SMALL, len(text) // _BYTES_PER_CONTAINER)),
        items=min(MAX_ITEMS, max(_SMALL, len(text) // _BYTES_PER_ITEM)),
    )
    try:
        if text.count(b":") > MAX_COLONS:
            raise TokenizerError(
                f"the JSON has more names than a vocabulary of {MAX_TOKENS} tokens"
            )
        return parse_object(text, limits, TokenizerError)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def _tokenizer(file: Json, config: TokenizerConfig) -> MergeTokenizer:
    model = _object(file.get("model"), "model")
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(f"model.type is {model['type']!r:.80}, expected 'BPE'")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise TokenizerError(f"model.{name} is {model[name]!r:.80}, expected null")
    specials, pieces = _pieces(file, model, config.added)
    # Downwards, so that the lowest id of equal pieces stays.
    ids = dict(zip(reversed(pieces), range(len(pieces) - 1, -1, -1), strict=True))
    kind = _kind(file, bool(model.get("byte_fallback")))
    kind = replace(
        kind,
        whole_first=bool(model.get("ignore_merges")),
        fuses_unknown=bool(model.get("fuse_unk")),
    )
    bos, eos = _find(ids, config, "bos"), _find(ids, config, "eos")
    known = eos if bos is None else bos
    if known is None:
        raise TokenizerError(
            f"no token is known to begin or end a text: put a {CONFIG} beside the file that has"
            " bos_token and eos_token"
        )
    unknown = model.get("unk_token")
    tokenizer = MergeTokenizer(
        pieces,
        _merges(model),
        kind,
        bos_id=known if bos is None else bos,
        eos_id=known if eos is None else eos,
        specials=specials,
        unk_id=ids.get(unknown) if isinstance(unknown, str) else None,
        adds_bos=bos is not None and _adds_bos(file, config, kind, pieces[bos]),
    )
    if bos is None or eos is None:
        tokenizer.notes += (
            f"no file names the token {'BOS' if bos is None else 'EOS'}: {pieces[known]!r} is used"
            " where one is needed",
        )
    return tokenizer


def _object(value: Any, what: str) -> Json:
    found: Json = _check(value, dict, what)
    return found


def _check(value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise TokenizerError(f"{what} is {value!r:.80}, expected a JSON {_KINDS[kind]}")
    return value


def _adds_bos(file: Json, config: TokenizerConfig, kind: ByteLevel | Characters, bos: str) -> bool:
    """Whether a text begins with BOS, by the config, or by the template of a byte-level file."""
    if config.adds_bos is not None:
        return config.adds_bos
    if isinstance(kind, Characters):
        return True  # as in all of sentencepiece's models
    for step in _steps(file, "post_processor", "processors"):
        match step:
            case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": found}}, *_]}:
                return bool(found == bos)
    return False


def _find(ids: dict[str, int], config: TokenizerConfig, name: str) -> int | None:
    """Return the id of BOS or EOS, if it is known."""
    candidates = [config.names[name]] if name in config.names else _USUAL[name]
    return next((ids[text] for text in candidates if text in ids), None)


def _pieces(file: Json, model: Json, more: Sequence[AddedToken]) -> tuple[Specials, list[str]]:
    """Return the special tokens and the piece of every id, which is empty where no token has it."""
    ids = _object(model.get("vocab"), "model.vocab")  # not a copy: it is large
    by_id: dict[int, str] = {}
    for piece, token in ids.items():
        other = by_id.setdefault(_check(token, int, f"the id of {piece[:40]!r}"), piece)
        if other != piece:
            raise TokenizerError(f"{other[:40]!r} and {piece[:40]!r} have the same id, {token}")
    n_pieces = len(ids)
    last = -1  # the highest id of an added token
    specials: dict[str, AddedToken] = {}
    pieces: set[int] = set()
    for entry in [*_added_tokens(file), *more]:
        known = specials.get(entry.text)
        if known is not None and (known.special or not entry.special):
            continue
        if known is None and entry.text in ids:
            pieces.add(ids[entry.text])
        # As in tokenizers: a token that is not a piece gets the next id.
        token = ids.setdefault(entry.text, last + 1 if last >= n_pieces else n_pieces)
        last = max(last, token)
        if entry.token not in (None, token) or by_id.setdefault(token, entry.text) != entry.text:
            raise TokenizerError(
                f"the added token {entry.text[:40]!r} has the id {entry.token}, expected {token}"
            )
        specials[entry.text] = entry
    if len(by_id) > MAX_TOKENS:
        raise TokenizerError(f"the vocabulary has more than {MAX_TOKENS} tokens")
    if by_id and not 0 <= min(by_id) <= max(by_id) < MAX_TOKENS:
        raise TokenizerError(
            f"the ids of the tokens are {min(by_id)} to {max(by_id)}, expected 0 to at most"
            f" {MAX_TOKENS - 1}"
        )
    return (
        Specials(
            {text: ids[text] for text, token in specials.items() if not token.special},
            {text: ids[text] for text, token in specials.items() if token.special},
            {text: one.matching for text, one in specials.items() if one.matching != PLAIN},
            frozenset(pieces),
        ),
        [by_id.get(token, "") for token in range(max(by_id, default=-1) + 1)],
    )


def _added_tokens(file: Json) -> Iterator[AddedToken]:
    """Yield the added tokens of a tokenizer.json."""
    for entry in _check(file.get("added_tokens") or [], list, "added_tokens"):
        entry = _object(entry, "an added token")
        text = _check(entry.get("content"), str, "the content of an added token")
        token = _check(entry.get("id"), int, f"the id of {text[:40]!r}")
        flags = {flag.name: bool(entry.get(flag.name)) for flag in fields(Matching)}
        yield AddedToken(text, token, bool(entry.get("special")), Matching(**flags))


def _merges(model: Json) -> Iterator[tuple[str, str]]:
    """Yield the merges: each is "a b" in older files, ["a", "b"] in newer ones."""
    entries = _check(model.get("merges"), list, "model.merges")
    if len(entries) > MAX_MERGES:
        raise TokenizerError(f"the vocabulary has more than {MAX_MERGES} merges")
    for rank, entry in enumerate(entries):
        entries[rank] = None  # frees it
        parts = entry.split(" ") if isinstance(entry, str) else entry
        if not (isinstance(parts, list) and len(parts) == 2 and all(type(p) is str for p in parts)):
            raise TokenizerError(f"merge {rank} is {entry!r:.80}, expected two pieces")
        yield parts[0], parts[1]


def _steps(file: Json, name: str, inner: str) -> list[Json]:
    """Return the steps of a normalizer, pre-tokenizer or post-processor."""
    found = file.get(name)
    if found is None:
        return []
    if _object(found, name).get("type") == "Sequence":
        steps = _check(found.get(inner), list, f"{name}.{inner}")
        return [_object(step, f"a step of {name}") for step in steps]
    return [found]


def _kind(file: Json, byte_fallback: bool) -> ByteLevel | Characters:
    """Return how the file turns a text into pieces."""
    normalizer = _steps(file, "normalizer", "normalizers")
    splitter = _steps(file, "pre_tokenizer", "pretokenizers")
    if any(step.get("type") == "ByteLevel" for step in splitter):
        form: Literal["", "NFC", "NFKC"] = ""
        match normalizer:
            case [{"type": ("NFC" | "NFKC") as form}]:
                pass
            case _:
                _refuse(normalizer, "normalizer")
        prefix = splitter[0].get("type") == "ByteLevel" and splitter[0].get("add_prefix_space")
        return ByteLevel(tuple(_patterns(splitter)), form, prefix is True)
    if not byte_fallback:
        raise TokenizerError(
            "model.byte_fallback is not true, and no pre_tokenizer is ByteLevel: one is needed"
        )
    return _characters(normalizer, splitter)


def _refuse(steps: list[Json], name: str) -> None:
    """Refuse the first of some steps, if there are any."""
    if steps:
        raise TokenizerError(f"{name} has the step {steps[0]!r:.120}, which is not supported")


def _patterns(steps: list[Json]) -> list[str]:
    """Return the patterns that a byte-level pre-tokenizer cuts a text by."""
    patterns = []
    for place, step in enumerate(steps, 1):
        is_last, is_only = place == len(steps), len(steps) == 1
        match step:
            # ByteLevel turns bytes into letters, so it must come last. After another step it would
            # add its space to every word, so it may add one only if it is the only step.
            case {"type": "ByteLevel", "add_prefix_space": bool(spaced)} if is_last and (
                is_only or not spaced
            ):
                if step.get("use_regex", True):
                    patterns.append(GPT2)
            case {"type": "Digits", "individual_digits": True}:
                patterns.append(DIGITS)
            case {"type": "Split", "pattern": {"Regex": str(pattern)}} if _isolates(step):
                patterns.append(_escaped(pattern))
            case _:
                _refuse([step], "pre_tokenizer")
    return patterns


def _escaped(pattern: str) -> str:
    """Return a pattern without line breaks: some files have those in place of their escapes."""
    return pattern.replace("\r", r"\r").replace("\n", r"\n")


def _isolates(step: Json) -> bool:
    """Whether a Split makes a word of every match, and its pattern is known."""
    pattern = _escaped(step["pattern"]["Regex"])
    match step:
        case {"behavior": "Isolated", "invert": False}:
            return pattern in KNOWN_PATTERNS
        case {"behavior": "Removed", "invert": True}:  # keeps the matches, drops what is between
            return pattern in WHOLE_PATTERNS
    return False


def _characters(normalizer: list[Json], splitter: list[Json]) -> Characters:
    """Return where a space is put before a text."""
    prefix, once, marks_first = "none", False, False
    for step in normalizer:
        match step:
            case {"type": "Prepend", "prepend": str(mark)} if mark == SPACE_MARK and not splitter:
                prefix = "each"
            case {"type": "Replace", "pattern": {"String": " "}, "content": str(mark)} if (
                mark == SPACE_MARK
            ):
                marks_first = True
            case _:
                _refuse([step], "normalizer")
    if marks_first:  # no space is left to split at, as in Gemma's file
        at_space = {"type": "Split", "pattern": {"String": " "}}
        splitter = [step for step in splitter if not at_space.items() <= step.items()]
    for step in splitter:
        match step:
            case {"type": "Metaspace", "replacement": str(mark), "split": False} if (
                mark == SPACE_MARK
            ):
                scheme = step.get("prepend_scheme", "always")
                if scheme not in ("always", "first", "never"):
                    _refuse([step], "pre_tokenizer")
                prefix, once = {"always": "each", "first": "first", "never": "none"}[scheme], True
            case _:
                _refuse([step], "pre_tokenizer")
    if not marks_first and not splitter:
        raise TokenizerError(
            f"neither a Replace nor a Metaspace turns spaces into {SPACE_MARK!r}: one is needed"
        )
    return Characters(prefix, once, marks_first=marks_first)


# ---- writing ----


def tokenizer_json(tokenizer: Tokenizer) -> bytes:
    """Return the bytes of a tokenizer.json.

    Raises
    ------
    TokenizerError
        Without a file name: if two tokens have the same text.
    """
    texts = texts_of(tokenizer)
    vocabulary = {text: token for token, text in enumerate(texts) if text}
    if len(vocabulary) != len(texts) - texts.count(""):
        raise TokenizerError("two tokens have the same text")
    if isinstance(tokenizer, MergeTokenizer):
        kind: ByteLevel | Characters = tokenizer.kind
        merges = tokenizer.merges
        unknown = texts[tokenizer.unk_id] if tokenizer.has_unknown else None
        first: dict[str, int] = {}
        # Special tokens that are no pieces stand in added_tokens only, if their ids come last.
        apart = set(tokenizer.specials.ids()) - tokenizer.specials.pieces
        apart -= {tokenizer.unk_id} if tokenizer.has_unknown else set()
        n_pieces = len(texts) - len(apart)
        if apart == set(range(n_pieces, len(texts))) and "" not in texts:
            vocabulary = {text: token for text, token in vocabulary.items() if token < n_pieces}
    else:
        is_first = tokenizer.prefix == "first"
        usual = "each" if tokenizer.prefix == "control" else tokenizer.prefix
        kind = Characters(usual, prefix_once=is_first, marks_first=not is_first)
        merges, first = to_merges(tokenizer, texts), dict(tokenizer.specials.fixed)
        unknown = texts[tokenizer.unk_id]
    control = {**first, **tokenizer.specials.control}
    added = [
        {
            "id": token,
            "content": text,
            **asdict(tokenizer.specials.matching.get(text, PLAIN)),
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
            **(_byte_level_steps(kind) if isinstance(kind, ByteLevel) else _character_steps(kind)),
            "post_processor": _template(tokenizer, texts),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": unknown,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": kind.fuses_unknown,
                "byte_fallback": isinstance(kind, Characters),
                "ignore_merges": kind.whole_first,
                "vocab": vocabulary,
                # The older of the two spellings, which all versions read, wherever it can be used.
                "merges": [" ".join(merge) if plain else list(merge) for merge in merges],
            },
        },
        ensure_ascii=False,
    ).encode()


def _byte_level_steps(kind: ByteLevel) -> Json:
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
    own_pattern = kind.patterns[-1:] == (GPT2,)  # built into ByteLevel
    if own_pattern:
        steps.pop()
    steps.append({**letters, "use_regex": own_pattern})
    return {
        "normalizer": {"type": kind.form} if kind.form else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {**letters, "add_prefix_space": True, "use_regex": True},
    }


def _character_steps(kind: Characters) -> Json:
    marks = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    normalizer = [marks] if kind.marks_first else []
    splitter: Json | None = None
    if kind.prefix_once or not kind.marks_first:
        scheme = {"each": "always", "first": "first", "none": "never"}[kind.prefix]
        splitter = {"type": "Metaspace", "replacement": SPACE_MARK}
        splitter |= {"prepend_scheme": scheme, "split": False}
    elif kind.prefix != "none":
        normalizer.insert(0, {"type": "Prepend", "prepend": SPACE_MARK})
    spaces = {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}
    decoders: list[Json] = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if kind.prefix != "none":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizer} if normalizer else None,
        "pre_tokenizer": splitter,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _template(tokenizer: Tokenizer, texts: list[str]) -> Json | None:
    """Return the post-processor that puts BOS before a text, if one is needed."""
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


def tokenizer_config(
    tokenizer: Tokenizer, seq_len: int | None = None, template: str | None = None
) -> bytes:
    """Return the bytes of the tokenizer_config.json that belongs to `tokenizer_json`.

    Parameters
    ----------
    tokenizer : Tokenizer
        The vocabulary.
    seq_len : int, optional
        The context of the model, in tokens.
    template : str, optional
        The chat template of the model.
    """
    texts = texts_of(tokenizer)
    about: Json = {
        # Uses tokenizer.json as it is. For LlamaTokenizer, transformers 5 would rebuild it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.adds_bos,
        "add_eos_token": False,
        "bos_token": texts[tokenizer.bos_id],
        "eos_token": texts[tokenizer.eos_id],
        "clean_up_tokenization_spaces": False,
    }
    if seq_len is not None:
        about["model_max_length"] = seq_len
    if getattr(tokenizer, "has_unknown", True):
        about["unk_token"] = texts[tokenizer.unk_id]
    if template is not None:
        about["chat_template"] = template
    return json.dumps(about, indent=2, ensure_ascii=False).encode() + b"\n"

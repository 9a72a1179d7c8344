"""Hugging Face's ``tokenizer.json``: byte pair encoding with merges, by characters or by bytes.

What the file asks for is looked up among the few things that models of the family llama do; all
else is refused by name, for a tokenizer that is almost right is worse than none.

Source: the format as ``tokenizers`` writes it, github.com/huggingface/tokenizers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from ..errors import TokenizerError
from .merge_tokenizer import LETTERS, SPACE_MARK, ByteLevel, Characters, MergeTokenizer
from .pretokenize import DIGITS, GPT2, KNOWN_PATTERNS
from .specials import Specials

MAX_FILE_SIZE = 64 << 20  # bytes: Llama 3's has 17 MB
MAX_CONTAINERS = 1 << 20  # newer files have a list for each merge: Llama 3's has 280,147
MAX_ITEMS = 1 << 21
_CONFIG = "tokenizer_config.json"
# Where no file beside it tells which tokens begin and end a text.
_USUAL = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]", "<|bos|>", "<|endoftext|>"),
    "eos": ("</s>", "<|end_of_text|>", "<eos>", "[EOS]", "<|eos|>"),
}


def read_tokenizer_json(path: str | Path) -> MergeTokenizer:
    """Read a tokenizer.json; a tokenizer_config.json beside it says which tokens are BOS and EOS.

    Raises
    ------
    TokenizerError
        If the file is missing or malformed, or asks for something that is not done here.
    """
    path = Path(path)
    try:
        return _tokenizer(_object(path), _beside(path))
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        if path.stat().st_size > MAX_FILE_SIZE:
            raise TokenizerError(f"the file has more than {MAX_FILE_SIZE} bytes, expected fewer")
        text = path.read_bytes()
        # Counted before they are made: an empty list is two bytes here and sixty in memory.
        if text.count(b"[") + text.count(b"{") > MAX_CONTAINERS or text.count(b",") > MAX_ITEMS:
            raise TokenizerError("the file has far more items than a vocabulary, expected fewer")
        found = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"cannot be read ({error!s:.200}), expected JSON") from None
    if not isinstance(found, dict):
        raise TokenizerError(f"the file is {found!r:.80}, expected a JSON object")
    return found


def _check(value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise TokenizerError(f"{what} is {value!r:.80}, expected a JSON {_KINDS[kind]}")
    return value


_KINDS = {dict: "object", list: "array", str: "string", int: "whole number", bool: "boolean"}


def _beside(path: Path) -> dict[str, Any]:
    """The tokenizer_config.json beside the file; nothing where there is none."""
    beside = path.with_name(_CONFIG)
    if not beside.is_file():
        return {}
    try:
        return _object(beside)
    except TokenizerError as error:
        raise TokenizerError(f"{_CONFIG} beside it {error}") from None


def _names(config: dict[str, Any]) -> dict[str, str]:
    """The texts of BOS and EOS as a tokenizer_config.json has them."""
    names = {}
    for name in ("bos", "eos"):
        found = config.get(f"{name}_token")
        found = found.get("content") if isinstance(found, dict) else found
        if isinstance(found, str):
            names[name] = found
    return names


def _adds_bos(
    file: dict[str, Any], config: dict[str, Any], kind: ByteLevel | Characters, bos: str
) -> bool:
    """Whether a text begins with BOS: the config says so, or at byte level the template."""
    told = config.get("add_bos_token")
    if isinstance(told, bool):
        return told
    if isinstance(kind, Characters):
        return True  # sentencepiece's models all do
    for step in _steps(file, "post_processor", "processors"):
        match step:
            case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": found}}, *_]}:
                return bool(found == bos)
    return False


def _tokenizer(file: dict[str, Any], config: dict[str, Any]) -> MergeTokenizer:
    names = _names(config)
    model = _check(file.get("model"), dict, "model")
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(f"model.type is {model['type']!r:.80}, expected 'BPE'")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise TokenizerError(f"model.{name} is {model[name]!r:.80}, expected none")
    specials, pieces, normalized = _pieces(file, model)
    ids = {piece: token for token, piece in reversed(list(enumerate(pieces)))}
    kind = _kind(file, bool(model.get("byte_fallback")))
    if normalized and isinstance(kind, ByteLevel) and kind.form:
        raise TokenizerError(
            f"added token {normalized[0][:40]!r} is looked for behind {kind.form},"
            " expected before it"
        )
    bos, eos = (_find(ids, names, name) for name in ("bos", "eos"))
    bos, eos = (eos if bos is None else bos), (bos if eos is None else eos)
    if bos is None or eos is None:
        raise TokenizerError(
            f"no token begins or ends a text, expected a {_CONFIG} beside it that names them"
        )
    unknown = model.get("unk_token")
    unk_id = ids.get(unknown) if isinstance(unknown, str) else None
    spelled = LETTERS if isinstance(kind, ByteLevel) else [f"<0x{byte:02X}>" for byte in range(256)]
    missing = [byte for byte, piece in enumerate(spelled) if piece not in ids]
    if missing and (unk_id is None or model.get("fuse_unk")):
        raise TokenizerError(
            f"the byte 0x{missing[0]:02X} is no piece, expected all 256, or a token for others"
        )
    return MergeTokenizer(
        pieces,
        _merges(model),
        kind,
        bos_id=bos,
        eos_id=eos,
        specials=specials,
        unk_id=unk_id,
        whole_first=bool(model.get("ignore_merges")),
        adds_bos=_adds_bos(file, config, kind, pieces[bos]),
    )


def _find(ids: dict[str, int], names: dict[str, str], name: str) -> int | None:
    candidates = [names[name]] if name in names else _USUAL[name]
    return next((ids[text] for text in candidates if text in ids), None)


def _pieces(file: dict[str, Any], model: dict[str, Any]) -> tuple[Specials, list[str], list[str]]:
    """Which tokens are special, every id's piece, and what of it a normalizer comes before."""
    by_id: dict[int, str] = {}
    for piece, token in _check(model.get("vocab"), dict, "model.vocab").items():
        if by_id.setdefault(_check(token, int, f"the id of {piece[:40]!r}"), piece) != piece:
            raise TokenizerError(f"token {token} is there twice, expected one piece an id")
    added: dict[str, int] = {}
    control: dict[str, int] = {}
    normalized: list[str] = []
    for entry in _check(file.get("added_tokens") or [], list, "added_tokens"):
        entry = _check(entry, dict, "an added token")
        text = _check(entry.get("content"), str, "the content of an added token")
        token = _check(entry.get("id"), int, f"the id of {text[:40]!r}")
        for flag in ("single_word", "lstrip", "rstrip"):
            if entry.get(flag):
                raise TokenizerError(f"added token {text[:40]!r} has {flag}, expected none that do")
        if by_id.setdefault(token, text) != text:
            raise TokenizerError(
                f"added token {text[:40]!r} has id {token}, which is {by_id[token][:40]!r},"
                " expected an id of its own"
            )
        (control if entry.get("special") else added)[text] = token
        if entry.get("normalized"):
            normalized.append(text)
    if sorted(by_id) != list(range(len(by_id))):
        raise TokenizerError(f"{len(by_id)} tokens have other ids, expected 0 and up without gaps")
    return Specials(added, control), [by_id[token] for token in range(len(by_id))], normalized


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Each is "a b" in older files, ["a", "b"] in newer ones."""
    merges: list[tuple[str, str]] = []
    for entry in _check(model.get("merges"), list, "model.merges"):
        parts = entry.split(" ") if isinstance(entry, str) else entry
        if not (isinstance(parts, list) and len(parts) == 2 and all(type(p) is str for p in parts)):
            raise TokenizerError(f"merge {len(merges)} is {entry!r:.80}, expected two pieces")
        merges.append((parts[0], parts[1]))
    return merges


def _steps(file: dict[str, Any], name: str, inner: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as the list of steps that it is."""
    found = file.get(name)
    if found is None:
        return []
    if _check(found, dict, name).get("type") == "Sequence":
        steps = _check(found.get(inner), list, f"{name}.{inner}")
        return [_check(step, dict, f"a step of {name}") for step in steps]
    return [found]


def _kind(file: dict[str, Any], byte_fallback: bool) -> ByteLevel | Characters:
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
        raise TokenizerError("model.byte_fallback is not true, expected it or a ByteLevel splitter")
    return _characters(normalizer, splitter)


def _refuse(steps: list[dict[str, Any]], name: str) -> None:
    if steps:
        raise TokenizerError(f"{name} has the step {steps[0]!r:.120}, expected a known one")


def _patterns(steps: list[dict[str, Any]]) -> list[str]:
    """What the steps before the bytes cut a text by."""
    patterns = []
    for place, step in enumerate(steps, 1):
        is_last, is_only = place == len(steps), len(steps) == 1
        match step:
            # It turns bytes into letters: what came behind it would look at those. And behind
            # another step its space would come before each of the pieces.
            case {"type": "ByteLevel", "add_prefix_space": bool(spaced)} if is_last and (
                is_only or not spaced
            ):
                if step.get("use_regex", True):
                    patterns.append(GPT2)
            case {"type": "Digits", "individual_digits": True}:
                patterns.append(DIGITS)
            case {
                "type": "Split",
                "pattern": {"Regex": str(pattern)},
                "behavior": "Isolated",
                "invert": False,
            } if pattern in KNOWN_PATTERNS:
                patterns.append(pattern)
            case _:
                _refuse([step], "pre_tokenizer")
    return patterns


def _characters(normalizer: list[dict[str, Any]], splitter: list[dict[str, Any]]) -> Characters:
    """Where the space before a text comes from."""
    prefix, once = "none", False
    for step in normalizer:
        match step:
            case {"type": "Prepend", "prepend": str(mark)} if mark == SPACE_MARK:
                prefix = "each"
            case {"type": "Replace", "pattern": {"String": " "}, "content": str(mark)} if (
                mark == SPACE_MARK
            ):
                pass
            case _:
                _refuse([step], "normalizer")
    for step in splitter:
        match step:
            case {"type": "Metaspace", "replacement": str(mark), "split": False} if (
                mark == SPACE_MARK
            ):
                scheme = step.get("prepend_scheme", "always")
                if scheme not in ("always", "first", "never"):
                    _refuse([step], "pre_tokenizer")
                if scheme != "never":
                    prefix, once = ("each" if scheme == "always" else "first"), True
            case _:
                _refuse([step], "pre_tokenizer")
    return Characters(prefix, once)

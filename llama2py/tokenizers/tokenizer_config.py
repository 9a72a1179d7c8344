"""The files beside a Hugging Face vocabulary, which name BOS and EOS and add tokens to it.

``tokenizer_config.json`` has the names of the special tokens and, since transformers 4.34, every
added token (added_tokens_decoder). Older directories have ``special_tokens_map.json`` and
``added_tokens.json`` instead. All three may have tokens that the vocabulary itself lacks.

Source: ``_from_pretrained`` and ``TokenizersBackend`` of huggingface/transformers, ``add_tokens``
of huggingface/tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import TokenizerError
from ..formats.bounded_json import read_object
from .tokenizer import Matching

CONFIG = "tokenizer_config.json"
_MAP, _ADDED = "special_tokens_map.json", "added_tokens.json"
# The names of special tokens. bos_token and eos_token also say what a text begins and ends with.
_NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))

Json = dict[str, Any]


@dataclass(frozen=True)
class AddedToken:
    """A token that is added to a vocabulary.

    Attributes
    ----------
    text : str
        Its text, not empty.
    token : int or None
        The id that a file gives it.
    special : bool
        Whether it is a control token.
    matching : Matching
        How it is found in a text.
    """

    text: str
    token: int | None
    special: bool
    matching: Matching


@dataclass(frozen=True)
class TokenizerConfig:
    """What the files beside a vocabulary say.

    Attributes
    ----------
    names : mapping of str to str
        The texts of the tokens ``'bos'`` and ``'eos'``, if a file names them. A name that is null
        or empty names none.
    adds_bos : bool or None
        Whether a text begins with BOS, if a file says so.
    is_legacy : bool
        Whether a space is put before each stretch of text between two added tokens, and not only
        before the first one: for a tokenizer.model, which does not say.
    added : tuple of AddedToken
        Tokens to add, if the vocabulary lacks them, in this order.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    adds_bos: bool | None = None
    is_legacy: bool = False
    added: tuple[AddedToken, ...] = ()


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Read the files beside a vocabulary; a file that is missing says nothing.

    Parameters
    ----------
    folder : Path
        The folder of the vocabulary.

    Raises
    ------
    TokenizerError
        If a file is malformed.
    """
    config = _read(folder / CONFIG)
    decoder = config.get("added_tokens_decoder")
    added: list[AddedToken] = []
    if decoder is not None:
        added += _decoder(folder / CONFIG, decoder)
    else:
        config |= _read(folder / _MAP)
    stated = config.get("add_bos_token")
    adds_bos = stated if isinstance(stated, bool) else None
    if "bos_token" in config and not config["bos_token"]:
        adds_bos = False  # null or empty names no token
    named = {name: config[name] for name in _NAMED if config.get(name)}
    named |= {  # such as image_token
        name: text
        for name, text in config.items()
        if name.endswith("_token") and name not in named and isinstance(text, str)
    }
    specials = [*named.values(), *_extra(folder, config)]
    tokens = [_added(folder, token, is_special=True) for token in specials]
    if decoder is None:
        known = {token.text for token in tokens}
        for text, token in _read(folder / _ADDED).items():
            if type(token) is not int:
                raise TokenizerError(
                    f"{folder / _ADDED}: the id of {text[:40]!r} is {token!r:.40}, expected a whole"
                    " number"
                )
            special = text in known
            added.append(AddedToken(text, token, special, Matching(normalized=not special)))
    added.sort(key=lambda token: token.token or 0)
    names = {
        name: _text(folder, named[f"{name}_token"])
        for name in ("bos", "eos")
        if f"{name}_token" in named
    }
    return TokenizerConfig(
        {name: text for name, text in names.items() if text},
        adds_bos,
        config.get("legacy") is True,
        tuple(token for token in (*added, *tokens) if token.text),
    )


def _read(path: Path) -> Json:
    return read_object(path, error=TokenizerError).values if path.is_file() else {}


def _decoder(path: Path, decoder: Any) -> Iterator[AddedToken]:
    """Yield the tokens of added_tokens_decoder, which are listed by their ids."""
    if not isinstance(decoder, dict):
        raise TokenizerError(
            f"{path}: added_tokens_decoder is not an object of tokens by their ids"
        )
    for name, entry in decoder.items():
        if not (name.isascii() and name.isdigit() and len(name) < 10):
            raise TokenizerError(
                f"{path}: added_tokens_decoder has the name {name[:40]!r}, expected the id of a"
                " token"
            )
        yield _added(path.parent, entry, int(name))


def _extra(folder: Path, config: Json) -> list[Any]:
    """Return further special tokens: a list, or an object of tokens by their names."""
    found = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(found, dict):
        found = list(found.values())
    if not isinstance(found, list):
        raise TokenizerError(f"{folder / CONFIG}: the extra special tokens are not a list")
    return found


def _added(
    folder: Path, entry: Any, token: int | None = None, is_special: bool = False
) -> AddedToken:
    text = _text(folder, entry)
    about = entry if isinstance(entry, dict) else {}
    flags = {flag.name: bool(about.get(flag.name)) for flag in fields(Matching)}
    return AddedToken(text, token, is_special or bool(about.get("special")), Matching(**flags))


def _text(folder: Path, entry: Any) -> str:
    """Return the text of a token, which is a string or an object with a content."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    if not isinstance(text, str):
        raise TokenizerError(
            f"{folder / CONFIG}: a special token is {entry!r:.60}, expected a string or an object"
            " with a content"
        )
    return text

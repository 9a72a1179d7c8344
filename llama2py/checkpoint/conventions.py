"""What a checkpoint's metadata says about texts: how a chat is written, and which tokens end it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..formats.json_text import JsonFile

MAX_TEMPLATE = 1 << 20  # bytes: Llama 3.2's has 4,000
MAX_END_TOKENS = 1 << 10


@dataclass(frozen=True)
class Conventions:
    """How a model's texts begin, end and take turns, as far as its metadata says so.

    Attributes
    ----------
    chat_template : str or None
        Hugging Face's Jinja program that writes a dialogue.
    add_bos : bool or None
        Whether a text begins with BOS.
    end_tokens : frozenset of int
        The tokens that end a text or an answer.
    eos_ends : bool
        Whether the vocabulary's EOS, and ``<|eot_id|>`` where it has that, end one although no file
        says so: as with Meta's checkpoints, whose rules are in Meta's code.
    """

    chat_template: str | None = None
    add_bos: bool | None = None
    end_tokens: frozenset[int] = frozenset()
    eos_ends: bool = False


def gguf_conventions(pairs: Mapping[str, Any], vocab_size: int, path: Path) -> Conventions:
    """Those of a GGUF file's metadata.

    Raises
    ------
    CheckpointError
        If they are of another type, or a token is out of the vocabulary.
    """

    def found(name: str, kind: type) -> Any:
        value = pairs.get(name)
        if value is not None and type(value) is not kind:
            raise CheckpointError(f"{path}: {name} is {value!r:.80}, expected {_KINDS[kind]}")
        return value

    template = found("tokenizer.chat_template", bytes)
    ends = [found(f"tokenizer.ggml.{name}_token_id", int) for name in ("eos", "eot", "eom")]
    return Conventions(
        None if template is None else template.decode(errors="replace"),
        found("tokenizer.ggml.add_bos_token", bool),
        _checked([end for end in ends if end is not None], vocab_size, path),
    )


_KINDS = {bytes: "a text", int: "the id of a token", bool: "true or false"}


def huggingface_conventions(folder: Path, about: JsonFile, vocab_size: int) -> Conventions:
    """Those of a directory of Hugging Face's.

    Parameters
    ----------
    folder : Path
        The directory. Of the files in it, ``chat_template.jinja`` goes before what
        ``tokenizer_config.json`` has, and ``generation_config.json`` before ``config.json``.
    about : JsonFile
        Its ``config.json``.
    vocab_size : int
        Number of token ids.

    Raises
    ------
    CheckpointError
        If one of the files is malformed, or a token is out of the vocabulary.
    """
    template: str | None = None
    add_bos: bool | None = None
    if (folder / "tokenizer_config.json").is_file():
        config = JsonFile(folder / "tokenizer_config.json")
        template = _template_of(config)
        if template is not None:  # JSON can spell half a character, which no text can hold
            template = template.encode(errors="replace").decode()
        if config.values.get("add_bos_token") is not None:
            add_bos = config.flag("add_bos_token")
    if (folder / "chat_template.jinja").is_file():
        template = _read_text(folder / "chat_template.jinja")
    source = about
    if (folder / "generation_config.json").is_file():
        generation = JsonFile(folder / "generation_config.json")
        source = generation if generation.values.get("eos_token_id") is not None else about
    return Conventions(template, add_bos, _end_tokens(source, vocab_size))


def _template_of(config: JsonFile) -> str | None:
    """The template, or of several with names the one that is named default."""
    found = config.values.get("chat_template")
    if not isinstance(found, list):
        return None if found is None else config.text("chat_template")
    for entry in found:
        match entry:
            case {"name": "default", "template": str(text)}:
                return text
    return None


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TEMPLATE + 1)
        if len(text) > MAX_TEMPLATE:
            raise CheckpointError(
                f"{path}: more than {MAX_TEMPLATE} bytes, expected a chat template"
            )
        return text.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}), expected UTF-8 text") from None


def _end_tokens(source: JsonFile, vocab_size: int) -> frozenset[int]:
    found = source.values.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if len(ids) > MAX_END_TOKENS or not all(type(token) is int for token in ids):
        raise source.error("eos_token_id", "the ids of tokens")
    return _checked(ids, vocab_size, source.path)


def _checked(ids: list[int], vocab_size: int, path: Path) -> frozenset[int]:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise CheckpointError(
                f"{path}: token {token!s:.40} shall end a text, expected one of {vocab_size} tokens"
            )
    return frozenset(ids)

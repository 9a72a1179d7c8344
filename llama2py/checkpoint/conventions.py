"""What a checkpoint's metadata says about texts: the chat template, BOS, and the end tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..formats.bounded_json import JsonObject, read_object
from ..formats.gguf_metadata import GGUFFields
from ..formats.input_file import named, read_whole

MAX_TEMPLATE = 1 << 20  # bytes: Llama 3.2's has 4,000
MAX_TEMPLATES = 64  # of one model
MAX_END_TOKENS = 1 << 10

GGUF_ENDS = frozenset(
    [
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
        "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
        "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
        # Between the files of a code base, and padding.
        "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
        "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
    ]
)  # fmt: skip
"""Texts of tokens that end a text: so llama.cpp finds those that a GGUF file does not name."""


@dataclass(frozen=True)
class Conventions:
    """How a model's texts begin, end and take turns, as far as its metadata says so.

    Attributes
    ----------
    chat_template : str or None
        The Jinja program of Hugging Face that formats a dialogue.
    named_templates : mapping of str to str
        Further programs by their names, such as ``tool_use``.
    add_bos : bool or None
        Whether a text begins with BOS.
    end_tokens : frozenset of int
        The tokens that end a text or an answer.
    eos_ends : bool
        Whether the vocabulary's EOS ends a text although no file says so: true for Meta's
        checkpoints, whose rules are in Meta's code.
    end_texts : frozenset of str
        The control tokens of the vocabulary with these texts end a text, too.
    """

    chat_template: str | None = None
    add_bos: bool | None = None
    end_tokens: frozenset[int] = frozenset()
    eos_ends: bool = False
    end_texts: frozenset[str] = frozenset()
    named_templates: Mapping[str, str] = field(default_factory=dict)


def gguf_conventions(pairs: Mapping[str, Any], vocab_size: int, path: Path) -> Conventions:
    """Read the conventions in a GGUF file's metadata.

    As in llama.cpp, an end token that is outside the vocabulary is ignored.

    Raises
    ------
    CheckpointError
        A value has another type.
    """
    fields = GGUFFields(pairs, CheckpointError, "tokenizer.")
    try:
        template = fields.text("chat_template", None)
        ends = [fields.integer(f"ggml.{name}_token_id", None) for name in ("eos", "eot", "eom")]
        return Conventions(
            None if template is None else template.decode(errors="replace"),
            fields.flag("ggml.add_bos_token", None),
            frozenset(end for end in ends if end is not None and 0 <= end < vocab_size),
            end_texts=GGUF_ENDS if "ggml.tokens" in fields else frozenset(),
            named_templates=_gguf_named(pairs, fields),
        )
    except CheckpointError as error:
        raise named(path, error) from None


def _gguf_named(pairs: Mapping[str, Any], fields: GGUFFields) -> dict[str, str]:
    """Return the templates with the keys ``tokenizer.chat_template.NAME``."""
    prefix = "tokenizer.chat_template."
    names = [key.removeprefix(prefix) for key in pairs if key.startswith(prefix)]
    return {name: fields.text(f"chat_template.{name}").decode(errors="replace") for name in names}


def huggingface_conventions(folder: Path, about: JsonObject, vocab_size: int) -> Conventions:
    """Read the conventions of a Hugging Face directory.

    Parameters
    ----------
    folder : Path
        The directory. ``chat_template.jinja`` and the files in ``additional_chat_templates`` take
        precedence over ``tokenizer_config.json``, and ``generation_config.json`` over
        ``config.json``.
    about : JsonObject
        Its ``config.json``.
    vocab_size : int
        Number of token ids.

    Raises
    ------
    CheckpointError
        A file is malformed, or a token is outside the vocabulary.
    """
    templates: dict[str, str] = {}
    add_bos: bool | None = None
    if (folder / "tokenizer_config.json").is_file():
        config = read_object(folder / "tokenizer_config.json")
        # JSON can spell half a character, which no text can hold.
        templates = {
            name: text.encode(errors="replace").decode()
            for name, text in _templates_of(config).items()
        }
        if config.values.get("add_bos_token") is not None:
            add_bos = config.flag("add_bos_token")
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = _read_template(folder / "chat_template.jinja")
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))[:MAX_TEMPLATES]:
        templates[path.stem] = _read_template(path)
    template = templates.pop("default", None)
    source = about
    if (folder / "generation_config.json").is_file():
        generation = read_object(folder / "generation_config.json")
        source = generation if generation.values.get("eos_token_id") is not None else about
    ends = _end_tokens(source, vocab_size)
    return Conventions(template, add_bos, ends, named_templates=templates)


def _templates_of(config: JsonObject) -> dict[str, str]:
    """Return the templates by their names; a single one is named default."""
    found = config.values.get("chat_template")
    if not isinstance(found, list):
        return {} if found is None else {"default": config.text("chat_template")}
    templates = {}
    for entry in found[:MAX_TEMPLATES]:
        match entry:
            case {"name": str(name), "template": str(text)}:
                templates[name] = text
    return templates


def _read_template(path: Path) -> str:
    data = read_whole(path, MAX_TEMPLATE, CheckpointError, "a chat template")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}), expected UTF-8") from None


def _end_tokens(source: JsonObject, vocab_size: int) -> frozenset[int]:
    found = source.values.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if len(ids) > MAX_END_TOKENS or not all(type(token) is int for token in ids):
        raise source.error("eos_token_id", "token ids")
    return _checked(ids, vocab_size, source.path)


def _checked(ids: list[int], vocab_size: int, path: Any) -> frozenset[int]:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise CheckpointError(
                f"{path}: end token {token!s:.40} is outside the vocabulary ({vocab_size} tokens)"
            )
    return frozenset(ids)

"""Chat templates: how each kind of model reads a dialogue, and which template a model needs.

A checkpoint's metadata holds its template as a Jinja program. llama2py never runs that program. It
recognises the template by the markers in the program and uses its own version of it, below.

Sources: the models' ``tokenizer_config.json``; for Llama 2, ``chat_completion`` in Meta's
``generation.py`` and llama2.c's ``run.c``; for Mistral, mistral-common's tokenizers v1 and v3 (the
system prompt stays in the first turn, as in v1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from ..checkpoint import Conventions
from ..engine.parameters import one_of
from ..errors import ParameterError, PromptError
from ..tokenizers.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """One turn of a dialogue."""

    role: Role
    content: str


class Marker(str):
    """A text that the template writes, encoded as one token if the vocabulary has that token."""

    __slots__ = ()


EOS = Marker()  # the vocabulary's EOS, whatever its spelling

# (user, system) -> the parts of a user's turn, up to where the assistant's answer begins. The first
# turn has the system prompt; None: no system prompt.
Render = Callable[[str, "str | None"], Iterable[str]]


@dataclass(frozen=True)
class Template:
    """A chat template.

    Attributes
    ----------
    name : str
        The name that users choose it by.
    render : callable
        Renders a user's turn.
    end : Marker or None
        The token that ends an answer. None: the dialogue is one text, and ``stop`` ends an answer.
    between : str
        The text between the end of an answer and the next turn.
    markers : tuple of str
        Texts that no message may contain, because they could fake another turn.
    bos : {'turn', 'dialogue', 'metadata'}
        Where BOS goes: before every turn; before the first turn; or before the first turn, but only
        if the metadata requests it.
    stop : tuple of str
        Texts that end an answer.
    encode_separately : bool
        Encode each text as if it were the first. If the vocabulary lacks one of the turn's markers,
        encode the whole turn as one text, with spaces between its parts.
    """

    name: str
    render: Render
    end: Marker | None
    between: str
    markers: tuple[str, ...]
    bos: Literal["turn", "dialogue", "metadata"] = "dialogue"
    stop: tuple[str, ...] = ()
    encode_separately: bool = False


def _llama2(user: str, system: str | None) -> Iterator[str]:
    if system:
        user = f"<<SYS>>\n{system}\n<</SYS>>\n\n{user}"
    yield f"[INST] {user} [/INST]"


def _mistral(user: str, system: str | None) -> Iterator[str]:
    yield from (Marker("[INST]"), f"{system}\n\n{user}" if system else user, Marker("[/INST]"))


def _llama3(user: str, system: str | None) -> Iterator[str]:
    def turn(role: Role) -> Iterator[str]:
        yield from (Marker("<|start_header_id|>"), role, Marker("<|end_header_id|>"), "\n\n")

    for role, text in (("system", system), ("user", user)):
        if role == "user" or system:
            yield from turn("system" if role == "system" else "user")
            yield from ((text or "").strip(), Marker("<|eot_id|>"))
    yield from turn("assistant")


def _chatml(user: str, system: str | None) -> Iterator[str]:
    start, end = Marker("<|im_start|>"), Marker("<|im_end|>")
    if system:
        yield from (start, f"system\n{system}", end, "\n")
    yield from (start, f"user\n{user}", end, "\n", start, "assistant\n")


def _zephyr(user: str, system: str | None) -> Iterator[str]:
    if system:
        yield from (Marker("<|system|>"), f"\n{system}", EOS, "\n")
    yield from (Marker("<|user|>"), f"\n{user}", EOS, "\n", Marker("<|assistant|>"), "\n")


def _plain(user: str, system: str | None) -> Iterator[str]:
    if system:
        yield f"{system}\n"
    yield f"User: {user}\nAssistant:"


LLAMA2 = Template(
    "llama2",
    _llama2,
    EOS,
    "",
    ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    bos="turn",
)

_ALL = (
    LLAMA2,
    Template(
        "mistral",
        _mistral,
        EOS,
        "",
        ("[INST]", "[/INST]"),
        encode_separately=True,
    ),
    Template(
        "llama3",
        _llama3,
        Marker("<|eot_id|>"),
        "",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    ),
    Template(
        "chatml",
        _chatml,
        Marker("<|im_end|>"),
        "\n",
        ("<|im_start|>", "<|im_end|>"),
        bos="metadata",
    ),
    Template(
        "zephyr",
        _zephyr,
        EOS,
        "\n",
        ("<|system|>", "<|user|>", "<|assistant|>", "</s>"),
    ),
    Template(
        "plain",
        _plain,
        None,
        "\n",
        ("\nUser:", "\nAssistant:"),
        stop=("\nUser:",),
    ),
)

TEMPLATES = {template.name: template for template in _ALL}

# Zephyr ends a user's turn with EOS; other templates with <|user|> do not.
_ZEPHYR = re.compile(r"<\|user\|>[^%]{0,80}?content[^%]{0,20}?(?:eos_token|</s>)")
# Llama 2's template without <<SYS>>: BOS before every turn, unlike Mistral's.
_BOS_PER_TURN = re.compile(r"bos_token\s*[+~]\s*['\"]\s*\[INST\]")
_DEFAULT_SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}<>]+)<\|im_end\|>")


def recognise(jinja: str) -> Template | None:
    """Return the template that a Jinja program implements, by its markers, or None if unknown."""
    if "<|start_header_id|>" in jinja and "<|eot_id|>" in jinja:
        return TEMPLATES["llama3"]
    if "<|im_start|>" in jinja and "<|im_end|>" in jinja:
        return TEMPLATES["chatml"]
    if "[INST]" in jinja and "<<SYS>>" in jinja:
        return LLAMA2
    if "[INST]" in jinja and "[/INST]" in jinja and "[SYSTEM_PROMPT]" not in jinja:
        return None if _BOS_PER_TURN.search(jinja) else TEMPLATES["mistral"]
    if _ZEPHYR.search(jinja):
        return TEMPLATES["zephyr"]
    return None


def default_system(jinja: str | None) -> str | None:
    """Return the default system prompt of a ChatML program, or None if it has no default."""
    found = _DEFAULT_SYSTEM.search(jinja or "")
    return found[1].replace("\\n", "\n") if found else None


def find_template(
    name: str | None, conventions: Conventions, controls: Collection[str] = ()
) -> Template:
    """Choose a template: by name, or else by the metadata, by the control tokens, or Llama 2's.

    Raises
    ------
    ParameterError
        If the name or the metadata's template is unknown.
    """
    names = ", ".join(TEMPLATES)
    if name is not None:
        one_of("template", name, list(TEMPLATES))
        return TEMPLATES[name]
    jinja = conventions.chat_template
    if jinja is None:  # Meta's Llama 3 has no metadata, but a telling vocabulary
        return recognise("".join(controls)) or LLAMA2
    template = recognise(jinja)
    if template is None:
        raise ParameterError(
            f"the model's chat template ({' '.join(jinja.split())[:60]}...) is unknown to llama2py:"
            f" choose a template by name, one of {names}"
        )
    return template


class TurnEncoder:
    """Encode the turns of a dialogue with one template and one model's tokenizer.

    Parameters
    ----------
    template : Template
        The template.
    tokenizer : Tokenizer
        The model's tokenizer.
    conventions : Conventions
        The model's conventions: whether BOS begins a text, which other tokens end an answer.

    Attributes
    ----------
    stop_tokens : frozenset of int
        The tokens that end an answer.

    Raises
    ------
    ParameterError
        If the vocabulary lacks the token that ends an answer.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer, conventions: Conventions) -> None:
        self.template = template
        self._tokenizer = tokenizer
        specials = tokenizer.specials
        self._ids = {**specials.added, **specials.control}
        self.stop_tokens = frozenset([tokenizer.eos_id]) | conventions.end_tokens
        self._end: int | None = None
        if template.end is None:
            self.stop_tokens |= {tokenizer.bos_id}  # the separator between llama2.c's stories
        else:
            end = self._id(template.end)
            if end is None:
                raise ParameterError(
                    f"the chat template {template.name} ends an answer with {template.end}, which"
                    " the model's vocabulary lacks: choose another template"
                )
            self._end = end
            self.stop_tokens |= {end}
        add_bos = conventions.add_bos
        if add_bos is None:
            add_bos = template.bos != "metadata"
        self._bos = add_bos or "bos_token" in (conventions.chat_template or "")
        # The tokenizer finds added tokens in every text, so these would end a message.
        ending = self.stop_tokens | {tokenizer.bos_id}
        added = sorted(text for text, token in specials.added.items() if token in ending)
        self._forbidden = (*template.markers, *added)

    def _id(self, marker: Marker) -> int | None:
        return self._tokenizer.eos_id if marker is EOS else self._ids.get(marker)

    def check(self, text: str, what: str = "message") -> None:
        """Refuse a message that contains a marker of the template, as Meta's code does.

        The characters of a marker that is a token would be harmless, but some markers are text.

        Raises
        ------
        PromptError
            If it contains a marker, or is not a str.
        """
        if not isinstance(text, str):
            raise PromptError(f"the {what} is {type(text).__name__}, expected str")
        for marker in self._forbidden:
            if marker in "\n" + text:
                raise PromptError(
                    f"the {what} contains {marker.strip()!r}, a marker of the chat template"
                    f" {self.template.name}: remove it"
                )

    def turn(self, user: str, system: str | None, first: bool) -> list[int]:
        """Encode a user's turn; before a turn that is not the first comes `end`."""
        template, tokenizer = self.template, self._tokenizer
        rendered = list(template.render(user, system))
        if template.encode_separately and any(
            isinstance(p, Marker) and self._id(p) is None for p in rendered
        ):
            rendered = [" ".join(rendered)]
        parts = self._parts([*([] if first else [template.between]), *rendered])
        if template.bos == "turn":
            return [tokenizer.bos_id, *tokenizer.encode_parts(parts)]
        bos = [tokenizer.bos_id] if first and self._bos and parts[0] != tokenizer.bos_id else []
        if template.encode_separately:
            return bos + [token for part in parts for token in tokenizer.encode_parts([part])]
        return bos + tokenizer.encode_parts(parts, first)

    def end(self) -> list[int]:
        """Return the tokens at the end of an answer."""
        return [] if self._end is None else [self._end]

    def text(self, turns: Sequence[tuple[str, str]], user: str, system: str | None) -> list[int]:
        """Encode a dialogue that is one text: earlier (user, answer) turns, then a user's turn.

        The text is encoded as a whole because a token may span the border between two turns.
        """
        template = self.template
        text = ""
        for earlier, answer in turns:
            text += "".join(template.render(earlier, system)) + answer + template.between
            system = None
        text += "".join(template.render(user, system))
        return self._tokenizer.encode(text, bos=self._bos)

    def _parts(self, rendered: Iterable[str]) -> list[str | int]:
        """Replace markers by their tokens, and join adjacent texts."""
        parts: list[str | int] = []
        for part in rendered:
            token = self._id(part) if isinstance(part, Marker) else None
            if token is not None:
                parts.append(token)
            elif parts and isinstance(parts[-1], str):
                parts[-1] += part
            elif part:
                parts.append(str(part))
        return parts

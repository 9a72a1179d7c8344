"""How a dialogue is written for a model: chat templates by name, and which one a model wants.

A checkpoint's metadata has the template as a Jinja program. None is run here: what it is, the
markers in it tell, and the template itself is written down below.

Source: what the models' ``tokenizer_config.json`` say, for Llama 2 ``chat_completion`` in Meta's
``generation.py`` and llama2.c's ``run.c``, and for Mistral how mistral-common encodes (its
tokenizers v1 and v3; the system prompt stays in the first turn, as in v1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from ..checkpoint import Conventions
from ..errors import ParameterError, PromptError
from ..tokenizers.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """One turn of a dialogue."""

    role: Role
    content: str


class Marker(str):
    """A text of the template's own, which is one token where the vocabulary has it."""

    __slots__ = ()


EOS = Marker()  # the vocabulary's, however it is spelled

# A user's turn, with the system prompt where it is the first (None: there is none), up to where the
# assistant begins.
Render = Callable[[str, "str | None"], Iterable[str]]


@dataclass(frozen=True)
class Template:
    """A chat template.

    Attributes
    ----------
    name : str
        What users call it.
    render : callable
        Writes a user's turn.
    end : Marker or None
        The token that ends an answer. None: the dialogue is one text, and ``stop`` ends an answer.
    between : str
        What stands between the end of an answer and the next turn.
    markers : tuple of str
        What no message may hold: with these it could pass for another turn.
    bos : {'turn', 'dialogue', 'asked'}
        BOS stands before every turn; before the first; or there, but only where the metadata asks
        for it.
    stop : tuple of str
        Texts that end an answer.
    apart : bool
        Each text is encoded as if none stood before it. A turn whose markers are no tokens of the
        vocabulary is one text, with spaces between its parts.
    """

    name: str
    render: Render
    end: Marker | None
    between: str
    markers: tuple[str, ...]
    bos: Literal["turn", "dialogue", "asked"] = "dialogue"
    stop: tuple[str, ...] = ()
    apart: bool = False


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
        apart=True,
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
        bos="asked",
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

# A turn that ends with EOS: others have <|user|>, too, and end it otherwise.
_ZEPHYR = re.compile(r"<\|user\|>[^%]{0,80}?content[^%]{0,20}?(?:eos_token|</s>)")
# A model of Llama 2's kind that was trained without <<SYS>> has BOS before every turn.
_BOS_EACH = re.compile(r"bos_token\s*[+~]\s*['\"]\s*\[INST\]")
_DEFAULT_SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}<>]+)<\|im_end\|>")


def recognise(jinja: str) -> Template | None:
    """The template that a Jinja program is, by its markers; None: none of these."""
    if "<|start_header_id|>" in jinja and "<|eot_id|>" in jinja:
        return TEMPLATES["llama3"]
    if "<|im_start|>" in jinja and "<|im_end|>" in jinja:
        return TEMPLATES["chatml"]
    if "[INST]" in jinja and "<<SYS>>" in jinja:
        return LLAMA2
    if "[INST]" in jinja and "[/INST]" in jinja and "[SYSTEM_PROMPT]" not in jinja:
        return None if _BOS_EACH.search(jinja) else TEMPLATES["mistral"]
    if _ZEPHYR.search(jinja):
        return TEMPLATES["zephyr"]
    return None


def default_system(jinja: str | None) -> str | None:
    """The system prompt that a ChatML program puts where there is none; None: nothing."""
    found = _DEFAULT_SYSTEM.search(jinja or "")
    return found[1].replace("\\n", "\n") if found else None


def find_template(
    name: str | None, conventions: Conventions, controls: Collection[str] = ()
) -> Template:
    """The template of a name, or else the metadata's, or the control tokens', or Llama 2's.

    Raises
    ------
    ParameterError
        If there is none of this name, or the metadata's is none of these.
    """
    names = ", ".join(TEMPLATES)
    if name is not None:
        if name not in TEMPLATES:
            raise ParameterError(f"the chat template is {name!r}, expected one of {names}")
        return TEMPLATES[name]
    jinja = conventions.chat_template
    if jinja is None:  # as Llama 3 comes from Meta: its vocabulary tells
        return recognise("".join(controls)) or LLAMA2
    template = recognise(jinja)
    if template is None:
        raise ParameterError(
            f"the model's chat template ({' '.join(jinja.split())[:60]}...) is none that is known:"
            f" choose one of {names} by name"
        )
    return template


class Writer:
    """A template in the tokens of one model.

    Parameters
    ----------
    template : Template
        The template.
    tokenizer : Tokenizer
        The model's.
    conventions : Conventions
        Of the model: whether BOS begins a text, what else ends an answer.

    Raises
    ------
    ParameterError
        If the vocabulary lacks the token that ends an answer.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer, conventions: Conventions) -> None:
        self.template, self._tokenizer = template, tokenizer
        specials = tokenizer.specials
        self._ids = {**specials.added, **specials.control}
        self.stop_tokens = frozenset([tokenizer.eos_id]) | conventions.end_tokens
        self._end: int | None = None
        if template.end is None:
            self.stop_tokens |= {tokenizer.bos_id}  # which parts llama2.c's stories
        else:
            end = self._id(template.end)
            if end is None:
                raise ParameterError(
                    f"the chat template {template.name} ends an answer with {template.end},"
                    " expected a vocabulary that has this token"
                )
            self._end = end
            self.stop_tokens |= {end}
        add_bos = conventions.add_bos
        if add_bos is None:
            add_bos = template.bos != "asked"
        self._bos = add_bos or "bos_token" in (conventions.chat_template or "")
        # Added tokens are found in every text. These would end one.
        ends = self.stop_tokens | {tokenizer.bos_id}
        added = sorted(text for text, token in specials.added.items() if token in ends)
        self._forbidden = (*template.markers, *added)

    def _id(self, marker: Marker) -> int | None:
        return self._tokenizer.eos_id if marker is EOS else self._ids.get(marker)

    def check(self, text: str, what: str = "message") -> None:
        """Refuse a message that holds a marker of the template, as Meta's code does.

        Of the markers that are tokens, the characters would be harmless; but some are only text.

        Raises
        ------
        PromptError
            If it does.
        """
        for marker in self._forbidden:
            if marker in "\n" + text:
                raise PromptError(
                    f"the {what} holds {marker.strip()!r}, which the chat template"
                    f" {self.template.name} parts turns with, expected one without it"
                )

    def turn(self, user: str, system: str | None, first: bool) -> list[int]:
        """The tokens of a user's turn, behind what `end` gives for the one before."""
        template, tokenizer = self.template, self._tokenizer
        rendered = list(template.render(user, system))
        if template.apart and any(isinstance(p, Marker) and self._id(p) is None for p in rendered):
            rendered = [" ".join(rendered)]
        parts = self._parts([*([] if first else [template.between]), *rendered])
        if template.bos == "turn":
            return [tokenizer.bos_id, *tokenizer.encode_parts(parts)]
        bos = [tokenizer.bos_id] if first and self._bos and parts[0] != tokenizer.bos_id else []
        if template.apart:
            return bos + [token for part in parts for token in tokenizer.encode_parts([part])]
        return bos + tokenizer.encode_parts(parts, first)

    def end(self) -> list[int]:
        """What an answer ends with."""
        return [] if self._end is None else [self._end]

    def text(self, turns: Sequence[tuple[str, str]], user: str, system: str | None) -> list[int]:
        """The tokens of a whole dialogue that is one text: earlier users and answers, and a user.

        A text has to be encoded as one: its tokens may lie across the borders of turns.
        """
        template = self.template
        text = ""
        for said, answer in turns:
            text += "".join(template.render(said, system)) + answer + template.between
            system = None
        text += "".join(template.render(user, system))
        return self._tokenizer.encode(text, bos=self._bos)

    def _parts(self, rendered: Iterable[str]) -> list[str | int]:
        """Markers as their tokens, all else as text, in one piece where nothing is between."""
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

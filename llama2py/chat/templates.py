"""Chat templates: how a dialogue becomes the text that a model reads.

A model's metadata holds its template, a Jinja program. There are three ways to run one:

- A few common programs are known here, compared as a whole. They need no jinja2.
- Any other program runs in a sandbox: see `llama2py.chat.jinja`.
- A *form* is a format of this module's own, with a name: for models without metadata, and for those
  whose metadata is wrong. A form never silently replaces a model's own template.

Sources: for Llama 2, ``chat_completion`` in Meta's ``generation.py`` and llama2.c's ``run.c``; for
Mistral, mistral-common's tokenizers v1 and v3 (the system prompt stays in the first turn, as in
v1); for the known programs, the models' ``tokenizer_config.json``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypedDict

from ..checkpoint import Conventions
from ..engine.parameters import instance
from ..errors import ParameterError, PromptError

Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """One turn of a dialogue."""

    role: Role
    content: str


class Exact(str):
    """An answer as the model has written it, with its first space. A form keeps it as it is."""

    __slots__ = ()


@dataclass(frozen=True)
class SpecialTexts:
    """How a vocabulary spells its special tokens.

    Parameters
    ----------
    bos, eos, unk : str
        The texts of these tokens.
    known : collection of str
        The texts of all special tokens.
    adds_bos : bool or None
        Whether a form begins a dialogue with BOS, as far as the metadata says so.
    """

    bos: str
    eos: str
    unk: str = ""
    known: Collection[str] = ()
    adds_bos: bool | None = None


AnyMessage = Mapping[str, Any]
# (dialogue, whether the assistant's turn begins at its end, special tokens, variables) -> text
Render = Callable[[Sequence[AnyMessage], bool, SpecialTexts, Mapping[str, Any]], str]


@dataclass(frozen=True)
class Template:
    """A chat template.

    Attributes
    ----------
    name : str
        The name of a form or of a known program; or of the model's own template: ``'default'``,
        ``'tool_use'``.
    render : callable
        Renders a dialogue.
    is_form : bool
        Whether it is a form of this module.
    end : str or None
        The text of the token that ends an answer in this form. ``''``: EOS. None: no token does.
    markers : tuple of str
        Texts of this form that no message may contain, because they could fake another turn.
    stop : tuple of str
        Texts that end an answer in this form.
    first_everywhere : bool
        Encode each text between two special tokens as if it began the prompt.
    """

    name: str
    render: Render
    is_form: bool = False
    end: str | None = None
    markers: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    first_everywhere: bool = False


# ---- forms ----

# (dialogue, whether the assistant's turn begins at its end, special tokens) -> parts of the text
_Form = Callable[[Sequence[AnyMessage], bool, SpecialTexts], Iterable[str]]


def _llama2(dialogue: Sequence[AnyMessage], begin: bool, texts: SpecialTexts) -> Iterator[str]:
    for role, content, system in _exchanges(dialogue):
        if role == "user":
            if system:
                content = f"<<SYS>>\n{system}\n<</SYS>>\n\n{content}"
            yield f"{texts.bos}[INST] {content} [/INST]"
        else:
            yield f"{_spaced(content)}{texts.eos}"


def _mistral(dialogue: Sequence[AnyMessage], begin: bool, texts: SpecialTexts) -> Iterator[str]:
    is_token = {"[INST]", "[/INST]"} <= {*texts.known}
    start, end = ("[INST]", "[/INST]") if is_token else ("[INST] ", " [/INST]")
    for role, content, system in _exchanges(dialogue):
        if role == "user":
            yield start + (f"{system}\n\n{content}" if system else content) + end
        else:
            yield (content if is_token else _spaced(content)) + texts.eos


def _llama3(dialogue: Sequence[AnyMessage], begin: bool, texts: SpecialTexts) -> Iterator[str]:
    for role, content in _turns(dialogue):
        if role != "assistant":
            content = content.strip()
        yield f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"
    if begin:
        yield "<|start_header_id|>assistant<|end_header_id|>\n\n"


def _chatml(dialogue: Sequence[AnyMessage], begin: bool, texts: SpecialTexts) -> Iterator[str]:
    for role, content in _turns(dialogue):
        yield f"<|im_start|>{role}\n{content}<|im_end|>\n"
    if begin:
        yield "<|im_start|>assistant\n"


def _zephyr(dialogue: Sequence[AnyMessage], begin: bool, texts: SpecialTexts) -> Iterator[str]:
    for role, content in _turns(dialogue):
        yield f"<|{role}|>\n{content}{texts.eos}\n"
    if begin:
        yield "<|assistant|>\n"


def _plain(dialogue: Sequence[AnyMessage], begin: bool, texts: SpecialTexts) -> Iterator[str]:
    for role, content in _turns(dialogue):
        if role == "assistant":
            yield f"Assistant:{_spaced(content)}\n"
        else:
            yield f"User: {content}\n" if role == "user" else f"{content}\n"
    if begin:
        yield "Assistant:"


def _turns(dialogue: Iterable[AnyMessage]) -> Iterator[tuple[str, str]]:
    """Yield the role and the content of each message, but an empty system prompt is no turn."""
    for message in dialogue:
        if message["role"] != "system" or message["content"]:
            yield message["role"], message["content"]


def _exchanges(dialogue: Iterable[AnyMessage]) -> Iterator[tuple[str, str, str]]:
    """Yield role and content, and for a user's turn the system prompt that comes before it."""
    system = ""
    for role, content in _turns(dialogue):
        if role == "system":
            system = content
        else:
            yield role, content, system
            system = ""


def _spaced(answer: str) -> str:
    """Return an answer with the space that a model of these forms begins it with."""
    return answer if isinstance(answer, Exact) or answer[:1].isspace() else f" {answer}"


def _render_form(
    form: _Form,
    bos: Literal["turn", "dialogue", "metadata"],
    dialogue: Sequence[AnyMessage],
    begin: bool,
    texts: SpecialTexts,
    variables: Mapping[str, Any],
) -> str:
    text = "".join(form(dialogue, begin and not _ends_with_answer(dialogue), texts))
    adds_bos = bos == "dialogue" if texts.adds_bos is None else texts.adds_bos
    if bos == "turn" or not adds_bos or text.startswith(texts.bos):
        return text
    return texts.bos + text


def _ends_with_answer(dialogue: Sequence[AnyMessage]) -> bool:
    return bool(dialogue) and dialogue[-1]["role"] == "assistant"


def _made(
    name: str,
    form: _Form,
    end: str | None,
    markers: tuple[str, ...],
    bos: Literal["turn", "dialogue", "metadata"] = "dialogue",
    stop: tuple[str, ...] = (),
    first_everywhere: bool = False,
) -> Template:
    """Return the template of a form.

    Parameters
    ----------
    bos : {'turn', 'dialogue', 'metadata'}
        Where BOS goes: before each turn, which the form writes; before the dialogue, unless the
        metadata says otherwise; before the dialogue if the metadata says so.
    """
    render = partial(_render_form, form, bos)
    return Template(name, render, True, end, markers, stop, first_everywhere)


_FORMS = (
    _made(
        "llama2",
        _llama2,
        "",
        ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
        "turn",
        first_everywhere=True,
    ),
    _made("mistral", _mistral, "", ("[INST]", "[/INST]"), first_everywhere=True),
    _made(
        "llama3",
        _llama3,
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    ),
    _made("chatml", _chatml, "<|im_end|>", ("<|im_start|>", "<|im_end|>"), "metadata"),
    _made("zephyr", _zephyr, "", ("<|system|>", "<|user|>", "<|assistant|>", "</s>")),
    _made("plain", _plain, None, ("\nUser:", "\nAssistant:"), stop=("\nUser:",)),
)
TEMPLATES = {template.name: template for template in _FORMS}


# ---- known programs ----


def _known_chatml(default: str, dialogue: Sequence[AnyMessage], begin: bool) -> Iterator[str]:
    if default and dialogue and dialogue[0]["role"] != "system":
        yield f"<|im_start|>system\n{default}<|im_end|>\n"
    for message in dialogue:
        yield f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
    if begin:
        yield "<|im_start|>assistant\n"


def _known_llama3(
    always: bool, dialogue: Sequence[AnyMessage], begin: bool, texts: SpecialTexts
) -> Iterator[str]:
    if dialogue:
        yield texts.bos
    for message in dialogue:
        role, content = message["role"], message["content"].strip()
        yield f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"
    if begin or always:
        yield "<|start_header_id|>assistant<|end_header_id|>\n\n"


def _known_mistral(
    dialogue: Sequence[AnyMessage], begin: bool, texts: SpecialTexts
) -> Iterator[str]:
    yield texts.bos
    for i, message in enumerate(dialogue):
        role, content = message["role"], message["content"]
        if (role == "user") != (i % 2 == 0):
            raise refusal("Conversation roles must alternate user/assistant/user/assistant/...")
        if role == "user":
            yield f"[INST] {content} [/INST]"
        elif role == "assistant":
            yield content + texts.eos
        else:
            raise refusal("Only user and assistant roles are supported!")


def _known_zephyr(
    dialogue: Sequence[AnyMessage], begin: bool, texts: SpecialTexts
) -> Iterator[str]:
    for message in dialogue:
        if message["role"] in ("user", "system", "assistant"):
            yield f"<|{message['role']}|>\n{message['content']}{texts.eos}\n"
    if begin and dialogue:
        yield "<|assistant|>\n"


def refusal(reason: str) -> PromptError:
    """Return the error of a template that refuses a dialogue."""
    return PromptError(f"the model's chat template refuses the dialogue: {reason}")


# ChatML, with or without a default system prompt, which is the group: SmolLM2's, Qwen's first.
_CHATML = re.compile(
    r"(?:\{% for message in messages %\}"
    r"\{% if loop\.first and messages\[0\]\['role'\] != 'system' %\}"
    r"\{\{ '<\|im_start\|>system\n([^'\\<>{}]*)<\|im_end\|>\n' \}\}\{% endif %\}"
    r"|\{% for message in messages %\})"
    r"\{\{'<\|im_start\|>' \+ message\['role'\] \+ '\n' \+ message\['content'\]"
    r" \+ '<\|im_end\|>' \+ '\n'\}\}\{% endfor %\}"
    r"\{% if add_generation_prompt %\}\{\{ '<\|im_start\|>assistant\n' \}\}\{% endif %\}"
)
# By the SHA-256 of the normalized program.
KNOWN: dict[str, tuple[str, _Form]] = {
    # Llama 3's, in its later and its first version
    "ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122": (
        "llama3",
        partial(_known_llama3, False),
    ),
    "b48c47f6443892716176eb200bf4ef108f64e06ca26ed0fa8ebc0a4b3992fcb2": (
        "llama3",
        partial(_known_llama3, True),
    ),
    # Mistral 7B's until v0.2
    "26a59556925c987317ce5291811ba3b7f32ec4c647c400c6cc7e3a9993007ba7": ("mistral", _known_mistral),
    # Zephyr's and TinyLlama's
    "66291cf0045c2425a3a667cf3cbb7af2b11f09e025c02f97245323ab79119362": ("zephyr", _known_zephyr),
}


def normalized(jinja: str) -> str:
    r"""Return a program in the one spelling that is compared.

    Line ends and the white space around it are unified, and ``\n`` in a text is a line break.
    """
    text = jinja.replace("\r\n", "\n").strip()
    return re.sub(r"'[^'\\\n]*(?:\\n[^'\\]*)+'", lambda m: m[0].replace("\\n", "\n"), text)


def recognise(jinja: str) -> Template | None:
    """Return the template of a known program, or None. The whole program is compared.

    Its name is that of the form that it is most like.
    """
    text = normalized(jinja)
    if found := _CHATML.fullmatch(text):
        default = found[1] or ""
        return _checked("chatml", lambda d, begin, _: _known_chatml(default, d, begin))
    known = KNOWN.get(hashlib.sha256(text.encode(errors="replace")).hexdigest())
    return None if known is None else _checked(*known)


def _checked(name: str, form: _Form) -> Template:
    """Return the template of a known program; its messages need texts."""

    def render(
        dialogue: Sequence[AnyMessage],
        begin: bool,
        texts: SpecialTexts,
        variables: Mapping[str, Any],
    ) -> str:
        texts_of(dialogue)
        return "".join(form(dialogue, begin, texts))

    return Template(name, render)


def texts_of(dialogue: Sequence[AnyMessage]) -> None:
    """Check that every message has a role and a content that are texts.

    Raises
    ------
    PromptError
        If one has not.
    """
    for number, message in enumerate(dialogue):
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                kind = type(message[key]).__name__ if key in message else "missing"
                raise PromptError(f"the {key} of message {number} is {kind}, expected str")


# ---- the choice of a template ----


def _render_jinja(
    source: str,
    dialogue: Sequence[AnyMessage],
    begin: bool,
    texts: SpecialTexts,
    variables: Mapping[str, Any],
) -> str:
    try:
        from .jinja import render
    except ImportError as error:
        raise ParameterError(
            "the model's chat template is a program of its own, which needs jinja2:"
            f" pip install 'llama2py[chat]' ({error})"
        ) from None
    given = {
        "messages": list(dialogue),
        "tools": None,
        "documents": None,
        "add_generation_prompt": begin,
        "bos_token": texts.bos,
        "eos_token": texts.eos,
        "unk_token": texts.unk,
    }
    return render(source, given | dict(variables))


def from_program(name: str, jinja: str) -> Template:
    """Return the template that a Jinja program defines."""
    return recognise(jinja) or Template(name, partial(_render_jinja, jinja))


def find_template(
    name: str | None,
    conventions: Conventions,
    controls: Collection[str] = (),
    with_tools: bool = False,
    parameter: str = "template",
) -> Template:
    """Choose a template.

    Parameters
    ----------
    name : str, optional
        The name of a form or of one of the model's own templates, or a Jinja program. Default: the
        model's own template; without one, the form that fits the control tokens, or else Llama 2's.
    conventions : Conventions
        What the model's metadata says.
    controls : collection of str
        The texts of the vocabulary's control tokens.
    with_tools : bool
        Whether the dialogue has tools: a model's template named ``tool_use`` is for these.
    parameter : str
        What the caller's parameter for the name is called, for error messages.

    Raises
    ------
    ParameterError
        If the name is unknown, or the model has several templates and no default.
    """
    own = conventions.named_templates
    if conventions.chat_template is not None:
        own = {"default": conventions.chat_template, **own}
    if name is not None:
        instance(parameter, name, str, "the name of a template")
        if name in TEMPLATES:
            return TEMPLATES[name]
        if name in own:
            return from_program(name, own[name])
        if "{{" in name or "{%" in name:
            return from_program("custom", name)
        raise ParameterError(
            f"{parameter} is {name!r}, expected one of {', '.join([*TEMPLATES, *own])},"
            " or a Jinja program"
        )
    if with_tools and "tool_use" in own:
        return from_program("tool_use", own["tool_use"])
    if "default" in own:
        return from_program("default", own["default"])
    if own:
        raise ParameterError(
            f"the model has several chat templates and no default: choose one of {', '.join(own)}"
        )
    return TEMPLATES[form_of(controls)]


def form_of(controls: Collection[str]) -> str:
    """Return the name of the form for a model without metadata, by its control tokens."""
    if {"<|start_header_id|>", "<|eot_id|>"} <= {*controls}:
        return "llama3"  # Meta's own checkpoints
    if {"<|im_start|>", "<|im_end|>"} <= {*controls}:
        return "chatml"
    if {"[INST]", "[/INST]"} <= {*controls}:
        return "mistral"
    return "llama2"


# ---- rendering ----

_TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # transformers'; the template may look for it


def render_dialogue(
    template: Template,
    messages: Iterable[AnyMessage],
    texts: SpecialTexts,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of a dialogue: what transformers' ``apply_chat_template`` returns.

    Parameters
    ----------
    template : Template
        The template.
    messages : iterable of mapping
        ``{"role": .., "content": ..}``, and whatever else the template reads.
    texts : SpecialTexts
        The special tokens of the vocabulary.
    add_generation_prompt : bool
        Whether the text ends where the assistant's answer begins.
    continue_final_message : bool
        Whether the text ends with the last message's content, so that the model continues it.
    variables : mapping, optional
        What else the template sees, such as ``tools``.

    Raises
    ------
    PromptError
        If there are no messages, one is malformed, or the template refuses the dialogue or fails.
    ParameterError
        If the template needs jinja2 and it is missing.
    """
    dialogue = _dialogue(messages)
    given = {name: plain_data(name, value) for name, value in (variables or {}).items()}
    if not continue_final_message:
        if template.is_form:
            texts_of(dialogue)
        return template.render(dialogue, add_generation_prompt, texts, given)
    last = dialogue[-1].get("content")
    if not isinstance(last, str):
        raise PromptError("the last message has no text to continue")
    dialogue[-1] = {**dialogue[-1], "content": type(last)(last + _TAG)}
    if template.is_form:
        texts_of(dialogue)
    text = template.render(dialogue, False, texts, given)
    at = text.rfind(_TAG.strip())
    if at < 0:
        raise PromptError("the model's chat template drops the end of the last message")
    return text[:at] if text.startswith(_TAG, at) else text[:at].rstrip()


def _dialogue(messages: Iterable[AnyMessage]) -> list[dict[str, Any]]:
    """Return plain copies of messages, without what is None, as transformers does."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise PromptError(f"messages is {type(messages).__name__}, expected a list of messages")
    dialogue = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            kind = type(message).__name__
            raise PromptError(f'message {number} is {kind}, expected {{"role": .., "content": ..}}')
        plain = {
            str(key): plain_data(f"{key!s} of message {number}", value)
            for key, value in message.items()
            if value is not None
        }
        reasoning = [plain[key] for key in _REASONING if key in plain][:1]
        if reasoning:
            plain = {"thinking": reasoning[0], **plain, "reasoning_content": reasoning[0]}
        dialogue.append(plain)
    if not dialogue:
        raise PromptError("the dialogue has no messages, expected at least one")
    return dialogue


_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing


def plain_data(name: str, value: Any) -> Any:
    """Return a copy of a value that is made of dicts, lists, texts and numbers only.

    Raises
    ------
    PromptError
        If anything else is in it.
    """
    if value is None or type(value) in (str, int, float, bool, Exact):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_data(name, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(name, item) for item in value]
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    raise PromptError(
        f"the {name} holds {type(value).__name__}, expected texts, numbers, lists and dicts"
    )

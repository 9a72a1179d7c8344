"""The choice of a template, known programs, and dialogues as text."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest

from llama2py import Chat, Model, ParameterError, PromptError
from llama2py._data import bundled_tokenizer
from llama2py.chat import templates
from llama2py.chat.templates import (
    KNOWN,
    SpecialTexts,
    find_template,
    from_program,
    normalized,
    recognise,
    render_dialogue,
)
from llama2py.checkpoint import Conventions
from llama2py.tokenizers.load import load_tokenizer
from tests.chat.dialogues import DIALOGUES
from tests.support.scripted import ScriptedBackend
from tests.support.scripted_dialogues import vocabulary

FOLDER = Path(__file__).parent / "templates"
TEXTS = SpecialTexts("<s>", "</s>")
ASK: list[Any] = [{"role": "user", "content": "Hi"}]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def program(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text("utf-8")


@pytest.fixture
def no_jinja2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "llama2py.chat.jinja", raising=False)


# ---- known programs ----

# Our renderers of known programs, and programs of their families. The digests are of the models'
# own spellings.
FAMILIES = {
    "smollm2": ("", "smollm2"),
    "llama3": ("ba03a121d097859c", "llama3"),
    "mistral": ("26a59556925c9873", "mistral_v0_1"),
    "zephyr": ("66291cf0045c2425", "zephyr"),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_a_known_program_is_rendered_as_transformers_renders_its_family(
    name: str, dialogue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    digest, file = FAMILIES[name]
    jinja = program(file)
    if digest:
        form = next(known for key, known in KNOWN.items() if key.startswith(digest))
        own = hashlib.sha256(normalized(jinja).encode()).hexdigest()
        monkeypatch.setitem(templates.KNOWN, own, form)
    found = recognise(jinja)
    assert found is not None
    render = found.render
    messages, begins, variables = DIALOGUES[dialogue]
    if "tools" in variables:
        return  # these programs know none
    if name == "mistral":  # the family's program writes a space after EOS
        jinja = jinja.replace("eos_token + ' '", "eos_token")
    try:
        (expected,), _ = transformers.render_jinja_template(
            conversations=[messages],
            chat_template=jinja,
            add_generation_prompt=begins,
            bos_token="<s>",
            eos_token="</s>",
        )
    except Exception:
        assert name == "mistral"
        with pytest.raises(PromptError, match="refuses the dialogue"):
            render(messages, begins, TEXTS, {})
        return
    assert render(messages, begins, TEXTS, {}) == expected


def test_a_known_program_needs_no_jinja2(no_jinja2: None) -> None:
    for jinja in (CHATML, CHATML.replace("\n", "\\n"), program("smollm2"), f" {CHATML}\r\n"):
        text = render_dialogue(from_program("default", jinja), ASK, TEXTS)
        assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_a_program_is_compared_as_a_whole() -> None:
    """One other character anywhere, and it is another program."""
    assert recognise(CHATML)
    for i in range(0, len(CHATML), 3):
        assert recognise(CHATML[:i] + "~" + CHATML[i:]) is None
        assert recognise(CHATML[:i] + CHATML[i + 1 :]) is None or CHATML[i].isspace()
    assert recognise(CHATML + "{{ '<think>' }}") is None


@pytest.mark.parametrize(
    "name",
    ["phi4", "hermes_roles", "qwq", "smollm3", "functionary", "llama3_1", "mistral_v3", "zephyr"],
)
def test_an_unknown_program_without_jinja2_is_an_error_that_names_the_extra(
    name: str, no_jinja2: None
) -> None:
    """Each has the markers of a known format."""
    tokenizer = vocabulary("chatml")
    model = Model(ScriptedBackend([], len(tokenizer)), tokenizer, Conventions(program(name)))
    with pytest.raises(ParameterError, match=r"needs jinja2: pip install 'llama2py\[chat\]'"):
        Chat(model)
    with pytest.raises(ParameterError, match=r"llama2py\[chat\]"):
        model.apply_chat_template(ASK)
    assert Chat(model, template="plain").template == "plain"


# ---- the choice of a template ----


def test_a_template_of_the_model_is_never_replaced_by_a_form() -> None:
    pytest.importorskip("jinja2")
    tokenizer = vocabulary("chatml")
    jinja = CHATML.replace("'\n' + message['content']", "': ' + message['content']")
    model = Model(ScriptedBackend([], len(tokenizer)), tokenizer, Conventions(jinja))
    assert Chat(model).template == "default"
    assert (
        model.apply_chat_template(ASK) == "<|im_start|>user: Hi<|im_end|>\n<|im_start|>assistant\n"
    )
    chosen = model.apply_chat_template(ASK, chat_template="chatml")
    assert chosen == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_model_may_have_several_templates() -> None:
    pytest.importorskip("jinja2")
    tokenizer = vocabulary("chatml")
    named = {"tool_use": "{{ tools[0] }}!", "rag": "rag {{ documents }}"}
    model = Model(
        ScriptedBackend([], 259), tokenizer, Conventions("{{ 'd' }}", named_templates=named)
    )
    assert model.apply_chat_template(ASK) == "d"
    assert model.apply_chat_template(ASK, tools=["x"]) == "x!"
    assert model.apply_chat_template(ASK, chat_template="rag", documents=[]) == "rag []"
    assert model.apply_chat_template(ASK, chat_template="<{{ messages[0].content }}>") == "<Hi>"
    assert Chat(model, template="rag").template == "rag"
    without = Conventions(named_templates=named)
    with pytest.raises(ParameterError, match="no default: choose one of tool_use, rag"):
        find_template(None, without)
    with pytest.raises(ParameterError, match=r"'alpaca', expected .*plain, tool_use"):
        find_template("alpaca", without)


def test_the_default_without_metadata_is_the_form_of_llama2c() -> None:
    tokenizer = load_tokenizer(bundled_tokenizer())
    model = Model(ScriptedBackend([], len(tokenizer)), tokenizer)
    assert Chat(model).template == "llama2"
    with pytest.raises(ParameterError, match=r"ends an answer with <\|eot_id\|>, which"):
        Chat(model, template="llama3")


@pytest.mark.parametrize(
    ("name", "form"),
    [("llama3", "llama3"), ("chatml", "chatml"), ("zephyr", "llama2"), ("nemo", "mistral")],
)
def test_the_vocabulary_decides_if_there_is_no_metadata(name: str, form: str) -> None:
    controls = vocabulary(name).specials.control
    assert find_template(None, Conventions(), controls).name == form
    assert find_template("plain", Conventions(), controls).name == "plain"
    assert find_template(None, Conventions(CHATML), controls).name == "chatml"
    assert not find_template(None, Conventions(CHATML), controls).is_form


# ---- dialogues as text ----


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral_v3", "vicuna", "gemma3", "qwen3"])
@pytest.mark.parametrize("last", ["The sky is", "So ", " a\n", "<think>\nHm"])
def test_a_last_message_is_continued_as_transformers_continues_it(name: str, last: str) -> None:
    pytest.importorskip("jinja2")
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = [*ASK, {"role": "assistant", "content": last}]
    (expected,), _ = transformers.render_jinja_template(
        conversations=[messages],
        chat_template=program(name),
        continue_final_message=True,
        bos_token="<s>",
        eos_token="</s>",
    )
    template = from_program("default", program(name))
    assert render_dialogue(template, messages, TEXTS, continue_final_message=True) == expected


def test_a_form_continues_a_last_message() -> None:
    messages = [*ASK, {"role": "assistant", "content": "So"}]
    for name, text in (
        ("llama2", "<s>[INST] Hi [/INST] So"),
        ("chatml", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nSo"),
        ("plain", "<s>User: Hi\nAssistant: So"),
    ):
        template = find_template(name, Conventions())
        assert render_dialogue(template, messages, TEXTS, False, True) == text


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "the dialogue has no messages"),
        ("Hi", "messages is str, expected a list of messages"),
        ([["user", "Hi"]], "message 0 is list, expected"),
        ([{"role": "user", "content": object()}], "content of message 0 holds object, expected"),
        ([{"role": "user", "content": [{1, 2}]}], "content of message 0 holds set, expected"),
        ([{"role": "user"}], "the content of message 0 is missing"),
    ],
)
def test_malformed_messages_are_errors(messages: Any, error: str) -> None:
    model = Model(ScriptedBackend([], 259), vocabulary("chatml"), Conventions(CHATML))
    with pytest.raises(PromptError, match=error):
        model.apply_chat_template(messages)


def test_the_caller_s_messages_do_not_change() -> None:
    messages = [*ASK, {"role": "assistant", "content": "So", "reasoning": None}]
    model = Model(ScriptedBackend([], 259), vocabulary("chatml"), Conventions(CHATML))
    model.apply_chat_template(messages, add_generation_prompt=False, continue_final_message=True)
    assert messages == [*ASK, {"role": "assistant", "content": "So", "reasoning": None}]

"""Templates in the sandbox: equal to transformers' renderings, and harmless."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from llama2py import PromptError
from llama2py.chat.templates import SpecialTexts, from_program, render_dialogue
from tests.chat.dialogues import DIALOGUES

pytest.importorskip("jinja2")
from llama2py.chat.jinja import render

FOLDER = Path(__file__).parent / "templates"
FILES = sorted(FOLDER.glob("*.jinja"))
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


def test_there_are_forty_templates_and_twelve_dialogues() -> None:
    assert len(FILES) >= 40
    assert len(DIALOGUES) == 12


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_prompts_equal_those_of_transformers(path: Path) -> None:
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    jinja = path.read_text("utf-8")
    refused = 0
    for messages, begins, variables in DIALOGUES.values():
        given: dict[str, Any] = {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            **variables,
        }
        texts = SpecialTexts("<s>", "</s>", "<unk>")
        template = from_program("default", jinja)
        try:
            (expected,), _ = transformers.render_jinja_template(
                conversations=[messages],
                chat_template=jinja,
                add_generation_prompt=begins,
                **given,
            )
        except Exception as error:
            refused += 1
            with pytest.raises(PromptError, match=re.escape(str(error))):
                render_dialogue(template, messages, texts, begins, variables=variables)
        else:
            text = render_dialogue(template, messages, texts, begins, variables=variables)
            assert text == expected
    assert refused <= 6


def text_of(jinja: str, **variables: Any) -> str:
    return render(jinja, {"messages": MESSAGES, "add_generation_prompt": True, **variables})


@pytest.mark.parametrize(
    ("jinja", "text"),
    [
        ("{{ {'a': '<é>&'} | tojson }}", '{"a": "<é>&"}'),
        ("{{ [1, {'b': none}] | tojson(indent=1) }}", '[\n 1,\n {\n  "b": null\n }\n]'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("{% generation %}{{ 1 }}{% endgeneration %}", "1"),
        ("{% for m in messages %}{% if loop.last %}{% break %}{% endif %}x{% endfor %}", "x"),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}", "x"),
        ("{% for m in messages %}{{ loop.index }}/{{ loop.length }} {% endfor %}", "1/2 2/2 "),
        ("{% for m in messages %}{{ loop.previtem is defined }}{% endfor %}", "FalseTrue"),
        ("{{ messages[-1].content ~ 1 ~ none ~ nothing }}", "Yo1None"),
        ("{{ namespace(self=1).self }}{{ dict(a=1) }}{{ range(3) | list }}", "1{'a': 1}[0, 1, 2]"),
        ("{{ ['a', 'b'] | join(', ') }}{{ messages | join('+', 'role') }}", "a, buser+assistant"),
        ("{{ '-'.join(['a', 'b']) }}{{ '%s-%d' | format('a', 2) }}{{ '{}'.format(3) }}", "a-ba-23"),
        ("{{ 'a\nb' | indent(2) }}{{ 'aXb' | replace('X', '-') }}{{ 2 ** 10 }}", "a\n  ba-b1024"),
        ("{%- macro f(x) -%}{{ x }}!{%- endmacro -%}{{ f(1) }}{{ f('a') * 2 }}", "1!a!a!"),
        ("  {% if true %}\n  x\n  {% endif %}\ny", "  x\ny"),
    ],
)
def test_the_helpers_are_those_of_transformers(jinja: str, text: str) -> None:
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    assert text_of(jinja) == text
    given = {"conversations": [MESSAGES], "chat_template": jinja, "add_generation_prompt": True}
    assert transformers.render_jinja_template(**given)[0] == [text]


def test_today_is_the_machine_s_date() -> None:
    before, text = datetime.now(), text_of("{{ strftime_now('%d %b %Y') }}")
    assert text in {moment.strftime("%d %b %Y") for moment in (before, datetime.now())}


# ---- hostile programs ----

REACHES_OUT = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''|attr('__class__') or 1 / 0 }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ raise_exception.__globals__.x }}",
    "{{ strftime_now.__code__.co_code }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace(**{'__class__': 1}) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ messages[0].clear() }}",
    "{{ (1).to_bytes(8, 'big') }}",
    "{{ 'a'.encode() }}",
    "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
    "{% include 'x' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{{ lipsum(2) }}",
    "{{ [1]|random }}",
    "{{ 1|urlize }}",
    "{% do messages.append(1) %}",
]
TOO_MUCH = {
    "a long range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "loops that skip": (
        "{% for i in range(9999) %}{% for j in range(9999) if false %}{% endfor %}{% endfor %}"
    ),
    "a long text": "{{ 'a' * 1000000000 }}",
    "a long list": "{{ [1] * 1000000000 }}",
    "a doubled text": (
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
        "{% endfor %}"
    ),
    "a doubled sum": (
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}"
        "{% endfor %}"
    ),
    "a doubled block": (
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}"
        "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}"
    ),
    "a doubled list": (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
        "{% endfor %}{{ ns.x }}"
    ),
    "a doubled tuple": (
        "{% set ns = namespace(x=(1,)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}"
        "{% endfor %}{{ ns.x in {1: 2} }}"
    ),
    "a doubled dict": (
        "{% set ns = namespace(x=1) %}{% for i in range(60) %}"
        "{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x|tojson }}"
    ),
    "a deep list": (
        "{% set ns = namespace(x=1) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}"
    ),
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching recursion": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "a recursive loop": (
        "{% for x in [1, 1] recursive %}{% if loop.depth < 60 %}{{ loop([1, 1]) }}{% endif %}"
        "{% endfor %}"
    ),
    "much literal text": (
        "{% set y %}{% for i in range(99999) %}" + "x" * 20000 + "{% endfor %}{% endset %}"
    ),
    "padding": "{{ 'a'.center(1000000000) }}",
    "zeros": "{{ 'a'.zfill(1000000000) }}",
    "a wide format": "{{ '{:1000000000d}'.format(1) }}",
    "a wide format from an argument": "{{ '{:{w}d}'.format(1, w=1000000000) }}",
    "a wide %": "{{ '%1000000000d' % 1 }}",
    "a wide % from an argument": "{{ '%*d' % (1000000000, 1) }}",
    "a wide filter": "{{ '%1000000000d'|format(1) }}",
    "many fields": "{{ ('%s' * 10000) % ('a' * 10000,) }}",
    "a power": "{{ 10**10**10 }}",
    "a big number": (
        "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}"
        "{% endfor %}"
    ),
    "replace": "{{ ('a'*100000).replace('a', 'b'*100000) }}",
    "the filter replace": "{{ ('a'*100000)|replace('a', 'b'*100000) }}",
    "join": "{{ ('a'*100000).join(range(99999)|map('string')) }}",
    "the filter join": "{{ (('a'*100000,)*10000)|join }}",
    "indent": "{{ ('\n'*100000)|indent(100000) }}",
    "JSON": "{{ [1, [2]]|tojson(indent=100000000) }}",
    "a date": "{{ strftime_now('%Y' * 10000) }}",
    "parentheses": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "many blocks": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "a long program": "x" * 70_000,
    "a long chain": "{% if a %}" + "{% elif a %}" * 4000 + "{% endif %}",
    "a constant": "{{ ('a' * 1000000000)|length }}",
}


@pytest.mark.parametrize("jinja", REACHES_OUT)
def test_a_program_reaches_nothing_outside(jinja: str) -> None:
    with pytest.raises(PromptError, match="chat template"):
        text_of(jinja)
    assert MESSAGES == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_program_that_wants_too_much_is_an_error(name: str) -> None:
    with pytest.raises(PromptError, match="chat template"):
        text_of(TOO_MUCH[name])


@pytest.mark.slow
def test_hostile_programs_take_little_time_and_memory() -> None:
    """Each in a process of its own, with 600 MB of addresses: that is what it may be."""
    code = (
        "import sys, resource\n"
        "from llama2py import PromptError\n"
        "from llama2py.chat.jinja import render\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: render(sys.stdin.read(), {'messages': []})\n"
        "except PromptError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    loops = (
        "{% set l = range(99999)|list %}{% set k = range(99999)|list %}"
        "{% for i in range(99999) %}{% if l == k %}{% endif %}{% endfor %}"
    )
    for jinja in [*TOO_MUCH.values(), loops, "{% set s = 'a'*1000000 %}" + loops]:
        start = perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=jinja,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env=os.environ,
        )
        assert perf_counter() - start < 30, jinja[:80]
        assert int(done.stdout) < 300_000, jinja[:80]  # kilobytes


def test_a_long_dialogue_is_no_hostile_one() -> None:
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": f"Message {i}. " * 20}
        for i in range(4001)
    ]
    for name in ("qwen3", "llama3_1", "mistral_v3", "gemma3"):
        jinja = (FOLDER / f"{name}.jinja").read_text("utf-8")
        text = render_dialogue(from_program("d", jinja), messages, SpecialTexts("<s>", "</s>"))
        assert text.count("Message 4000.") == 20


@pytest.mark.parametrize(
    ("jinja", "error"),
    [
        ("{% if %}", "cannot be compiled"),
        ("{{ x", "cannot be compiled"),
        ("{{ messages.nothing.more }}", "fails: 'list object' has no attribute 'nothing'"),
        ("{{ 1 / 0 }}", "fails: division by zero"),
        ("{{ raise_exception('No system role') }}", "refuses the dialogue: No system role"),
    ],
)
def test_an_error_says_what_the_program_did(jinja: str, error: str) -> None:
    with pytest.raises(PromptError, match=error):
        text_of(jinja)

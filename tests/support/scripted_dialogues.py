"""Dialogues with a model whose answers are scripted, in bytes and special tokens.

A dialogue is written with its special tokens in ⟨⟩; everything else is its UTF-8 bytes.
"""

from __future__ import annotations

import re

from llama2py import Chat, Model
from llama2py.checkpoint import Conventions
from llama2py.tokenizers.merge_tokenizer import ByteLevel, MergeTokenizer
from llama2py.tokenizers.pretokenize import GPT2
from llama2py.tokenizers.tokenizer import Specials, Tokenizer
from tests.support.scripted import ScriptedBackend

LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
VOCABULARIES = {
    "llama2": ("<s>", "</s>"),
    "llama3": (*LLAMA3, "<|eot_id|>"),
    "chatml": ("<|endoftext|>", "<|im_end|>", "<|im_start|>"),
    "mistral": ("<s>", "</s>"),
    "zephyr": ("<s>", "</s>"),
    "plain": ("<s>", "</s>"),
    "nemo": ("<s>", "</s>", "[INST]", "[/INST]"),
}
ENDS = {"llama3": "<|eot_id|>", "chatml": "<|im_end|>"}


TURNS = [("Hi", "Hello."), ("How are you?", "Fine"), ("Bye", "")]


def vocabulary(name: str, control: bool = True) -> MergeTokenizer:
    """Make a byte-level vocabulary with a template's special tokens."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(0x100, 0x200))
    letters = [chr(byte if byte in shown else next(hidden)) for byte in range(256)]
    special = {text: 256 + i for i, text in enumerate(VOCABULARIES[name])}
    specials = Specials(control=special) if control else Specials(added=special)
    return MergeTokenizer(
        [*letters, *special], [], ByteLevel((GPT2,)), bos_id=256, eos_id=257, specials=specials
    )


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode a dialogue that is written with ⟨⟩."""
    special = {**tokenizer.specials.control, **tokenizer.specials.added}
    tokens: list[int] = []
    for i, part in enumerate(re.split("⟨(.*?)⟩", text)):
        tokens += [special[part]] if i % 2 else part.encode()
    return tokens


def talk(
    tokenizer: Tokenizer,
    name: str,
    turns: list[tuple[str, str]],
    system: str | None = None,
    conventions: Conventions | None = None,
) -> list[int]:
    """Hold a dialogue and return the tokens that were run, in the order of their positions."""
    end = ids(tokenizer, f"⟨{ENDS.get(name, VOCABULARIES[name][1])}⟩")
    script: list[int] = []
    for _, answer in turns:
        script += [*answer.encode(), *end] if name != "plain" else f"{answer}\nUser:".encode()
    backend = ScriptedBackend(script, len(tokenizer), seq_len=1000)
    chat = Chat(Model(backend, tokenizer, conventions), system, template=name, seed=1)
    for user, answer in turns:
        result = chat.say(user).finish()
        assert (result.text, result.finish_reason) == (answer, "stop")
    expected = [] if system is None else [{"role": "system", "content": system}]
    for user, answer in turns:
        expected += [
            {"role": "user", "content": user},
            {"role": "assistant", "content": answer.strip()},
        ]
    assert chat.messages == expected
    if name != "plain":  # no position is run twice
        assert [position for position, _ in backend.runs] == list(range(len(backend.runs)))
    # The last token of each position: tokens run beyond a stop string are replaced.
    run = dict(backend.runs)
    return [run[position] for position in sorted(run)]

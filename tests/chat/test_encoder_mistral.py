"""Mistral's chat templates, compared with mistral-common's tokens, which are written by hand."""

from __future__ import annotations

from string import ascii_letters

import pytest

from llama2py import Chat, Model
from llama2py.tokenizers.bpe import FIRST_PIECE
from llama2py.tokenizers.merge_tokenizer import Characters, MergeTokenizer
from llama2py.tokenizers.tokenizer import Specials, Tokenizer
from tests.support.scripted import ScriptedBackend
from tests.support.scripted_dialogues import TURNS, ids, talk, vocabulary


@pytest.mark.parametrize("control", [True, False])
def test_mistral_markers_are_tokens_if_the_vocabulary_has_them(control: bool) -> None:
    """A byte-level vocabulary (Nemo's) then adds no spaces."""
    tokenizer = vocabulary("nemo", control)
    run = talk(tokenizer, "mistral", TURNS, "Be kind.")
    assert run == ids(
        tokenizer,
        "⟨<s>⟩⟨[INST]⟩Be kind.\n\nHi⟨[/INST]⟩Hello.⟨</s>⟩"
        "⟨[INST]⟩How are you?⟨[/INST]⟩Fine⟨</s>⟩⟨[INST]⟩Bye⟨[/INST]⟩",
    )


@pytest.mark.parametrize("prefix", ["scores", "each", "first"])
@pytest.mark.parametrize("markers", [(), ("[INST]", "[/INST]")])
def test_mistral_texts_begin_with_one_space(markers: tuple[str, ...], prefix: str) -> None:
    """As in mistral-common, whatever the vocabulary does with a first space.

    v1: ``<s>▁[INST]▁Hi▁[/INST]▁Yo</s>▁[INST]▁Bye▁[/INST]``.
    v3: ``<s>[INST]▁Hi[/INST]▁Yo</s>[INST]▁Bye[/INST]``, if the brackets are tokens.
    """
    letters = " \n./[]" + ascii_letters
    first = FIRST_PIECE + len(letters)
    special = {marker: first + i for i, marker in enumerate(markers)}
    tokenizer: Tokenizer
    if prefix == "scores":
        pieces = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256))]
        pieces += [*letters, *markers]
        tokenizer = Tokenizer(
            [piece.encode() for piece in pieces], [0.0] * len(pieces), Specials(control=special)
        )
    else:
        pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        pieces += [*letters.replace(" ", "\u2581"), *markers]
        control = {"<s>": 1, "</s>": 2, **special}
        kind = Characters(prefix, prefix_once=prefix == "first")
        tokenizer = MergeTokenizer(pieces, [], kind, 1, 2, Specials(control=control))

    def spelled(text: str) -> list[int]:
        return [FIRST_PIECE + letters.index(letter) for letter in text]

    backend = ScriptedBackend([*spelled(" Yo"), 2, *spelled(" Yo"), 2], len(tokenizer))
    chat = Chat(Model(backend, tokenizer), "Be kind.", template="mistral")
    for user in ("Hi", "Bye"):
        assert chat.say(user).finish().text.strip() == "Yo"
    if markers:
        begin, end = special.values()
        first_turn = [begin, *spelled(" Be kind.\n\nHi"), end]
        turn = [begin, *spelled(" Bye"), end]
    else:
        first_turn = spelled(" [INST] Be kind.\n\nHi [/INST]")
        turn = spelled(" [INST] Bye [/INST]")
    expected = [1, *first_turn, *spelled(" Yo"), 2, *turn, *spelled(" Yo")]
    assert backend.runs == list(enumerate(expected))

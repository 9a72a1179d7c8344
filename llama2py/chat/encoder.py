"""DialogueEncoder: the tokens of a dialogue, with one template and one model's vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoint import Conventions
from ..errors import ParameterError, PromptError
from ..tokenizers.tokenizer import Specials, Tokenizer
from .templates import AnyMessage, SpecialTexts, Template, render_dialogue

# Unicode's noncharacters, which no text has a use for.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_FIRST, _ANSWER, _SECOND = "QUESTIONONE", "ANSWERONE", "QUESTIONTWO"


def special_texts(tokenizer: Tokenizer, conventions: Conventions) -> SpecialTexts:
    """Return how a vocabulary spells its special tokens."""
    bos, eos, unk = (
        tokenizer.piece(token).decode(errors="replace").strip("\n")
        for token in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id)
    )
    specials = tokenizer.specials
    adds_bos = conventions.add_bos
    if "bos_token" in (conventions.chat_template or ""):
        adds_bos = True
    return SpecialTexts(bos, eos, unk, {*specials.control, *specials.added}, adds_bos)


class DialogueEncoder:
    """Turns dialogues into tokens.

    Special tokens appear only where the template writes them. A message that spells one out is
    encoded as ordinary characters.

    Parameters
    ----------
    template : Template
        The template.
    tokenizer : Tokenizer
        The model's tokenizer.
    conventions : Conventions
        The model's conventions: which tokens end an answer.
    variables : mapping, optional
        What else the template sees.

    Attributes
    ----------
    stop_tokens : frozenset of int
        The tokens that end an answer.
    stop : tuple of str
        The texts that end an answer, where no token does.
    is_one_text : bool
        Whether the dialogue is one text without special tokens between its turns.

    Raises
    ------
    ParameterError
        If the vocabulary lacks the token that ends an answer in a form, or the template needs
        jinja2 and it is missing.
    """

    def __init__(
        self,
        template: Template,
        tokenizer: Tokenizer,
        conventions: Conventions,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.template = template
        self.texts = special_texts(tokenizer, conventions)
        self._tokenizer = tokenizer
        self._variables = variables
        specials = tokenizer.specials
        control = dict(specials.control)
        for text, token in (
            (self.texts.bos, tokenizer.bos_id),
            (self.texts.eos, tokenizer.eos_id),
        ):
            if text:
                control.setdefault(text, token)
        self._ids = {**specials.added, **control}
        self._all = Specials(control=self._ids)
        # The tokenizer itself finds the added tokens, which are tokens in every text.
        self._specials = Specials(control=control, matching=specials.matching)
        longest_first = sorted((text for text in control if len(text) > 1), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.stop_tokens = frozenset([tokenizer.eos_id]) | conventions.end_tokens
        self.stop = template.stop
        self.is_one_text = template.is_form and template.end is None
        self._markers = [text for text in template.markers if text not in control]
        self._markers += [text for text in control if len(text) == 1]  # nothing can split these
        if template.is_form:
            self._end_form(template)
        structure = self._learn()
        # The tokenizer finds added tokens in every text, so these would end a message.
        ending = self.stop_tokens | {tokenizer.bos_id}
        self._markers += sorted(
            text
            for text, token in specials.added.items()
            if token in ending or any(text in part for part in structure)
        )

    def _end_form(self, template: Template) -> None:
        if template.end is None:  # BOS separates llama2.c's stories
            self.stop_tokens |= {self._tokenizer.bos_id}
            return
        end = self._ids.get(template.end) if template.end else self._tokenizer.eos_id
        if end is None:
            raise ParameterError(
                f"the chat template {template.name} ends an answer with {template.end}, which"
                " the model's vocabulary lacks: choose another template"
            )
        self.stop_tokens |= {end}

    def _learn(self) -> list[str]:
        """Learn from a small dialogue what ends an answer, and what could fake a turn.

        Returns
        -------
        list of str
            What the template writes after a question and after an answer; empty if it refuses.
        """
        dialogue = [
            {"role": "user", "content": _FIRST},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _SECOND},
        ]
        try:
            text = render_dialogue(self.template, dialogue, self.texts, variables=self._variables)
        except PromptError:
            return []
        found = re.search(f"{_FIRST}(.*){_ANSWER}(.*){_SECOND}", text, re.DOTALL)
        if found is None or self.template.is_form:
            return list(found.groups()) if found else []
        question_end, answer_end = found.groups()
        first = next(iter(self._split(answer_end.lstrip())), "")
        if isinstance(first, int):
            self.stop_tokens |= {first}
        for part in (question_end, answer_end):
            is_text = all(isinstance(piece, str) for piece in self._split(part))
            marker = ("\n" if part.startswith("\n") else "") + part.strip()
            if is_text and marker.strip():
                self._markers.append(marker)
                self.stop += (marker,) if part == answer_end else ()
        return [question_end, answer_end]

    def _split(self, text: str) -> list[str | int]:
        """Split a text at its special tokens, added ones included."""
        return list(self._all.split(text, trusted=True))

    def check(self, text: str, what: str = "message") -> None:
        """Refuse a message that contains a text by which the template marks a turn, as Meta's code.

        A marker that is a control token needs no check: in a message it is ordinary characters.

        Raises
        ------
        PromptError
            If it contains a marker, or is not a str.
        """
        if not isinstance(text, str):
            raise PromptError(f"the {what} is {type(text).__name__}, expected str")
        for marker in self._markers:
            if marker in "\n" + text:
                raise PromptError(
                    f"the {what} contains {marker.strip()!r}, a marker of the chat template"
                    f" {self.template.name}: remove it"
                )

    def render(self, dialogue: Sequence[AnyMessage], continued: bool = False) -> tuple[str, str]:
        """Return the text of a dialogue, in which no message has the text of a control token.

        Parameters
        ----------
        dialogue : sequence of mapping
            The messages.
        continued : bool
            Whether the text ends with the last message, for the model to continue.

        Returns
        -------
        text : str
            The text, with a mark inside each control token that a message spells out.
        mark : str
            The mark, a character that no message contains.

        Raises
        ------
        PromptError
            If the template refuses the dialogue, or fails.
        """
        contents = [message["content"] for message in dialogue]
        unused = (mark for mark in _MARKS if not any(mark in content for content in contents))
        mark = next(unused, "")
        if not mark:
            raise PromptError("the messages contain every noncharacter of Unicode")
        text = render_dialogue(
            self.template,
            [{**m, "content": self.marked(m["content"], mark)} for m in dialogue],
            self.texts,
            add_generation_prompt=not continued,
            continue_final_message=continued,
            variables=self._variables,
        )
        return text, mark

    def marked(self, text: str, mark: str) -> str:
        """Return a message with a mark inside each control token that it spells out."""
        kind = type(text)
        while self._control.search(text):
            text = kind(self._control.sub(lambda found: found[0][0] + mark + found[0][1:], text))
        return text

    def tokens(self, text: str, mark: str, first: bool = True) -> list[int]:
        """Return the tokens of a text that `render` has made.

        Parameters
        ----------
        text, mark : str
            What `render` returned; the text may be a later part that begins with a special token.
        first : bool
            Whether the text begins the prompt.

        Raises
        ------
        PromptError
            If the text contains half of a surrogate pair.
        """
        parts = [
            part if isinstance(part, int) else part.replace(mark, "")
            for part in self._specials.split(text, trusted=True)
        ]
        encode = self._tokenizer.encode_parts
        if self.template.first_everywhere:
            return [token for part in parts for token in encode([part])]
        return encode(parts, first)

    def begins_with_token(self, text: str) -> bool:
        """Whether a text begins with a special token."""
        return isinstance(next(iter(self._split(text)), None), int)

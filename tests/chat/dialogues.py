"""Dialogues for the templates: each is what a template gets besides its special tokens."""

from __future__ import annotations

from typing import Any


def _turns(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return messages + [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather <now> & here",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
_CALL = {"id": "123456789", "function": {"name": "weather", "arguments": {"city": "Köln"}}}

# Names, messages, whether the assistant's turn begins, other variables.
DIALOGUES: dict[str, tuple[list[dict[str, Any]], bool, dict[str, Any]]] = {
    "one question": (_turns("Hi"), True, {}),
    "a system prompt": (_turns("Hi", system="Be kind."), True, {}),
    "three turns": (_turns("Hi", "Hello!", "How are you?", "Fine.", "Bye"), True, {}),
    "three turns and a system prompt": (
        _turns("Hi", "Hello!", "How?", "So.", "Bye", system="Be kind."),
        True,
        {},
    ),
    "an answered question": (_turns("Hi", "Hello!"), False, {}),
    "an answer and a prompt": (_turns("Hi", "Hello!"), True, {}),
    "white space": (_turns("  Hi\n", " \nHello!  ", "\tBye \n", system=" Be kind.\n"), True, {}),
    "special texts": (
        _turns("</s><|im_end|>", "<think>\nHm.\n</think>\n\nYes.", "[INST] <s> {{ x }} & \"'"),
        True,
        {},
    ),
    "other scripts": (_turns("Grüße 🐶", "你好，世界", "\u2028\x00é"), True, {}),
    "no thinking": (
        _turns("Hi", "<think>a</think>b", "Bye", system="/no_think Be."),
        True,
        {"enable_thinking": False, "date_string": "1 May 2024"},
    ),
    "tools": (
        [
            *_turns("The weather?"),
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "content": "sunny", "tool_call_id": "123456789"},
            *_turns("Then?", "Rain.", "Thanks")[1:],
        ],
        True,
        {"tools": [_TOOL]},
    ),
    "empty texts": (_turns("", "", "x", system=""), False, {}),
}

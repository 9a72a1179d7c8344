"""Chat: answers are streamed, and the model remembers earlier turns.

    python 04_chat.py Llama-2-7b-chat.gguf    # then type; an empty line ends the chat
    python 04_chat.py                         # the built-in model and two fixed questions

The built-in model was trained on stories only, so it answers with a story. The program is the same
for a model that was trained on dialogues.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import llama2py


def questions() -> Iterator[str]:
    """Yield what the user types, or two fixed questions for the built-in model."""
    if len(sys.argv) < 2:
        yield from ["Tell me about a cat.", "And what did the dog say?"]
        return
    while line := input("You: "):
        yield line


with (
    llama2py.load(sys.argv[1] if len(sys.argv) > 1 else None) as model,
    llama2py.Chat(model, system="You are a kind storyteller.", temperature=0.7, seed=4) as chat,
):
    for question in questions():
        print(f"User: {question}\nAssistant:", end="")
        answer = chat.say(question)
        for piece in answer:
            print(piece, end="", flush=True)
            if len(answer.tokens) == 120:  # you may stop early: the chat continues from here
                break
        print(f"\n({answer.finish_reason or 'stopped early'}, room for {chat.room} more tokens)")

"""A chat: the answer streams, and the model remembers the turns before.

    python 04_chat.py Llama-2-7b-chat.gguf    # then type; an empty line ends it
    python 04_chat.py                         # the built-in model: two lines, no typing

The built-in model has only ever read stories, so it answers with one; what a chat looks like in a
program is the same for a model that was trained on dialogues.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import llama2py


def questions() -> Iterator[str]:
    """What the user says: typed, or two lines for the built-in model."""
    if len(sys.argv) < 2:
        yield from ["Tell me about a cat.", "And what did the dog say?"]
        return
    while line := input("You: "):
        yield line


with (
    llama2py.load(sys.argv[1] if len(sys.argv) > 1 else None) as model,
    llama2py.Chat(model, system="You are a kind teller of tales.", temperature=0.7, seed=4) as chat,
):
    for question in questions():
        print(f"User: {question}\nAssistant:", end="")
        answer = chat.say(question)
        for piece in answer:
            print(piece, end="", flush=True)
            if len(answer.tokens) == 120:  # breaking off is fine: the chat goes on from here
                break
        print(f"\n({answer.finish_reason or 'broken off'}, room for {chat.room} more tokens)")

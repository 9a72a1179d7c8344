"""In a notebook: a story shows as a page, a text streams into its cell, doubt is a colour.

Each ``# %%`` begins a cell, as VS Code, Spyder and Jupytext read them. Run as a program, it writes
what a notebook would show to notebook.html.
"""

from __future__ import annotations

# %% [markdown]
# A story, shown by its `_repr_html_`. The last expression of a cell is what a notebook displays.
# %%
import html
import math
from pathlib import Path

import llama2py

tell = llama2py.StoryTeller()
story = tell("a fox who finds a red balloon", seed=7, max_words=80)
story  # noqa: B018

# %% [markdown]
# A text that appears while it is generated: printing with `flush` is all that it takes.

# %%
model = tell.model
for piece in model.stream("The moon was", max_tokens=40, temperature=0.7, seed=1):
    print(piece, end="", flush=True)
print()

# %% [markdown]
# How sure the model was of each token: the redder, the more surprised.


# %%
class Surprise:
    """Text, each token behind a colour."""

    def __init__(self, g: llama2py.Generation) -> None:
        self.g = g

    def _repr_html_(self) -> str:
        decoder = model.tokenizer.decoder(self.g.prompt_tokens[-1])
        spans = []
        for entry in self.g.logprobs or []:
            doubt = 1 - math.exp(entry.logprob)
            text = html.escape(decoder.feed(entry.token))
            spans.append(f'<span style="background: rgba(255, 0, 0, {doubt:.2f})">{text}</span>')
        return f"<p>{''.join(spans)}</p>"


surprise = Surprise(model.generate("The moon was", 40, temperature=0.7, seed=1, logprobs=0))
surprise  # noqa: B018

# %% Not for a notebook: the same page from a program
if __name__ == "__main__" and "get_ipython" not in globals():
    shown = [story._repr_html_(), surprise._repr_html_()]
    Path("notebook.html").write_text("\n".join(shown), encoding="utf-8")
    print(f"notebook.html: {story.title}")

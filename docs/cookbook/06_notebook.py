"""In a notebook: display a story as a page, stream a text into its cell, show surprise as colour.

Each ``# %%`` begins a cell for VS Code, Spyder and Jupytext. Run as a program, this file writes
what a notebook would show to notebook.html.
"""

from __future__ import annotations

# %% [markdown]
# A story. A notebook displays the last expression of a cell, here with the story's `_repr_html_`.
# %%
import html
import math
from pathlib import Path

import llama2py

tell = llama2py.StoryTeller()
story = tell("a fox who finds a red balloon", seed=7, max_words=80)
story  # noqa: B018

# %% [markdown]
# A text that appears while it is generated: print each piece with `flush=True`.

# %%
model = tell.model
for piece in model.stream("The moon was", max_tokens=40, temperature=0.7, seed=1):
    print(piece, end="", flush=True)
print()

# %% [markdown]
# How surprising each token was to the model: the more surprising, the redder.


# %%
class Surprise:
    """A text whose tokens are coloured by how surprising they were."""

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

# %% Outside a notebook: write the same page to a file
if __name__ == "__main__" and "get_ipython" not in globals():
    shown = [story._repr_html_(), surprise._repr_html_()]
    Path("notebook.html").write_text("\n".join(shown), encoding="utf-8")
    print(f"notebook.html: {story.title}")

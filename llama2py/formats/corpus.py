"""A corpus: a text file of stories, separated by ``<|endoftext|>`` as in TinyStories."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CorpusError
from .text_file import read_text_file

SEPARATOR = "<|endoftext|>"


def read_stories(path: str | os.PathLike[str]) -> list[str]:
    """Read the stories of a corpus.

    Parameters
    ----------
    path : str or path-like
        UTF-8 text, lines ending in LF or CRLF. A file without a separator is one story.

    Returns
    -------
    list of str
        The stories in the file's order, without surrounding white space. Empty ones are left out.

    Raises
    ------
    CorpusError
        If the file is missing, not a regular file, not UTF-8, or holds no story.
    """
    path = Path(path)
    return split_stories(read_text_file(path, CorpusError), path)


def split_stories(text: str, name: str | os.PathLike[str]) -> list[str]:
    """Split a text into stories, as `read_stories` does; ``name`` is the text's name in errors."""
    stories = [story.strip() for story in text.split(SEPARATOR)]
    stories = [story for story in stories if story]
    if not stories:
        raise CorpusError(
            f"{name}: the text holds no story (lines of {SEPARATOR} separate stories)"
        )
    return stories

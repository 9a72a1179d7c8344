"""A text file of stories, as TinyStories has them: parted by lines of ``<|endoftext|>``."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CorpusError

SEPARATOR = "<|endoftext|>"


def read_stories(path: str | os.PathLike[str]) -> list[str]:
    """Read the stories of a text file.

    Parameters
    ----------
    path : str or path-like
        UTF-8 text, lines ending in LF or CRLF. A file without a separator is one story.

    Returns
    -------
    list of str
        In the file's order, each without the white space around it; empty ones are left out.

    Raises
    ------
    CorpusError
        If the file is missing, not UTF-8, or holds no story.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: byte {error.start} is not UTF-8, expected a text") from None
    except OSError as error:
        raise CorpusError(
            f"{path}: cannot be read ({error.strerror or error}), expected a text file of stories"
        ) from None
    stories = [story.strip() for story in text.split(SEPARATOR)]
    stories = [story for story in stories if story]
    if not stories:
        raise CorpusError(
            f"{path}: there is no story in it, expected text parted by lines of {SEPARATOR}"
        )
    return stories

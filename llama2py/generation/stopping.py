"""Texts that end a text, found across the borders of tokens, and never shown in part."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import ParameterError


class StopTexts:
    """Pieces in, pieces out, up to the first stop text: what comes out never holds a part of it.

    The match that ends first counts, of those the longest, so that it makes no difference how a
    text is cut into pieces.

    Parameters
    ----------
    stops : str or iterable of str
        None of them empty.

    Attributes
    ----------
    found : str or None
        The stop text that has come.

    Raises
    ------
    ParameterError
        If one is empty.

    Examples
    --------
    >>> stop = StopTexts(["END"])
    >>> stop.feed("The E"), stop.feed("N"), stop.feed("ding"), stop.feed(" EN"), stop.flush()
    ('The ', '', 'ENding', ' ', 'EN')
    """

    def __init__(self, stops: str | Iterable[str] = ()) -> None:
        self._stops = [stops] if isinstance(stops, str) else list(stops)
        if not all(self._stops):
            raise ParameterError("a stop text is empty, expected at least one character")
        self.found: str | None = None
        self._held = ""

    def feed(self, piece: str) -> str:
        """The text that is sure to be shown, now that ``piece`` has come; '' behind a stop."""
        if not self._stops:
            return piece
        if self.found is not None:
            return ""
        text = self._held + piece
        matches = [(at + len(s), at, s) for s in self._stops if (at := text.find(s)) >= 0]
        if matches:
            _, at, self.found = min(matches)
            self._held = ""
            return text[:at]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What is held back at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many last characters of the text may be the first of the stop text."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0

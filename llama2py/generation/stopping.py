"""Stop strings: found across the borders of tokens, and never shown in part."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import ParameterError


class StopStrings:
    """A filter on a text that comes in pieces: it ends the text before the first stop string.

    The match that ends first counts, and of those the longest. The result is the same however the
    text is cut into pieces.

    Parameters
    ----------
    stops : str or iterable of str
        The stop strings, none of them empty.

    Attributes
    ----------
    found : str or None
        The stop string that ended the text.

    Raises
    ------
    ParameterError
        If a stop string is empty.

    Examples
    --------
    >>> stop = StopStrings(["END"])
    >>> stop.feed("The E"), stop.feed("N"), stop.feed("ding"), stop.feed(" EN"), stop.flush()
    ('The ', '', 'ENding', ' ', 'EN')
    """

    def __init__(self, stops: str | Iterable[str] = ()) -> None:
        self._stops = [stops] if isinstance(stops, str) else list(stops)
        if not all(self._stops):
            raise ParameterError("a stop string is empty")
        self.found: str | None = None
        self._held = ""

    def feed(self, piece: str) -> str:
        """Return the text that is certain after ``piece``; '' once a stop string has been found."""
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
        """Return what is held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of the text are the beginning of the stop string."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0

"""Rows to texts as a function, for Ray, Dask, multiprocessing, or a loop."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from .._util import Closing
from ..engine.parameters import shown
from ..errors import ParameterError
from ..model import MAX_BATCH
from .identity import ModelSpec
from .rows import checked_parameters
from .shards import plain
from .sources import ShardInput
from .texts import Settings, ShardMaker


class RowGenerator(Closing):
    """Generate a text for each row of a list. The text depends on the row and the seed alone.

    The texts are those of ``llama2py batch`` for the same rows. A context manager. It cannot be
    pickled: make one in each process.

    Parameters
    ----------
    model : ModelSpec, optional
        The model. Default: the built-in model.
    seed : int
        The job's seed.
    prompt : str, optional
        Makes the prompt of the row's fields: ``"Tell a story about {animal}"``.
    chat_template : str, optional
        As in `Chat`, for rows with messages.
    max_batch : int
        Texts at once. Changes only the speed.
    **parameters
        Parameters of every text: ``max_tokens``, ``temperature`` and others of `Model.generate`.

    Attributes
    ----------
    identity : dict
        The model's digest, and the versions that the texts may depend on.

    Raises
    ------
    BatchError, ParameterError
        If the template or a parameter is wrong.
    CheckpointError, TokenizerError, EngineError
        As `load` does.

    Examples
    --------
    >>> rows = [{"id": "a", "prompt": "Once"}, {"id": "b", "prompt": "One day"}, {"id": "c"}]
    >>> with RowGenerator(seed=1, max_tokens=5) as generate:
    ...     texts = generate(rows)
    ...     [text.get("tokens") for text in texts]
    [5, 5, None]
    >>> texts[2]["error"]
    'the row has no prompt and no messages, expected one of them'
    """

    def __init__(
        self,
        model: ModelSpec | None = None,
        *,
        seed: int = 0,
        prompt: str | None = None,
        chat_template: str | None = None,
        max_batch: int = MAX_BATCH,
        **parameters: Any,
    ) -> None:
        settings = Settings(
            seed,
            checked_parameters(parameters),
            prompt,
            chat_template,
            max_batch=max_batch,
        )
        self._maker = ShardMaker.load(model or ModelSpec(), settings)
        self.identity = self._maker.identity

    def __call__(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the results of rows.

        Parameters
        ----------
        rows : iterable of mapping
            Each has an ``id``, and a ``prompt``, ``messages`` or the template's fields; perhaps
            ``parameters`` of its own.

        Returns
        -------
        list of dict
            As the lines of a JSONL shard: with ``text``, or with ``error``.

        Raises
        ------
        ParameterError
            If a row has no id: its seed would depend on its place in the list.
        """
        lines = [_line(row) for row in rows]
        given = ShardInput(0, 0, len(lines), lines)
        return [plain(result) for result in self._maker.results(given)]

    def close(self) -> None:
        """Free the model."""
        self._maker.close()


def _line(row: Mapping[str, Any]) -> bytes:
    if row.get("id") is None or row["id"] == "":
        raise ParameterError(
            f"a row has no id ({shown(dict(row))}): add one, because the row's seed is made of it"
        )
    return json.dumps(dict(row), default=_value).encode()


def _value(value: Any) -> Any:
    """Return what JSON can hold: NumPy's numbers and arrays as Python's."""
    return value.tolist() if hasattr(value, "tolist") else str(value)

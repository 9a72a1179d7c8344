"""Parquet files: rows in, rows out. Needs pyarrow (the extra ``llama2py[bulk]``)."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import BatchError
from .rows import Result

_ROWS = 256  # read at once


def pyarrow_version() -> str:
    """Return the version of pyarrow.

    Raises
    ------
    BatchError
        If it is not installed.
    """
    _check()
    import pyarrow

    return str(pyarrow.__version__)


def _check() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise BatchError(f"Parquet needs pyarrow: pip install 'llama2py[bulk]' ({error})") from None


def iter_rows(path: Path) -> Iterator[bytes]:
    """Yield each row of a Parquet file as a JSON object.

    Raises
    ------
    BatchError
        If pyarrow is missing, or the file cannot be read.
    """
    _check()
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS):
                for row in batch.to_pylist():
                    yield json.dumps(row, default=str).encode()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BatchError(f"{path}: cannot be read as Parquet ({reason})") from None


def parquet_bytes(results: Sequence[Result]) -> bytes:
    """Return a Parquet file of one row group. Its bytes depend on the version of pyarrow only."""
    _check()
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(
        [
            ("row", pyarrow.int64()),
            ("id", pyarrow.string()),
            ("prompt", pyarrow.string()),
            ("messages", pyarrow.string()),
            ("text", pyarrow.string()),
            ("finish_reason", pyarrow.string()),
            ("prompt_tokens", pyarrow.int32()),
            ("tokens", pyarrow.int32()),
            ("seed", pyarrow.uint64()),
            ("error", pyarrow.string()),
        ]
    )
    table = pyarrow.Table.from_pylist([_columns(result) for result in results], schema=schema)
    out = io.BytesIO()
    pyarrow.parquet.write_table(
        table,
        out,
        compression="zstd",
        compression_level=3,
        version="2.6",
        data_page_version="1.0",
        store_schema=False,
        row_group_size=max(1, len(results)),
    )
    return out.getvalue()


def _columns(result: Result) -> dict[str, Any]:
    row, failed = result.row, result.error is not None
    prompt = row.prompt if row.prompt is None or isinstance(row.prompt, str) else _json(row.prompt)
    return {
        "row": row.number,
        "id": _storable(row.id),
        "prompt": _storable(prompt),
        "messages": None if row.messages is None else _json(row.messages),
        "text": None if failed else _storable(result.text),
        "finish_reason": result.finish_reason,
        "prompt_tokens": None if failed else result.prompt_tokens,
        "tokens": None if failed else result.tokens,
        "seed": result.seed,
        "error": _storable(result.error),
    }


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _storable(text: str | None) -> str | None:
    """Parquet's strings are UTF-8, which has no lone surrogates."""
    return None if text is None else text.encode("utf-8", "replace").decode()

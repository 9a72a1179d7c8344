"""The bytes of a shard: results as JSONL, as OpenAI's batch output, or as Parquet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .identity import Identity
from .parquet import parquet_bytes
from .rows import Result

OutputFormat: TypeAlias = Literal["jsonl", "parquet", "openai"]
_PLAIN = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_ESCAPED = json.JSONEncoder(separators=(",", ":"))
SUFFIXES = {"jsonl": "jsonl", "openai": "jsonl", "parquet": "parquet"}


@dataclass(frozen=True, slots=True)
class ShardResult:
    """A finished shard.

    Attributes
    ----------
    number, first_row, rows : int
        Which shard, its first row, and how many rows it has.
    errors : int
        How many of its rows have an error instead of a text.
    tokens : int
        The tokens of all its texts.
    sha256 : str
        Of ``data``.
    data : bytes
        The content of the file.
    """

    number: int
    first_row: int
    rows: int
    errors: int
    tokens: int
    sha256: str
    data: bytes


def encode(results: Sequence[Result], format: OutputFormat, identity: Identity) -> bytes:
    """Return the content of a shard's file; the same results give the same bytes."""
    if format == "parquet":
        return parquet_bytes(results)
    if format == "jsonl":
        return b"".join(_line(plain(result)) for result in results)
    fingerprint = f"llama2py_{identity['model']['sha256'][:16]}"
    return b"".join(_line(_response(result, fingerprint)) for result in results)


def plain(result: Result) -> dict[str, Any]:
    """Return a result as a JSON object: a text, or an error."""
    row = result.row
    made: dict[str, Any] = {"id": row.id}
    if row.prompt is not None:
        made["prompt"] = row.prompt
    if row.messages is not None:
        made["messages"] = row.messages
    if result.error is not None:
        return made | {"error": result.error}
    return made | {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "tokens": result.tokens,
        "seed": result.seed,
    }


def _line(value: dict[str, Any]) -> bytes:
    try:
        return _PLAIN.encode(value).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate, which JSON can only escape
        return _ESCAPED.encode(value).encode() + b"\n"


def _response(result: Result, fingerprint: str) -> dict[str, Any]:
    """Return a line of OpenAI's batch output. Ids are hashes, and nothing has the time in it."""
    row = result.row
    name = hashlib.blake2b(f"{row.number} {row.id}".encode(errors="replace"), digest_size=12)
    body: dict[str, Any]
    if result.error is not None:
        status = 400
        error = {"message": result.error, "type": "invalid_request_error"}
        body = {"error": error | {"param": None, "code": None}}
    else:
        status = 200
        chat = row.messages is not None
        content = {"message": {"role": "assistant", "content": result.text}}
        choice = {"index": 0, **(content if chat else {"text": result.text}), "logprobs": None}
        body = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{name.hexdigest()}",
            "object": "chat.completion" if chat else "text_completion",
            "created": 0,
            "model": row.model or "llama2py",
            "choices": [choice | {"finish_reason": result.finish_reason}],
            "usage": {
                "prompt_tokens": result.prompt_tokens,
                "completion_tokens": result.tokens,
                "total_tokens": result.prompt_tokens + result.tokens,
            },
            "system_fingerprint": fingerprint,
        }
    return {
        "id": f"batch_req_{name.hexdigest()}",
        "custom_id": row.id,
        "response": {"status_code": status, "request_id": name.hexdigest(), "body": body},
        "error": None,
    }

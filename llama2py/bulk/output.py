"""The output of a batch: a folder of shards, the journal of a run, and the manifest at its end.

``journal.jsonl`` has the description of the batch in its first line, and a line for each shard
after the shard has its final name. ``manifest.json`` replaces it when all shards are there. Neither
has anything in it that differs between two runs of one batch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .._util import Closing
from ..errors import BatchError
from ..formats.atomic_write import replacing
from ..formats.file_lock import HAVE_LOCKS, is_at, lock
from .identity import difference
from .shards import SUFFIXES, OutputFormat, ShardResult

JOURNAL, MANIFEST, LOCK = "journal.jsonl", "manifest.json", ".lock"
_FORMAT = 1
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Shard:
    """What the manifest says about a finished shard; the fields are those of `ShardResult`."""

    number: int
    first_row: int
    rows: int
    errors: int
    tokens: int
    sha256: str

    @classmethod
    def of(cls, result: ShardResult) -> Shard:
        """Return what the manifest says about a shard."""
        return cls(
            result.number,
            result.first_row,
            result.rows,
            result.errors,
            result.tokens,
            result.sha256,
        )

    @classmethod
    def parsed(cls, fields: Any) -> Shard:
        """Return the shard of a line of the journal.

        Raises
        ------
        ValueError
            If it is not such a line.
        """
        try:
            numbers = [fields[name] for name in ("shard", "first_row", "rows", "errors", "tokens")]
            sha256 = fields["sha256"]
        except (KeyError, TypeError):
            raise ValueError("not a shard") from None
        if any(type(number) is not int for number in numbers) or not isinstance(sha256, str):
            raise ValueError("not a shard")
        number, first_row, rows, errors, tokens = numbers
        return cls(number, first_row, rows, errors, tokens, sha256)

    def described(self, format: OutputFormat) -> dict[str, Any]:
        """Return the line of the journal, which is also the entry of the manifest."""
        return {
            "shard": self.number,
            "file": shard_name(self.number, format),
            "first_row": self.first_row,
            "rows": self.rows,
            "errors": self.errors,
            "tokens": self.tokens,
            "sha256": self.sha256,
        }


def shard_name(number: int, format: OutputFormat) -> str:
    """Return the name of a shard's file."""
    return f"shard-{number:06}.{SUFFIXES[format]}"


class OutputFolder(Closing):
    """The folder that a batch writes to. A context manager; while it is open, it is locked.

    Parameters
    ----------
    path : Path
        A new folder, an empty one, or one of an earlier run of the same batch.
    format : {'jsonl', 'parquet', 'openai'}
        The format of the shards.

    Attributes
    ----------
    done : dict of int to Shard
        The finished shards by number; complete after `begin`.

    Raises
    ------
    BatchError
        If the folder cannot be used, holds other files, or another run writes to it.
    """

    def __init__(self, path: Path, format: OutputFormat) -> None:
        self.path = path
        self.done: dict[int, Shard] = {}
        self._format = format
        self._journal: BinaryIO | None = None
        self._lock: int | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
            self._old, self._valid = self._read()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise self._unusable(error) from error
            raise

    def check(self, described: dict[str, Any]) -> None:
        """Compare a part of the description with that of the earlier run.

        Raises
        ------
        BatchError
            If they differ: the finished shards belong to another batch.
        """
        if self._old is None:
            return
        old = {name: self._old.get(name) for name in described}
        if found := difference(old, described):
            raise BatchError(
                f"{self.path}: the folder holds another batch ({found}); use the same settings, or"
                " another folder"
            )

    def begin(self, described: dict[str, Any]) -> None:
        """Check the description, keep the whole shards of the earlier run, and open the journal.

        Raises
        ------
        BatchError
            If the folder holds another batch, or cannot be written.
        """
        described = {"format": _FORMAT, **described}
        self.check(described)
        self.done = {n: shard for n, shard in self.done.items() if self._is_whole(shard)}
        try:
            if self._valid:
                self._journal = open(self.path / JOURNAL, "r+b")  # noqa: SIM115
                self._journal.truncate(self._valid)  # a line that a killed run did not finish
                self._journal.seek(self._valid)
                return
            # Whole or not at all: without its first line it would say nothing.
            shards = [shard.described(self._format) for _, shard in sorted(self.done.items())]
            with replacing(self.path / JOURNAL, BatchError) as file:
                for line in (described, *shards):
                    file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            self._old = described
            self._journal = open(self.path / JOURNAL, "ab")  # noqa: SIM115
        except OSError as error:
            raise self._unusable(error) from error

    def write(self, result: ShardResult) -> None:
        """Write a shard whole, then note it in the journal.

        Raises
        ------
        BatchError
            If it cannot be written: a full disk, or the folder is gone. What was finished before
            stays finished.
        """
        self._check_folder()
        with replacing(self.path / shard_name(result.number, self._format), BatchError) as file:
            file.write(result.data)
        shard = Shard.of(result)
        assert self._journal is not None, "begin() comes first"
        try:
            line = json.dumps(shard.described(self._format), separators=(",", ":"))
            self._journal.write(line.encode() + b"\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
        except OSError as error:
            raise self._unusable(error) from error
        self.done[shard.number] = shard

    def finish(self) -> None:
        """Write the manifest, and delete the journal.

        Raises
        ------
        BatchError
            If it cannot be written.
        """
        self._check_folder()
        shards = [shard for _, shard in sorted(self.done.items())]
        manifest = {
            **(self._old or {}),
            "rows": sum(shard.rows for shard in shards),
            "errors": sum(shard.errors for shard in shards),
            "tokens": sum(shard.tokens for shard in shards),
            "shards": [shard.described(self._format) for shard in shards],
        }
        with replacing(self.path / MANIFEST, BatchError) as file:
            file.write(json.dumps(manifest, indent=1).encode() + b"\n")
        try:
            if self._journal is not None:
                self._journal.close()
                self._journal = None
            (self.path / JOURNAL).unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """Close the journal and free the lock. A second call has no effect."""
        if self._journal is not None:
            with contextlib.suppress(OSError):  # a full disk: `write` has reported it
                self._journal.close()
            self._journal = None
        descriptor, self._lock = self._lock, None
        if descriptor is not None:
            if is_at(descriptor, self.path / LOCK):
                with contextlib.suppress(OSError):
                    (self.path / LOCK).unlink()
            os.close(descriptor)

    def _locked(self) -> int | None:
        """Lock the folder until `close`, or until this process ends, however it ends."""
        if not HAVE_LOCKS:
            return None
        while True:
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if not lock(descriptor, wait=False):
                os.close(descriptor)
                raise BatchError(
                    f"{self.path}: another run writes to this folder, or its file system has no"
                    " locks; wait for that run, or use another folder"
                )
            if is_at(descriptor, self.path / LOCK):
                return descriptor
            os.close(descriptor)  # the run that has just ended removed it

    def _check_folder(self) -> None:
        if self._lock is not None and not is_at(self._lock, self.path / LOCK):
            raise BatchError(
                f"{self.path}: the folder was removed or replaced while the batch ran; run the same"
                " command again"
            )

    def _read(self) -> tuple[dict[str, Any] | None, int]:
        """Read the description and the shards of an earlier run.

        Returns
        -------
        description : dict or None
            None in an empty folder.
        valid : int
            How many bytes of the journal are whole lines.
        """
        try:
            data = (self.path / JOURNAL).read_bytes()
        except FileNotFoundError:
            return self._read_manifest(), 0
        lines = data.splitlines(keepends=True)
        try:
            described = json.loads(lines[0])
            if not isinstance(described, dict):
                raise ValueError
        except (ValueError, IndexError):
            raise self._not_ours(JOURNAL) from None
        valid = len(lines[0])
        for line in lines[1:]:
            if not line.endswith(b"\n"):
                break
            try:
                shard = Shard.parsed(json.loads(line))
            except ValueError:
                break
            self.done[shard.number] = shard
            valid += len(line)
        return described, valid

    def _read_manifest(self) -> dict[str, Any] | None:
        """Read the manifest of a finished run, or check that the folder is empty."""
        try:
            manifest = json.loads((self.path / MANIFEST).read_bytes())
            for fields in manifest.pop("shards"):
                shard = Shard.parsed(fields)
                self.done[shard.number] = shard
            return {k: v for k, v in manifest.items() if k not in ("rows", "errors", "tokens")}
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, AttributeError, KeyError):
            raise self._not_ours(MANIFEST) from None
        # A run that was killed may have left a temporary file of the journal.
        names = sorted(os.listdir(self.path))
        names = [name for name in names if name != LOCK and not name.startswith(".llama2py-")]
        if names:
            shown = ", ".join(names[:3]) + (", ..." if names[3:] else "")
            raise BatchError(
                f"{self.path}: the folder is not empty (it holds {shown}); choose a new name or an"
                " empty folder"
            )
        return None

    def _is_whole(self, shard: Shard) -> bool:
        """Whether a shard's file has the content that the journal says."""
        digest = hashlib.sha256()
        try:
            with open(self.path / shard_name(shard.number, self._format), "rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
        except OSError:
            return False
        return digest.hexdigest() == shard.sha256

    def _not_ours(self, name: str) -> BatchError:
        return BatchError(
            f"{self.path / name}: not a file of a batch; choose a new name or an empty folder"
        )

    def _unusable(self, error: OSError) -> BatchError:
        return BatchError(f"{self.path}: cannot be used ({error.strerror or error})")

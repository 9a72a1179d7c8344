"""Names of models: local paths, the built-in model, and models of the Hugging Face hub.

Downloaded models are found without the network and without huggingface_hub. Only `download` needs
huggingface_hub (the extra ``llama2py[hub]``). Downloads go into huggingface_hub's own cache.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NoReturn
from urllib.parse import unquote, urlsplit

from ._data import builtin_model
from .errors import CheckpointError, DownloadError
from .formats.atomic_write import check_space
from .formats.descriptor import Descriptor
from .formats.file_lock import is_at, lock

BUILTIN = "builtin"  # the name of the model that llama2py contains
_TINYLLAMAS = "karpathy/tinyllamas"
# llama2.c's story models. The smallest has a vocabulary of its own.
STORIES = {
    "stories260K": ("stories260K/stories260K.bin", "stories260K/tok512.bin"),
    "stories15M": ("stories15M.bin",),
    "stories42M": ("stories42M.bin",),
    "stories110M": ("stories110M.bin",),
}
HUB = "https://huggingface.co"

_REPO = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::(.+))?", re.ASCII)
_GGUF_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
_TOKENIZERS = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|chat_template|generation_config)"
    r"\.(bin|model|json|jinja)"
)
_NUMBERED = re.compile(r"-\d+-of-(\d+)\.\w+$")
_COMMIT = re.compile("[0-9a-f]{40}")
# The file with the configuration, and the names of the weights. The first kind that is there wins.
_KINDS = (
    ("config.json", re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")),
    ("config.json", re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?")),
    ("params.json", re.compile(r"consolidated\.\d+\.pth")),
)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
# huggingface_hub refuses to get larger files by HTTP; it gets them by another protocol.
_MAX_HTTP_SIZE = 50_000_000_000


@dataclass(frozen=True, slots=True)
class HubModel:
    """The files of the hub that a name stands for.

    Attributes
    ----------
    repo : str
        ``'owner/name'``.
    files : tuple of str
        Their paths in the repository, the model first. Empty for the whole repository.
    """

    repo: str
    files: tuple[str, ...]


def hub_model(name: str) -> HubModel | None:
    """Parse ``stories15M``, ``owner/repo`` or ``owner/repo:file``; return None for other names."""
    if name in STORIES:
        return HubModel(_TINYLLAMAS, STORIES[name])
    named = _REPO.fullmatch(name)
    if named is None:
        return None
    repo, file = named.groups()
    if file is None:
        return HubModel(repo, ())
    if not all(part.strip(".") for part in file.split("/")) or "\\" in file or "\0" in file:
        return None  # such as "..", "/etc": not a path inside a repository
    part = _GGUF_PART.fullmatch(file)
    if part is None:
        return HubModel(repo, (file,))
    stem, count = part.groups()
    others = (f"{stem}-{n:05}-of-{count}.gguf" for n in range(1, min(int(count), 999) + 1))
    return HubModel(repo, (file, *(other for other in others if other != file)))


def find_model(name: str | os.PathLike[str] | None) -> Path:
    """Find a model on this machine by its path or its name.

    Parameters
    ----------
    name : str or path-like, optional
        A file or directory; or ``builtin``; or a downloaded model: ``stories15M``, ``owner/repo``
        or ``owner/repo:file``. A local file or directory comes first. None means ``builtin``.

    Returns
    -------
    Path
        The file, or the directory if the name is that of a whole repository.

    Raises
    ------
    CheckpointError
        If there is no such model on this machine. The message says how to get it.
    """
    if name is None:
        return builtin_model()
    if not isinstance(name, str | os.PathLike):
        raise CheckpointError(f"the model is {name!r:.60}, expected a path or a name")
    local = Path(name)
    # A Path on Windows has turned the slash of a name into a backslash.
    name = name.as_posix() if isinstance(name, PurePath) else os.fspath(name)
    if os.path.lexists(local):
        return local  # the caller opens it and reports what is wrong with it
    if name == BUILTIN:
        return builtin_model()
    wanted = hub_model(name)
    found = None if wanted is None else _in_cache(wanted)
    if found is not None:
        return found
    if name in STORIES:
        raise CheckpointError(f"{name}: not found; {_command(name)} gets it")
    if local.stem in STORIES:  # stories15M.bin, the name in llama2.c's README
        raise CheckpointError(
            f"{name}: no such file; {_command(local.stem)} gets this model, and {local.stem} is"
            " then its name"
        )
    # models/a.bin is a missing file, not a repository, if there is a folder "models".
    if wanted is not None and not os.path.isdir(local.parent):
        raise CheckpointError(f"{name}: not found; {_command(name)} gets it if the hub has it")
    return local


def download(name: str) -> Path:
    """Download a model from the hub, or the rest of an incomplete download, and check every file.

    The files go into huggingface_hub's cache. Progress is shown on a terminal. An interrupted
    download resumes where it stopped, and complete files are not downloaded again. If the hub
    cannot be reached, or ``HF_HUB_OFFLINE`` is set, a complete earlier download is enough.

    Parameters
    ----------
    name : str
        ``stories15M`` (or 260K, 42M, 110M); a repository ``owner/repo`` with a Llama model in
        Hugging Face's or Meta's format; or ``owner/repo:file``, such as a GGUF file. For a split
        GGUF file, name any part.

    Returns
    -------
    Path
        The file or directory, for `load`. From then on ``load(name)`` finds it, too.

    Raises
    ------
    DownloadError
        If the name is not a valid model name, huggingface_hub is not installed, the hub does not
        have the model or cannot be reached, the disk is full, or a file arrived damaged (it is
        removed).
    """
    wanted = hub_model(name) if isinstance(name, str) else None
    if wanted is None:
        raise DownloadError(
            f"{name!s:.200}: not a model's name, expected one of {', '.join(STORIES)}, or"
            " owner/repo, or owner/repo:file"
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise DownloadError(
            f'{name}: huggingface_hub is missing ({error}): pip install "llama2py[hub]"'
        ) from error
    cache = _cached_repo(wanted.repo)
    _check_reference(cache)
    endpoint = os.environ.get("HF_ENDPOINT") or None
    files: Sequence[str] = wanted.files
    offline = False
    paths: list[Path] = []
    with _passwords_kept_out_of_logs():
        try:
            if not files:
                files, offline = _needed_files(wanted, endpoint)
            for file in files:
                fetched = _CACHED if offline else _fetch(wanted.repo, file, endpoint)
                path = huggingface_hub.hf_hub_download(
                    wanted.repo,
                    file,
                    cache_dir=_cache_folder(),
                    endpoint=endpoint,
                    local_files_only=not fetched.hub_answered,
                )
                paths.append(Path(path))
                if not fetched.is_checked:
                    _check(f"{wanted.repo}:{file}", paths[-1], fetched.etag)
        except DownloadError:
            raise
        except Exception as error:  # any of huggingface_hub's, or of the HTTP library it uses
            _fail(name, wanted, error, endpoint)
    folders = {path.parents[file.count("/")] for file, path in zip(files, paths, strict=True)}
    if len(folders) > 1:
        raise DownloadError(f"{name}: it changed on the hub during the download; download it again")
    return paths[0] if wanted.files else paths[0].parent


def _command(name: str) -> str:
    return f"python -m llama2py download {name}"


# ---- the cache ----


def _cache_folder() -> Path:
    """Return the folder that huggingface_hub downloads into."""
    get = os.environ.get
    home = get("HF_HOME") or os.path.join(get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folder = get("HF_HUB_CACHE") or get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(folder)))


def _cached_repo(repo: str) -> Path:
    return _cache_folder() / f"models--{repo.replace('/', '--')}"


def _in_cache(wanted: HubModel) -> Path | None:
    """Return the file or directory of the commit that was downloaded last, or None."""
    snapshot = _snapshot(wanted.repo)
    if snapshot is None:
        return None
    if wanted.files:
        found = [snapshot / file for file in wanted.files]
        return found[0] if all(map(os.path.isfile, found)) else None
    is_complete = any((snapshot / numbers).is_file() for numbers, _ in _KINDS)
    return snapshot if is_complete else None


def _snapshot(repo: str) -> Path | None:
    """Return the folder of the commit that was downloaded last, or None."""
    folder = _cached_repo(repo)
    try:
        # O_NONBLOCK: opening a FIFO would wait for a writer.
        descriptor = os.open(folder / "refs" / "main", os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            commit = file.read(100).decode("ascii").strip()
    except (OSError, UnicodeError, ValueError):
        return None
    return folder / "snapshots" / commit if _COMMIT.fullmatch(commit) else None


def _check_reference(cache: Path) -> None:
    """Refuse a reference that would block huggingface_hub forever, such as a FIFO."""
    reference = cache / "refs" / "main"
    try:
        mode = os.stat(reference).st_mode
    except OSError:  # it does not exist yet
        return
    if not stat.S_ISREG(mode):
        raise DownloadError(f"{reference}: not a regular file; remove it and download again")


# ---- which files ----


def _listing(repo: str, endpoint: str | None) -> list[str]:
    """Return the paths of all files of a repository."""
    import huggingface_hub

    info = huggingface_hub.HfApi(endpoint=endpoint).model_info(repo)
    return sorted(file.rfilename for file in info.siblings or ())


def _needed_files(wanted: HubModel, endpoint: str | None) -> tuple[list[str], bool]:
    """Return the files to download from a repository, and whether to take them from the cache.

    If the hub does not answer, whatever the reason, a complete copy in the cache is enough.
    huggingface_hub does the same for a single file.
    """
    try:
        listing = _listing(wanted.repo, endpoint)
    except Exception:
        snapshot = _in_cache(wanted)
        if snapshot is not None:
            there = (path for path in snapshot.rglob("*") if path.is_file())
            names = sorted(path.relative_to(snapshot).as_posix() for path in there)
            with contextlib.suppress(DownloadError):  # without weights it is not enough
                needed = _needed(wanted.repo, names)
                if _is_every_part_there(needed):
                    return needed, True
        raise
    return _needed(wanted.repo, listing), False


def _is_every_part_there(files: Sequence[str]) -> bool:
    """Return whether no part of files that are numbered ``-00001-of-00003`` is missing."""
    numbered = [match for file in files if (match := _NUMBERED.search(file))]
    return all(len(numbered) == int(match[1]) for match in numbered)


def _needed(repo: str, listing: Sequence[str]) -> list[str]:
    """Return the files of a repository that a model needs, without a second copy of its weights."""
    for numbers, weights in _KINDS:
        of_model = [file for file in listing if weights.fullmatch(file)]
        if of_model and numbers in listing:
            # The configuration comes last: `_in_cache` takes it as the sign of a complete download.
            return [*of_model, *filter(_TOKENIZERS.fullmatch, listing), numbers]
    models = [file for file in listing if file.endswith((".gguf", ".bin", ".pt"))]
    if models:
        raise DownloadError(
            f"{repo}: the repository is not a model directory of Hugging Face's or Meta's; name one"
            f" of its files after a colon: {', '.join(models)}"
        )
    raise DownloadError(
        f"{repo}: the repository holds no model (no safetensors, PyTorch or GGUF files)"
    )


# ---- getting and checking one file ----


@dataclass(frozen=True, slots=True)
class _Fetched:
    """One file of a download.

    Attributes
    ----------
    hub_answered : bool
        False if the hub did not answer, and the file in the cache is used.
    etag : str or None
        The hub's name for the content, if it is known.
    is_checked : bool
        Whether the content was compared with its hash just now.
    """

    hub_answered: bool = True
    etag: str | None = None
    is_checked: bool = False


_CACHED = _Fetched(hub_answered=False)


def _fetch(repo: str, file: str, endpoint: str | None) -> _Fetched:
    """Download one file into the cache's folder of blobs, resuming an earlier attempt.

    huggingface_hub 1 and later start from zero in every process. So this function writes the bytes
    itself, to one partial file per blob, which remains if the process ends.
    """
    import huggingface_hub
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import (  # type: ignore[attr-defined,unused-ignore]
        build_hf_headers,
    )

    url = huggingface_hub.hf_hub_url(repo, file, endpoint=endpoint)
    try:
        about = huggingface_hub.get_hf_file_metadata(url)  # one request, without retries
    except Exception:
        snapshot = _snapshot(repo)
        if snapshot is not None and os.path.isfile(snapshot / file):
            return _CACHED
        raise
    etag, size = about.etag, about.size
    if etag is None or _hash(etag) is None or size is None or size > _MAX_HTTP_SIZE:
        return _Fetched(etag=etag)  # left to huggingface_hub
    blob = _cached_repo(repo) / "blobs" / etag
    if os.path.lexists(blob):
        return _Fetched(etag=etag)
    blob.parent.mkdir(parents=True, exist_ok=True)
    headers = build_hf_headers()
    headers["Accept-Encoding"] = "identity"  # a compressed transfer cannot be resumed
    if urlsplit(about.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # a storage server must not get the hub's token
    partial = blob.with_name(f"{etag}.llama2py.incomplete")
    with _open_partial(partial) as out:
        if os.path.lexists(blob):  # another process got it while this one waited
            return _Fetched(etag=etag)
        begin = out.seek(0, os.SEEK_END)
        if begin > size:
            begin = out.seek(0)
            out.truncate()
        check_space(partial, size - begin, DownloadError)
        if begin < size:
            http_get(
                about.location,
                out,
                resume_size=begin,
                headers=headers,
                expected_size=size,
                displayed_filename=file,
            )
            out.flush()
            os.fsync(out.fileno())
        out.seek(0)
        digest = _digest(out, etag, size)
        if digest != etag:
            partial.unlink()
            raise DownloadError(_damaged(f"{repo}:{file}", digest, etag))
        os.replace(partial, blob)
    return _Fetched(etag=etag, is_checked=True)


@contextlib.contextmanager
def _open_partial(path: Path) -> Iterator[BinaryIO]:
    """Open a partial file for this process alone; wait while another process downloads it."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        with (
            Descriptor(path, flags, 0o666) as descriptor,
            open(descriptor.fileno(), "r+b", closefd=False) as file,
        ):
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DownloadError(f"{path}: not a regular file; remove it and download again")
            lock(file.fileno(), wait=True)
            if is_at(file.fileno(), path):  # else the other process has finished and renamed it
                yield file
                return


def _hash(etag: str) -> Any:
    """Return a hash object for an etag: SHA-256 for LFS files, SHA-1 for git blobs."""
    if re.fullmatch("[0-9a-f]{64}", etag):
        return hashlib.sha256()
    return hashlib.sha1(usedforsecurity=False) if re.fullmatch("[0-9a-f]{40}", etag) else None


def _digest(file: BinaryIO, etag: str, size: int) -> str:
    """Compute a file's hash, of the same kind as the etag."""
    digest = _hash(etag)
    if len(etag) == 40:
        digest.update(b"blob %d\0" % size)  # git's name of a file's content
    while block := file.read(1 << 20):
        digest.update(block)
    found: str = digest.hexdigest()
    return found


def _check(name: str, path: Path, etag: str | None) -> None:
    """Compare a file in the cache with its hash, and remove it if it is damaged.

    The cache holds links to files that are named after their etags. If the system has no links and
    the hub was not asked, the hash is unknown.
    """
    blob = path.parent / os.readlink(path) if path.is_symlink() else None
    expected = etag or (None if blob is None else blob.name)
    if not path.is_file():
        raise DownloadError(f"{name}: {path} is not a regular file; remove it and download again")
    if expected is None or _hash(expected) is None:
        return
    with open(path, "rb") as file:
        digest = _digest(file, expected, os.fstat(file.fileno()).st_size)
    if digest != expected:
        # Blobs of several repositories may be links themselves.
        for damaged in {path, *(() if blob is None else (blob.resolve(), blob))}:
            damaged.unlink(missing_ok=True)
        raise DownloadError(_damaged(name, digest, expected))


def _damaged(name: str, digest: str, expected: str) -> str:
    kind = "SHA-256" if len(expected) == 64 else "git SHA-1"
    return (
        f"{name}: the file is damaged (its {kind} is {digest}, expected {expected}) and was"
        " removed; download it again"
    )


# ---- errors ----


def _fail(name: str, wanted: HubModel, error: Exception, endpoint: str | None) -> NoReturn:
    """Raise a DownloadError that says in one sentence why huggingface_hub failed."""
    from huggingface_hub import errors

    where = endpoint or HUB
    if isinstance(error, errors.GatedRepoError):
        text = (
            f"the owner of this repository must grant access: ask at {where}/{wanted.repo}, then"
            " run `hf auth login`"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        text = f"{where} has no such repository, or it is private (run `hf auth login`)"
    elif isinstance(error, errors.EntryNotFoundError) and not isinstance(
        error, errors.LocalEntryNotFoundError
    ):
        text = f"the repository has no such file{_names_of_files(wanted.repo, endpoint)}"
    elif isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        text = f"cannot be written ({error.strerror}: {error.filename or _cache_folder()})"
    else:
        cause: Any = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
        reason = " ".join(str(cause or error).split()) or type(error).__name__
        text = f"cannot be downloaded from {where} ({reason}); {_another_way(wanted, where)}"
    message = _without_passwords(f"{name}: {text}")
    # A chained error would show the address with its password.
    has_password = endpoint is not None and "@" in endpoint
    raise DownloadError(message) from (None if has_password else error)


def _another_way(wanted: HubModel, where: str) -> str:
    """Say how to get a model without a connection."""
    files = [f"{where}/{wanted.repo}/resolve/main/{file}" for file in wanted.files[:2]]
    source = " and ".join(files) or f"{where}/{wanted.repo}"
    return (
        f"try again when it can be reached, or copy {source} here from another machine and use"
        f" the path as the model's name ({BUILTIN} is the name of the model that needs no download)"
    )


def _names_of_files(repo: str, endpoint: str | None) -> str:
    """List a repository's files for an error message; '' if the hub does not answer."""
    try:
        listing = _listing(repo, endpoint)
    except Exception:  # the error that is being reported matters more
        return ""
    return f", expected one of {', '.join(listing[:50])}"


def _without_passwords(text: str) -> str:
    """Remove user names and passwords from the addresses in a text."""
    text = re.sub(r"(\w+://)[^/\s]*@", r"\1", text)
    with contextlib.suppress(ValueError):
        password = urlsplit(os.environ.get("HF_ENDPOINT", "")).password or ""
        for spelling in {password, unquote(password)}:
            if len(spelling) > 3:  # a shorter one may be part of any word
                text = text.replace(spelling, "***")
    return text


@contextlib.contextmanager
def _passwords_kept_out_of_logs() -> Iterator[None]:
    """Remove passwords from what huggingface_hub logs in the block."""

    def clean(record: logging.LogRecord) -> bool:
        record.msg, record.args = _without_passwords(record.getMessage()), ()
        return True

    handlers = [*logging.getLogger("huggingface_hub").handlers, *logging.getLogger().handlers]
    for handler in handlers:
        handler.addFilter(clean)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(clean)

"""Models of the Hugging Face hub: their names, where they lie on this machine, getting them.

What has been downloaded is found without the network and without huggingface_hub, which only
`download` needs (the extra ``llama2py[hub]``). The folder is huggingface_hub's own cache.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NoReturn

from .errors import CheckpointError, DownloadError

_TINYLLAMAS = "karpathy/tinyllamas"
# llama2.c's story models. The smallest has a vocabulary of its own.
STORIES = {
    "stories260K": ("stories260K/stories260K.bin", "stories260K/tok512.bin"),
    "stories15M": ("stories15M.bin",),
    "stories42M": ("stories42M.bin",),
    "stories110M": ("stories110M.bin",),
}

_REPO = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::(.+))?", re.ASCII)
_GGUF_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
_TOKENIZERS = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|chat_template|generation_config)"
    r"\.(bin|model|json|jinja)"
)
_NUMBERED = re.compile(r"-\d+-of-(\d+)\.\w+$")
# What a directory must have, and what its weights are called; the first that is there is taken.
_KINDS = (
    ("config.json", re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")),
    ("config.json", re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?")),
    ("params.json", re.compile(r"consolidated\.\d+\.pth")),
)


@dataclass(frozen=True, slots=True)
class HubModel:
    """What a name stands for on the hub.

    Attributes
    ----------
    repo : str
        ``'owner/name'``.
    files : tuple of str
        Their paths in it, the model first; empty for the whole repository.
    """

    repo: str
    files: tuple[str, ...]


def hub_model(name: str) -> HubModel | None:
    """What a name stands for: ``stories15M``, ``owner/repo`` or ``owner/repo:file``; or None."""
    if name in STORIES:
        return HubModel(_TINYLLAMAS, STORIES[name])
    named = _REPO.fullmatch(name)
    if named is None:
        return None
    repo, file = named.groups()
    if file is None:
        return HubModel(repo, ())
    if not all(part.strip(".") for part in file.split("/")) or "\\" in file or "\0" in file:
        return None  # "..", "/etc": no file of a repository
    part = _GGUF_PART.fullmatch(file)
    if part is None:
        return HubModel(repo, (file,))
    stem, count = part.groups()
    others = (f"{stem}-{n:05}-of-{count}.gguf" for n in range(1, min(int(count), 999) + 1))
    return HubModel(repo, (file, *(other for other in others if other != file)))


def find_model(path: str | os.PathLike[str]) -> Path:
    """Where a model lies: a path of this machine, or else a name of the hub that was downloaded.

    Parameters
    ----------
    path : str or path-like
        A file or directory, or ``stories15M``, ``owner/repo`` or ``owner/repo:file``. What lies on
        this machine under that name wins.

    Returns
    -------
    Path
        Of the file, or of the directory if the name is that of a whole repository.

    Raises
    ------
    CheckpointError
        If there is neither; the message says how to get it.
    """
    local = Path(path)
    # A Path of Windows has turned the slash of a name round.
    name = path.as_posix() if isinstance(path, PurePath) else os.fspath(path)
    if os.path.lexists(local):
        return local  # whoever opens it says what is wrong with it
    wanted = hub_model(name)
    found = None if wanted is None else _in_cache(wanted)
    if found is not None:
        return found
    if name in STORIES:
        raise CheckpointError(f"{name}: not found; {_command(name)} gets it")
    if local.stem in STORIES:  # stories15M.bin, as llama2.c's users call it
        raise CheckpointError(
            f"{name}: no such file, expected a checkpoint; {_command(local.stem)} gets the one that"
            f" is then called {local.stem}"
        )
    if wanted is not None and not os.path.isdir(
        local.parent
    ):  # models/a.bin is a file that is missing
        raise CheckpointError(f"{name}: not found; {_command(name)} gets it if the hub has it")
    return local


def download(name: str) -> Path:
    """Get a model from the hub, or what is missing of it, and check what came.

    Into huggingface_hub's cache, by huggingface_hub, which shows its progress on a terminal,
    resumes where the connection broke, and fetches nothing that is there already. Where the hub
    cannot be asked, or ``HF_HUB_OFFLINE`` forbids it, what is there is enough.

    Parameters
    ----------
    name : str
        ``stories15M`` (or 260K, 42M, 110M), a repository ``owner/repo`` of a llama of Hugging
        Face's or Meta's, or ``owner/repo:file``, such as a GGUF file; of a split one any part.

    Returns
    -------
    Path
        Of the file or directory, for `load`. So does ``load(name)`` from now on.

    Raises
    ------
    DownloadError
        If the name is none, huggingface_hub is not installed, the hub has no such model or cannot
        be reached, the disk is full, or a file came damaged (then it is removed again).
    """
    wanted = hub_model(name)
    if wanted is None:
        raise DownloadError(
            f"{name}: this is no model's name, expected one of {', '.join(STORIES)},"
            " or owner/repo, or owner/repo:file"
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise DownloadError(
            f'{name}: huggingface_hub is missing ({error}): pip install "llama2py[hub]"'
        ) from error
    endpoint = os.environ.get("HF_ENDPOINT") or None
    files: Sequence[str] = wanted.files
    offline = False
    paths: list[Path] = []
    try:
        if not files:
            files, offline = _needed_or_cached(wanted, endpoint)
        for file in files:
            got = huggingface_hub.hf_hub_download(
                wanted.repo,
                file,
                cache_dir=_cache_folder(),
                endpoint=endpoint,
                local_files_only=offline,
            )
            paths.append(Path(got))
            _check(wanted.repo, file, paths[-1])
    except DownloadError:
        raise
    except Exception as error:  # huggingface_hub's, or of whatever it talks to the network by
        _fail(name, wanted, error, endpoint)
    folders = {path.parents[file.count("/")] for file, path in zip(files, paths, strict=True)}
    if len(folders) > 1:
        raise DownloadError(f"{name}: it changed while it was downloaded; download it again")
    return paths[0] if wanted.files else paths[0].parent


def _command(name: str) -> str:
    return f"python -m llama2py download {name}"


def _cache_folder() -> Path:
    """Where huggingface_hub keeps what it downloads."""
    get = os.environ.get
    home = get("HF_HOME") or os.path.join(get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folder = get("HF_HUB_CACHE") or get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(folder)))


def _in_cache(wanted: HubModel) -> Path | None:
    """The file or directory, of the commit that was downloaded last; None if it is not there."""
    folder = _cache_folder() / f"models--{wanted.repo.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text("ascii").strip()
    except (OSError, UnicodeError):
        return None
    snapshot = folder / "snapshots" / commit
    if wanted.files:
        found = [snapshot / file for file in wanted.files]
        return found[0] if all(map(os.path.isfile, found)) else None
    whole = any((snapshot / numbers).is_file() for numbers, _ in _KINDS)
    return snapshot if whole else None


def _listing(repo: str, endpoint: str | None) -> list[str]:
    """The paths of all files of a repository."""
    import huggingface_hub

    info = huggingface_hub.HfApi(endpoint=endpoint).model_info(repo)
    return sorted(file.rfilename for file in info.siblings or ())


def _needed_or_cached(wanted: HubModel, endpoint: str | None) -> tuple[list[str], bool]:
    """The files of a whole repository, and whether the cache told them because the hub did not.

    So does huggingface_hub for a single file, whatever the hub's reason.
    """
    try:
        listing = _listing(wanted.repo, endpoint)
    except Exception:
        snapshot = _in_cache(wanted)
        if snapshot is not None:
            there = (path for path in snapshot.rglob("*") if path.is_file())
            names = sorted(path.relative_to(snapshot).as_posix() for path in there)
            with suppress(DownloadError):  # without its weights it is not enough
                needed = _needed(wanted.repo, names)
                if _are_whole(needed):
                    return needed, True
        raise
    return _needed(wanted.repo, listing), False


def _are_whole(files: Sequence[str]) -> bool:
    """Whether of files that are numbered ``-00001-of-00003`` all are there."""
    numbered = [match for file in files if (match := _NUMBERED.search(file))]
    return all(len(numbered) == int(match[1]) for match in numbered)


def _needed(repo: str, listing: Sequence[str]) -> list[str]:
    """The files of a repository that a llama needs, without a second copy of its weights."""
    for numbers, weights in _KINDS:
        of_model = [file for file in listing if weights.fullmatch(file)]
        if of_model and numbers in listing:
            # The numbers last: once they are there, all of it is (see `_in_cache`).
            return [*of_model, *filter(_TOKENIZERS.fullmatch, listing), numbers]
    models = [file for file in listing if file.endswith((".gguf", ".bin", ".pt"))]
    if models:
        raise DownloadError(
            f"{repo}: this repository is no directory of Hugging Face's or Meta's, expected one of"
            f" its files behind a colon: {', '.join(models)}"
        )
    raise DownloadError(
        f"{repo}: this repository has no model, expected safetensors, PyTorch or GGUF files in it"
    )


def _check(repo: str, file: str, path: Path) -> None:
    """Compare a large file with the hub's sha256; huggingface_hub looks at the length alone.

    The cache has it as a link to a file that is named for its sha256 (git's smaller files for
    something else). Where a system has no links, nothing is checked.
    """
    if not path.is_symlink():
        return
    blob = path.parent / os.readlink(path)
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return
    digest = hashlib.sha256()
    with open(path, "rb") as data:
        while block := data.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != blob.name:
        for damaged in (blob.resolve(), blob, path):  # blobs of several repositories may be links
            damaged.unlink(missing_ok=True)
        raise DownloadError(
            f"{repo}:{file}: it came damaged (its sha256 is {digest.hexdigest()}, expected"
            f" {blob.name}) and was removed; download it again"
        )


def _fail(name: str, wanted: HubModel, error: Exception, endpoint: str | None) -> NoReturn:
    """Say in one sentence why huggingface_hub could not."""
    from huggingface_hub import errors

    where = endpoint or "https://huggingface.co"
    if isinstance(error, errors.GatedRepoError):
        text = f"its owner asks who gets it: say so at {where}/{wanted.repo}, then `hf auth login`"
    elif isinstance(error, errors.RepositoryNotFoundError):
        text = f"{where} has no such repository, or it is a private one (`hf auth login`)"
    elif isinstance(error, errors.EntryNotFoundError) and not isinstance(
        error, errors.LocalEntryNotFoundError
    ):
        text = f"{where} has no such file in it{_names_of_files(wanted.repo, endpoint)}"
    else:
        cause: Any = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
        reason = " ".join(str(cause or error).split()) or type(error).__name__
        text = f"cannot be downloaded from {where} ({reason}); try again"
    raise DownloadError(f"{name}: {text}") from error


def _names_of_files(repo: str, endpoint: str | None) -> str:
    """What a repository has instead, for an error; nothing if that cannot be asked now."""
    try:
        listing = _listing(repo, endpoint)
    except Exception:  # the error that is being told matters more
        return ""
    return f", expected one of {', '.join(listing[:50])}"

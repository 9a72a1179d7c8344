"""Coverage-guided fuzzing of every reader of files. Not run by pytest: each takes as long as given.

    pip install atheris
    python tests/fuzz.py gguf --seconds 3600 --corpus gguf-corpus

What is wrong, whatever a file holds: another exception than Llama2pyError, more than two seconds,
memory of more than twice the file and 16 MB. Such inputs are told once for each place, and kept in
the corpus folder as ``finding-...``; ``--replay FILE`` reads one of them again. ``--list`` names
the readers. The corpus grows from run to run; it begins with small whole files, made here.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import sys
import tempfile
import time
import traceback
import tracemalloc
import zipfile
from base64 import b64encode
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

try:
    _atheris: Any = importlib.import_module("atheris")
except ImportError:  # `--list` and `--replay` do without
    _atheris = None

with _atheris.instrument_imports(include=["llama2py"]) if _atheris else nullcontext():
    from conftest import TINY, random_checkpoint, tiny_tokenizer
    from foreign_files import CONFIG, PARAMS, dict_program, huggingface, program
    from foreign_files import text as pickled_text
    from gguf_files import float_file, gguf_file, lay_out, metadata, weights
    from tiny_checkpoints import Shape, make_file

    from llama2py.checkpoint import open_checkpoint
    from llama2py.errors import Llama2pyError
    from llama2py.reference import Reference
    from llama2py.saved_session import fingerprint, read_session, write_session
    from llama2py.tokenizer_files import load_tokenizer, write_tokenizer_bin
    from llama2py.tokenizer_output import gguf_pairs, sentencepiece_model, tokenizer_json
    from llama2py.tokenizer_ranks import read_ranks

MAX_SECONDS, MAX_BYTES = 2.0, 16 << 20
MAX_INPUT = 1 << 16  # bytes

Read = Callable[[bytes], object]
Made = tuple[Read, list[bytes]]  # and the files to begin with


def checkpoint_at(path: Path) -> None:
    """Read all that `load` and `info` do, but the vocabulary."""
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.conventions
        for tensors in checkpoint.tensors.values():
            for tensor in tensors:
                tensor.dequantize()
                tensor.count_non_finite()


def vocabulary_at(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    tokens = tokenizer.encode("Once upon a time,  é 1234\n", bos=True)
    tokenizer.decode(tokens)


def file_as(path: Path, read: Callable[[Path], object]) -> Read:
    def of(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return of


# ---- the readers, and files to begin with ----


def gguf(folder: Path) -> Made:
    plain = {name: (0, w.shape, w.tobytes()) for name, w in weights().items() if w.ndim == 1}
    seeds = [float_file()]
    for kind, nbytes in ((8, 34), (2, 18)):  # Q8_0, Q4_0
        blocks = {n: (kind, w.shape, bytes(w.size // 32 * nbytes)) for n, w in weights().items()}
        seeds.append(gguf_file(metadata(), *lay_out(blocks | plain)))
    return file_as(folder / "m.gguf", checkpoint_at), seeds


def gguf_vocabulary(folder: Path) -> Made:
    seed = gguf_file(metadata() | gguf_pairs(tiny_tokenizer(), "{{ bos_token }}"), [])
    return file_as(folder / "m.gguf", vocabulary_at), [seed]


def llama2c(folder: Path) -> Made:
    shape = Shape(8, 12, 2, 2, 1, 20, 16, True, 4)
    seeds = [make_file(shape, version).data for version in (0, 1, 2)]
    return file_as(folder / "m.bin", checkpoint_at), seeds


def safetensors(folder: Path) -> Made:
    path = huggingface(folder)
    seeds = [path.read_bytes(), huggingface(folder, dtype="<f2").read_bytes()]
    return file_as(path, lambda path: checkpoint_at(path.parent)), seeds


def config(folder: Path) -> Made:
    huggingface(folder)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8}
    more = {"rope_scaling": scaling, "eos_token_id": [1, 2], "head_dim": 4, "rope_theta": 5e5}
    seeds = [json.dumps(CONFIG).encode(), json.dumps(CONFIG | more).encode()]
    return file_as(folder / "config.json", lambda path: checkpoint_at(path.parent)), seeds


def tokenizer_config(folder: Path) -> Made:
    huggingface(folder)
    about = {"chat_template": "{{ bos_token }}[INST]", "add_bos_token": True, "eos_token": "</s>"}
    several = about | {"chat_template": [{"name": "default", "template": "x"}]}
    seeds = [json.dumps(about).encode(), json.dumps(several).encode()]
    return file_as(folder / "tokenizer_config.json", lambda p: checkpoint_at(p.parent)), seeds


def params(folder: Path) -> Made:
    huggingface(folder, "torch").rename(folder / "consolidated.00.pth")
    (folder / "config.json").unlink()
    seeds = [json.dumps(PARAMS).encode()]
    return file_as(folder / "params.json", lambda path: checkpoint_at(path.parent)), seeds


def torch(folder: Path) -> Made:
    path = huggingface(folder, "torch")
    seeds = [path.read_bytes(), huggingface(folder, "torch", "<f2").read_bytes()]
    return file_as(path, lambda path: checkpoint_at(path.parent)), seeds


def pickled(folder: Path) -> Made:
    """data.pkl of a zip that is whole: the archive's checksums would hide it from a fuzzer."""
    path = huggingface(folder, "torch")
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    (program_name,) = (name for name in contents if name.endswith("data.pkl"))
    good = contents[program_name]

    def read(data: bytes) -> None:
        with zipfile.ZipFile(path, "w") as out:
            for name, content in (contents | {program_name: data}).items():
                out.writestr(name, content)
        checkpoint_at(path.parent)

    return read, [good, program(dict_program({"model": pickled_text("x")}))]


def tokenizer_bin(folder: Path) -> Made:
    path = folder / "tokenizer.bin"
    write_tokenizer_bin(tiny_tokenizer(), path)
    return file_as(path, vocabulary_at), [path.read_bytes()]


def ranks(folder: Path) -> Made:
    pieces = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" the", b"in"]
    lines = b"".join(b64encode(p) + b" %d\n" % rank for rank, p in enumerate(pieces))
    return file_as(folder / "tokenizer.model", vocabulary_at), [lines]


def tokenizer_json_(folder: Path) -> Made:
    (byte_level,) = ranks(folder)[1]
    (folder / "ranks").write_bytes(byte_level)
    seeds = [tokenizer_json(tiny_tokenizer()), tokenizer_json(read_ranks(folder / "ranks"))]
    return file_as(folder / "tokenizer.json", vocabulary_at), seeds


def sentencepiece(folder: Path) -> Made:
    seeds = [sentencepiece_model(tiny_tokenizer())]
    return file_as(folder / "tokenizer.model", vocabulary_at), seeds


def session(folder: Path) -> Made:
    """With the right fingerprint and checksum, whatever is between."""
    backend, path = Reference(random_checkpoint(TINY)), folder / "s.session"
    cache = backend.new_cache()
    tokens = [1, 5, 9]
    backend.forward(tokens, [cache] * 3, range(3), [2])
    write_session(path, backend, cache, tokens)
    whole, mark = path.read_bytes(), fingerprint(backend)

    def read(data: bytes) -> None:
        data = data.replace(b"?" * len(mark), mark)
        path.write_bytes(data + hashlib.sha256(data).digest())
        read_session(path, backend)

    return read, [whole[:-32].replace(mark, b"?" * len(mark))]


READERS: dict[str, Callable[[Path], Made]] = {
    "gguf": gguf,
    "gguf-vocabulary": gguf_vocabulary,
    "llama2c": llama2c,
    "safetensors": safetensors,
    "config": config,
    "tokenizer-config": tokenizer_config,
    "params": params,
    "torch": torch,
    "pickle": pickled,
    "tokenizer-bin": tokenizer_bin,
    "ranks": ranks,
    "tokenizer-json": tokenizer_json_,
    "sentencepiece": sentencepiece,
    "session": session,
}


# ---- what must hold ----


class Wrong(Exception):
    """A bound that was not kept."""


def check(read: Read, data: bytes, folder: Path) -> None:
    """Read an input, which is put into this folder, within the bounds."""
    if not tracemalloc.is_tracing():
        tracemalloc.start()  # once: each start costs some kilobytes that stop does not give back
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    started = time.process_time()
    attempt(read, data)
    peak = tracemalloc.get_traced_memory()[1] - before
    size = sum(file.stat().st_size for file in folder.iterdir())
    if peak > 2 * size + MAX_BYTES:
        raise Wrong(f"{peak} bytes of memory for {size} bytes of files")
    if time.process_time() - started > MAX_SECONDS:  # which tracing makes several times slower
        tracemalloc.stop()
        started = time.process_time()
        attempt(read, data)
        if (seconds := time.process_time() - started) > MAX_SECONDS:
            raise Wrong(f"{seconds:.1f} seconds")


def attempt(read: Read, data: bytes) -> None:
    try:
        read(data)
    except Llama2pyError as error:
        text = str(error)
        if "\n" in text or len(text) > 2000:
            raise Wrong(f"an error of {len(text)} characters: {text[:200]!r}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("reader", choices=READERS, nargs="?")
    parser.add_argument("--list", action="store_true", help="name the readers")
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--corpus", type=Path, help="a folder, made if it is not there")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="read this one input")
    args = parser.parse_args()
    if args.list or args.reader is None:
        print("\n".join(READERS))
        return
    shared_memory = Path("/dev/shm")
    base = shared_memory if os.access(shared_memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as name:
        folder = Path(name)
        read, seeds = READERS[args.reader](folder)

        if args.replay is not None:
            check(read, args.replay.read_bytes(), folder)
            return
        if _atheris is None:
            sys.exit("fuzz.py: atheris is missing: pip install atheris")
        corpus: Path = args.corpus or folder.parent / f"llama2py-fuzz-{args.reader}"
        corpus.mkdir(parents=True, exist_ok=True)
        for i, seed in enumerate(seeds):
            check(read, seed, folder)
            (corpus / f"seed-{i}").write_bytes(seed)
        known: set[str] = set()

        def one_input(data: bytes) -> None:
            try:
                check(read, data, folder)
            except Exception as error:
                frames = traceback.extract_tb(error.__traceback__)
                at = next((f for f in reversed(frames) if "llama2py" in f.filename), frames[-1])
                place = f"{type(error).__name__} {Path(at.filename).name}:{at.lineno}"
                if place not in known:
                    known.add(place)
                    kept = corpus / f"finding-{hashlib.sha1(data).hexdigest()[:12]}"
                    kept.write_bytes(data)
                    print(f"FOUND {place}: {error!s:.200} ({kept})", file=sys.stderr, flush=True)

        if child := os.fork():  # libFuzzer ends its process without a last word; this one tidies up
            _, status = os.waitpid(child, 0)
            sys.exit(os.waitstatus_to_exitcode(status))
        options = [f"-max_total_time={args.seconds}", f"-max_len={MAX_INPUT}", "-timeout=60"]
        _atheris.Setup([sys.argv[0], *options, "-rss_limit_mb=4096", str(corpus)], one_input)
        _atheris.Fuzz()


if __name__ == "__main__":
    main()

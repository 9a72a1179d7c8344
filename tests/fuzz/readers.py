"""The readers of files that `fuzz.py` fuzzes, each with small whole files to begin with."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llama2py.checkpoint import open_checkpoint
from llama2py.engine.reference import Reference
from llama2py.engine.session_file import fingerprint, read_session, write_session
from llama2py.tokenizers.gguf import gguf_pairs
from llama2py.tokenizers.huggingface import tokenizer_json
from llama2py.tokenizers.llama2c import write_tokenizer_bin
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.sentencepiece import sentencepiece_model
from llama2py.tokenizers.tiktoken import parse_ranks
from llama2py.tokenizers.tokenizer import Specials, Tokenizer
from tests.checkpoint.gguf.test_files import split
from tests.conftest import TINY, random_checkpoint, tiny_tokenizer
from tests.fuzz.bounds import Read
from tests.support.families import FAMILIES
from tests.support.foreign_files import (
    CONFIG,
    PARAMS,
    Array,
    dict_program,
    huggingface,
    number,
    program,
    tiny_tensors,
    torch_file,
    torch_state,
)
from tests.support.foreign_files import text as pickled_text
from tests.support.gguf_files import gguf_file, lay_out, metadata, weights
from tests.support.tiny_checkpoints import Shape, make_file

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


def gguf(folder: Path) -> Made:
    small = {name: w for name, w in weights().items() if "blk.1." not in name}
    norms = {name: (0, w.shape, w.tobytes()) for name, w in small.items() if w.ndim == 1}
    seeds = []
    for kind, nbytes in ((0, 128), (1, 64), (8, 34), (2, 18), (30, 64)):  # F32 F16 Q8_0 Q4_0 BF16
        blocks = {n: (kind, w.shape, bytes(w.size // 32 * nbytes)) for n, w in small.items()}
        seeds.append(gguf_file(metadata(block_count=1), *lay_out(blocks | norms)))
    scaling = {"rope__scaling__type": b"linear", "rope__scaling__factor": 2.0}
    more = metadata(block_count=1, rope__freq_base=5e5, vocab_size=6, **scaling)
    seeds.append(gguf_file(more, *lay_out(blocks | norms)))
    return file_as(folder / "m.gguf", checkpoint_at), seeds


def gguf_vocabulary(folder: Path) -> Made:
    vocabularies = tiny_tokenizer(), early_specials(), parse_ranks(byte_level())
    seeds = [gguf_file(metadata() | gguf_pairs(v, "{{ bos_token }}"), []) for v in vocabularies]
    return file_as(folder / "m.gguf", vocabulary_at), seeds


def llama2c(folder: Path) -> Made:
    shape = Shape(8, 12, 2, 2, 1, 20, 16, True, 4)
    seeds = [make_file(shape, version).data for version in (0, 1, 2)]
    return file_as(folder / "m.bin", checkpoint_at), seeds


def gguf_part(folder: Path) -> Made:
    """The second of two files. The first is intact, and its metadata applies to both."""
    _, second = split(folder, n_parts=2)
    return file_as(second, checkpoint_at), [second.read_bytes()]


def safetensors(folder: Path) -> Made:
    path = huggingface(folder)
    seeds = [path.read_bytes(), huggingface(folder, dtype="<f2").read_bytes()]
    return file_as(path, lambda path: checkpoint_at(path.parent)), seeds


def index(folder: Path) -> Made:
    """Which tensor is in which of two files, both of them whole and each with all tensors."""
    path = huggingface(folder)
    names = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    for name in names:
        (folder / name).write_bytes(path.read_bytes())
    path.unlink()
    places = {name: names[i % 2] for i, name in enumerate(tiny_tensors())}
    seed = json.dumps({"metadata": {"total_size": 1}, "weight_map": places}).encode()
    return file_as(folder / "model.safetensors.index.json", checkpoint_at), [seed]


def config(folder: Path) -> Made:
    huggingface(folder)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8}
    more = {"rope_scaling": scaling, "eos_token_id": [1, 2], "head_dim": 4, "rope_theta": 5e5}
    seeds = [json.dumps(CONFIG).encode(), json.dumps(CONFIG | more).encode()]
    shape = {name: CONFIG[name] for name in CONFIG if name != "model_type"}
    seeds += [json.dumps(about | shape).encode() for about in FAMILIES.values()]
    return file_as(folder / "config.json", lambda path: checkpoint_at(path.parent)), seeds


def tokenizer_config(folder: Path) -> Made:
    huggingface(folder)
    about = {"chat_template": "{{ bos_token }}[INST]", "add_bos_token": True, "eos_token": "</s>"}
    several = about | {"chat_template": [{"name": "default", "template": "x"}]}
    seeds = [json.dumps(about).encode(), json.dumps(several).encode()]
    return file_as(folder / "tokenizer_config.json", lambda p: checkpoint_at(p.parent)), seeds


def tokenizer_names(folder: Path) -> Made:
    """tokenizer_config.json beside a tokenizer.json, to which it adds tokens."""
    (folder / "tokenizer.json").write_bytes(tokenizer_json(tiny_tokenizer()))
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": True}}
    decoder = {"300": {"content": "<x>", "special": True}, "1": {"content": "<s>"}}
    more = {"extra_special_tokens": {"image_token": "<y>"}, "pad_token": None}
    seeds = [
        json.dumps({**names, "added_tokens_decoder": decoder}).encode(),
        json.dumps({**names, **more, "additional_special_tokens": ["<z>"]}).encode(),
    ]
    path = folder / "tokenizer_config.json"
    return file_as(path, lambda p: vocabulary_at(p.with_name("tokenizer.json"))), seeds


def meta_tensors() -> dict[str, Array]:
    """The tiny model's, by Meta's names; its classifier is its embedding."""
    names = {
        "model.": "",
        "embed_tokens": "tok_embeddings",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
    }
    found = {}
    for name, array in tiny_tensors().items():
        for theirs, metas in names.items():
            name = name.replace(theirs, metas)
        found[name] = array
    return found | {"output.weight": found["tok_embeddings.weight"]}


def params(folder: Path) -> Made:
    torch_file(folder / "consolidated.00.pth", *torch_state(meta_tensors()))
    scaled = {"use_scaled_rope": True, "rope_scaling_factor": 32.0, "rope_theta": 5e5}
    formula = {"multiple_of": 4, "ffn_dim_multiplier": 0.5, "vocab_size": -1, "norm_eps": 1e-6}
    seeds = [json.dumps(PARAMS | more).encode() for more in ({}, scaled, formula)]
    return file_as(folder / "params.json", lambda path: checkpoint_at(path.parent)), seeds


def meta_shard(folder: Path) -> Made:
    """The second of two shards, which the first one's tensors are joined with."""
    (folder / "params.json").write_text(json.dumps(PARAMS | {"vocab_size": 6}), "utf-8")
    halves: list[dict[str, Array]] = [{}, {}]
    for name, array in meta_tensors().items():
        if len(array) == 5:  # tokens, which would not halve
            array = np.resize(array, (6, 8))
        by_columns = name.startswith("tok_embeddings") or ".wo." in name or ".w2." in name
        for part, half in enumerate(halves):
            axis = 1 if by_columns else 0
            mine = array if array.ndim == 1 else np.split(array, 2, axis)[part]
            half[name] = np.ascontiguousarray(mine)
    paths = [folder / f"consolidated.{part:02d}.pth" for part in range(2)]
    for half, path in zip(halves, paths, strict=True):
        torch_file(path, *torch_state(half))
    return pickle_within(paths[1], folder), [torch_state(halves[1])[0]]


def torch(folder: Path) -> Made:
    path = huggingface(folder, "torch")
    seeds = [path.read_bytes(), huggingface(folder, "torch", "<f2").read_bytes()]
    return file_as(path, lambda path: checkpoint_at(path.parent)), seeds


def pickle_within(path: Path, target: Path) -> Read:
    """Puts data.pkl into a zip that is whole: its checksums would hide a fuzzer's from us."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in contents if name.endswith("data.pkl"))

    def read(data: bytes) -> None:
        with zipfile.ZipFile(path, "w") as out:
            for name, content in (contents | {pickled: data}).items():
                out.writestr(name, content)
        checkpoint_at(target)

    return read


def pickled(folder: Path) -> Made:
    path = huggingface(folder, "torch")
    read = pickle_within(path, folder)
    good, _ = torch_state(tiny_tensors())
    several = pickle.dumps({"model": [1, 2.5, None, True, {"a": (1, b"x")}]}, 4)
    return read, [good, program(dict_program({"model": pickled_text("x")})), several]


def trainer(folder: Path) -> Made:
    """ckpt.pt of llama2.c's train.py: the weights are one of several values."""
    args = {key: number(value) for key, value in PARAMS.items()} | {"max_seq_len": number(16)}
    state, storages = torch_state({f"_orig_mod.{k}": a for k, a in meta_tensors().items()})
    inner = state.removeprefix(b"\x80\x02").removesuffix(b".")
    good = program(dict_program({"model": inner, "model_args": dict_program(args)}))
    path = folder / "ckpt.pt"
    torch_file(path, good, storages)
    return pickle_within(path, path), [good]


def tokenizer_bin(folder: Path) -> Made:
    path = folder / "tokenizer.bin"
    write_tokenizer_bin(tiny_tokenizer(), path)
    return file_as(path, vocabulary_at), [path.read_bytes()]


def byte_level() -> bytes:
    pieces = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" the", b"in"]
    return b"".join(b64encode(p) + b" %d\n" % rank for rank, p in enumerate(pieces))


def ranks(folder: Path) -> Made:
    return file_as(folder / "tokenizer.model", vocabulary_at), [byte_level()]


def tokenizer_json_(folder: Path) -> Made:
    seeds = [tokenizer_json(tiny_tokenizer()), tokenizer_json(parse_ranks(byte_level()))]
    seeds.append(seeds[1].replace(b'"normalizer": null', b'"normalizer": {"type": "NFC"}'))
    assert seeds[2] != seeds[1]
    return file_as(folder / "tokenizer.json", vocabulary_at), seeds


def early_specials() -> Tokenizer:
    """Special tokens before the bytes, and pieces that sentencepiece would find in every text."""
    tiny = tiny_tokenizer()
    pieces = [tiny.piece(token) for token in range(len(tiny))]
    pieces[3:3] = [b"[INST]", b"  ", b"th"]
    scores = [0.0] * 3 + [tiny.score(token) for token in range(len(tiny))]
    return Tokenizer(pieces, scores, Specials({"  ": 4, "th": 5}, {"[INST]": 3}), first_byte=6)


def sentencepiece(folder: Path) -> Made:
    seeds = [sentencepiece_model(tiny_tokenizer()), sentencepiece_model(early_specials())]
    return file_as(folder / "tokenizer.model", vocabulary_at), seeds


def session(folder: Path) -> Made:
    """With the right fingerprint and checksum, whatever is between."""
    backend, path = Reference(random_checkpoint(TINY)), folder / "s.session"
    cache = backend.new_cache()
    tokens = [1, 5, 9]
    backend.run(tokens, [cache] * 3, range(3), [2])
    write_session(path, backend, cache, tokens)
    whole, mark = path.read_bytes(), fingerprint(backend)

    def read(data: bytes) -> None:
        data = data.replace(b"?" * len(mark), mark)
        path.write_bytes(data + hashlib.sha256(data).digest())
        read_session(path, backend)

    return read, [whole[:-32].replace(mark, b"?" * len(mark))]


READERS: dict[str, Callable[[Path], Made]] = {
    "gguf": gguf,
    "gguf-part": gguf_part,
    "gguf-vocabulary": gguf_vocabulary,
    "llama2c": llama2c,
    "safetensors": safetensors,
    "index": index,
    "config": config,
    "tokenizer-config": tokenizer_config,
    "tokenizer-names": tokenizer_names,
    "params": params,
    "meta-shard": meta_shard,
    "torch": torch,
    "pickle": pickled,
    "trainer": trainer,
    "tokenizer-bin": tokenizer_bin,
    "ranks": ranks,
    "tokenizer-json": tokenizer_json_,
    "sentencepiece": sentencepiece,
    "session": session,
}

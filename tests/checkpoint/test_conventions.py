"""What a checkpoint's metadata says about texts: the chat template, BOS, what ends a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2py
from llama2py import Chat, CheckpointError, Model, convert
from llama2py.checkpoint import Conventions, open_checkpoint
from llama2py.cli import main
from llama2py.tokenizers.tokenizer import BOS, EOS
from tests.conftest import tiny_tokenizer
from tests.support import foreign_files as foreign
from tests.support import gguf_files as made
from tests.support.scripted import ScriptedBackend
from tests.test_conversion import make

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def directory(folder: Path, **files: Any) -> Path:
    """Hugging Face's, with the tiny model and these files (their names with a dot for __)."""
    files = {"config__json": foreign.CONFIG} | files
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    data = foreign.safetensors_file(*foreign.safetensors(foreign.tiny_tensors()))
    (folder / "model.safetensors").write_bytes(data)
    return folder


def of_directory(folder: Path, **files: Any) -> Conventions:
    with open_checkpoint(directory(folder, **files)) as checkpoint:
        assert checkpoint.chat_template == checkpoint.conventions.chat_template
        return checkpoint.conventions


def of_gguf(folder: Path, **changes: Any) -> Conventions:
    """``x__y`` is tokenizer.x.y."""
    pairs = {f"tokenizer.{name.replace('__', '.')}": value for name, value in changes.items()}
    tensors = {name: (0, w.shape, w.tobytes()) for name, w in made.weights().items()}
    path = folder / "tiny.gguf"
    path.write_bytes(made.gguf_file(made.metadata() | pairs, *made.lay_out(tensors)))
    with open_checkpoint(path) as checkpoint:
        return checkpoint.conventions


def test_a_bare_directory_says_nothing(tmp_path: Path) -> None:
    assert of_directory(tmp_path) == Conventions()


def test_a_directory_that_says_everything(tmp_path: Path) -> None:
    found = of_directory(
        tmp_path,
        tokenizer_config__json={"chat_template": CHATML, "add_bos_token": False},
        generation_config__json={"eos_token_id": [1, 3]},
        config__json=foreign.CONFIG | {"eos_token_id": 2},
    )
    assert found == Conventions(CHATML, False, frozenset([1, 3]))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"config__json": foreign.CONFIG | {"eos_token_id": 2}},
            Conventions(end_tokens=frozenset([2])),
        ),
        (
            {"config__json": foreign.CONFIG | {"eos_token_id": [2, 4]}},
            Conventions(end_tokens=frozenset([2, 4])),
        ),
        ({"generation_config__json": {"max_length": 3}}, Conventions()),
        ({"chat_template__jinja": CHATML}, Conventions(CHATML)),
        (
            {"chat_template__jinja": CHATML, "tokenizer_config__json": {"chat_template": "old"}},
            Conventions(CHATML),
        ),
        (
            {
                "tokenizer_config__json": {
                    "chat_template": [
                        {"name": "tool_use", "template": "x"},
                        {"name": "default", "template": CHATML},
                    ]
                }
            },
            Conventions(CHATML, named_templates={"tool_use": "x"}),
        ),
        (
            {
                "tokenizer_config__json": {"chat_template": [{"name": "rag", "template": "r"}]},
                "chat_template__jinja": CHATML,
            },
            Conventions(CHATML, named_templates={"rag": "r"}),
        ),
        ({"tokenizer_config__json": {"chat_template": [{"name": "rag"}, 3]}}, Conventions()),
        ({"tokenizer_config__json": {"chat_template": None, "add_bos_token": None}}, Conventions()),
    ],
)
def test_the_files_of_a_directory_have_an_order_of_precedence(
    files: Any, expected: Conventions, tmp_path: Path
) -> None:
    assert of_directory(tmp_path, **files) == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config__json": "{"}, "tokenizer_config.json: this is not JSON"),
        ({"tokenizer_config__json": {"chat_template": 3}}, "chat_template is 3, expected a string"),
        ({"tokenizer_config__json": {"add_bos_token": "no"}}, "expected true or false"),
        ({"generation_config__json": {"eos_token_id": "2"}}, "expected token ids"),
        ({"generation_config__json": {"eos_token_id": [1, True]}}, "expected token ids"),
        ({"generation_config__json": {"eos_token_id": [0] * 2000}}, "expected token ids"),
        (
            {"generation_config__json": {"eos_token_id": 5}},
            "end token 5 is outside the vocabulary",
        ),
        (
            {"generation_config__json": {"eos_token_id": -1}},
            "end token -1 is outside the vocabulary",
        ),
        ({"chat_template__jinja": "x" * ((1 << 20) + 1)}, "expected a chat template"),
    ],
)
def test_a_directory_with_wrong_metadata_is_an_error(
    files: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as raised:
        of_directory(tmp_path, **files)
    assert message in str(raised.value)


def test_a_template_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    directory(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="expected UTF-8"):
        open_checkpoint(tmp_path)


def test_gguf_metadata_says_the_conventions(tmp_path: Path) -> None:
    assert of_gguf(tmp_path) == Conventions()
    found = of_gguf(
        tmp_path,
        chat_template=CHATML.encode(),
        ggml__add_bos_token=True,
        ggml__eos_token_id=2,
        ggml__eot_token_id=4,
    )
    assert found == Conventions(CHATML, True, frozenset([2, 4]))


def test_a_directory_may_have_more_templates_in_a_folder(tmp_path: Path) -> None:
    """As transformers writes several templates."""
    directory(tmp_path, chat_template__jinja=CHATML)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("x", "utf-8")
    with open_checkpoint(tmp_path) as checkpoint:
        found = checkpoint.conventions
    assert found == Conventions(CHATML, named_templates={"tool_use": "x"})


def test_a_gguf_file_may_have_several_templates(tmp_path: Path) -> None:
    found = of_gguf(tmp_path, chat_template=CHATML.encode(), chat_template__rag=b"r")
    assert (found.chat_template, found.named_templates) == (CHATML, {"rag": "r"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chat_template__rag": 3}, "tokenizer.chat_template.rag is 3, expected a string"),
        ({"chat_template": 3}, "tokenizer.chat_template is 3, expected a string"),
        ({"ggml__add_bos_token": 1}, "add_bos_token is 1, expected true or false"),
        ({"ggml__eos_token_id": b"2"}, "eos_token_id is b'2', expected a whole number"),
    ],
)
def test_gguf_with_wrong_metadata_is_an_error(changes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        of_gguf(tmp_path, **changes)
    assert message in str(raised.value)


def test_an_end_token_outside_of_a_gguf_vocabulary_is_ignored(tmp_path: Path) -> None:
    """llama.cpp does so, too; 4294967295 is the usual spelling of none."""
    found = of_gguf(
        tmp_path,
        ggml__eos_token_id=0xFFFFFFFF,
        ggml__eot_token_id=6,
        ggml__eom_token_id=5,
    )
    assert found == Conventions(end_tokens=frozenset([5]))


def test_the_end_tokens_of_a_gguf_are_found_by_their_texts(tmp_path: Path) -> None:
    """llama.cpp ends a text there although the file names only one token."""
    tokens = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
    tokens += [b"<|im_start|>", b"<|im_end|>", b"<end_of_turn>", b"a"]
    types = [2, 3, 3, *[6] * 256, 3, 3, 1, 1]
    values: dict[str, Any] = {
        "model": b"llama", "tokens": tokens, "scores": [0.0] * 263, "token_type": types,
        "eos_token_id": 2,
    }  # fmt: skip
    path = tmp_path / "chat.gguf"
    weights = made.weights() | {"token_embd.weight": np.zeros((263, 32), np.float32)}
    tensors = {name: (0, w.shape, w.tobytes()) for name, w in weights.items()}
    pairs = {f"tokenizer.ggml.{name}": value for name, value in values.items()}
    path.write_bytes(made.gguf_file(made.metadata() | pairs, *made.lay_out(tensors)))
    with llama2py.load(path) as model:
        assert model.stop_tokens == {1, 2, 260, 261}
        assert model.conventions.end_tokens == {2, 260, 261}
    # What is written ends a text at the same tokens.
    for name in ("again.gguf", "again"):
        convert(path, tmp_path / name)
        with llama2py.load(tmp_path / name) as model:
            assert model.stop_tokens == {1, 2, 260, 261}


def test_a_text_ends_where_the_metadata_says() -> None:
    """In one text, in many, and not where the caller says otherwise."""
    script = [260, EOS, 261, BOS]
    for conventions, expected in (
        (None, [260, EOS, 261]),  # llama2.c's rule
        (Conventions(end_tokens=frozenset([EOS])), [260]),
        (Conventions(eos_ends=True), [260]),
    ):

        def model(conventions: Conventions | None = conventions) -> Model:
            return Model(ScriptedBackend(script, 300), tiny_tokenizer(), conventions)

        assert model().generate().tokens == expected
        assert [one.tokens for one in model().generate([""])] == [expected]
        assert "".join(model().stream()) == model().tokenizer.decode([BOS, *expected])
        assert model().generate(stop_tokens=[BOS]).tokens == [260, EOS, 261]


def test_a_loaded_model_keeps_the_conventions(test_data: Path) -> None:
    formats = test_data / "data" / "formats"
    with llama2py.load(formats / "stories260K-hf") as model:
        assert model.conventions.add_bos is True
        assert BOS in model.stop_tokens
    with llama2py.load(formats / "stories260K-meta") as model:  # no file says so: Meta's code does
        assert model.stop_tokens == {BOS, EOS}
    data = test_data / "data"
    with llama2py.load(data / "stories260K.bin", data / "tok512.bin") as model:
        assert model.stop_tokens == {BOS}


def test_a_chat_uses_the_template_of_a_directory(tmp_path: Path) -> None:
    """Everything comes from files: five tokens, of which b stands for bytes without a token."""
    tokenizer = {
        "added_tokens": [
            {"id": 3, "content": "<|im_start|>", "special": True},
            {"id": 4, "content": "<|im_end|>", "special": True},
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "model": {
            "type": "BPE",
            "vocab": {"a": 0, "b": 1, "ab": 2},
            "merges": ["a b"],
            "unk_token": "b",
        },
    }
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": CHATML}
    directory(
        tmp_path,
        config__json={**foreign.CONFIG, "max_position_embeddings": 64},
        tokenizer__json=tokenizer,
        tokenizer_config__json=names,
        generation_config__json={"eos_token_id": 4},
    )
    with llama2py.load(tmp_path) as model, Chat(model, "ba", temperature=0) as chat:
        assert chat.template == "chatml"
        assert model.stop_tokens == {3, 4}
        stream = chat.say("ab")
        system, user, assistant = [1] * 7, [1] * 5, [0, 1, 1, 1, 1, 1, 0, 1, 1, 1]  # and "\n"
        turns = [3, *system, 1, 0, 4, 1, 3, *user, 2, 4, 1, 3, *assistant]
        assert stream.prompt_tokens == turns
        for _ in stream:
            pass
        assert len(stream.tokens) <= 64 - len(turns) + 1


def test_info_names_the_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for jinja, name in (
        (CHATML, "chatml"),
        ("{{ x }}", "its own, run by llama2py[chat]"),
        (None, "none"),
    ):
        directory(tmp_path, tokenizer_config__json={"chat_template": jinja})
        assert main(["info", str(tmp_path)]) == 0
        assert f"\ntemplate     {name}\n" in capsys.readouterr().out


# ---- written ----


@pytest.mark.parametrize("ends", [[2], [2, 259], [7, 259], [2, 7, 259], [2, 7, 11, 259]])
def test_conversion_keeps_the_end_tokens(
    ends: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a chat's model there may be several; GGUF has names for three."""
    model = make(tmp_path / "model")
    about = json.dumps({"bos_token_id": 1, "eos_token_id": ends})
    (model / "generation_config.json").write_text(about, encoding="ascii")
    template = "{{ '[INST]' }}{{ '<<SYS>>' }}"
    (model / "chat_template.jinja").write_text(template, encoding="ascii")
    convert(model, tmp_path / "a.gguf")
    convert(tmp_path / "a.gguf", tmp_path / "b")
    convert(model, tmp_path / "c")
    whole = {2, *ends}  # the vocabulary's own, too
    for name, expected in {
        "a.gguf": whole - {259} if len(whole) > 3 else whole,
        "c": whole,
    }.items():
        for path in (tmp_path / name, tmp_path / name.replace("a.gguf", "b")):
            with open_checkpoint(path) as checkpoint:
                assert checkpoint.conventions.end_tokens == expected
                assert checkpoint.chat_template == template
    assert ("GGUF holds only 3 of the 4 tokens that end a text" in caplog.text) == (len(whole) > 3)

"""The files of a run never replace or delete anybody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama2py import ParameterError, TrainingError
from llama2py.formats.corpus import read_stories
from llama2py.training import Output, train
from tests.conftest import tiny_tokenizer
from tests.support.tiny_training import write_corpus


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_other_files_is_refused(tmp_path: Path, fresh: bool) -> None:
    folder = tmp_path / "data.train"
    folder.mkdir()
    for name in ("photo.png", "history.csv", "best.bin"):
        (folder / name).write_text("mine")
    with pytest.raises(TrainingError, match=r"data\.train: this folder holds 'photo\.png'"):
        Output(tmp_path / "data.bin").begin(tiny_tokenizer(), ["A story."], fresh)
    assert {path.name for path in tmp_path.iterdir()} == {"data.train"}
    assert {path.read_text() for path in folder.iterdir()} == {"mine"}


def test_fresh_deletes_what_training_wrote_and_nothing_else(tmp_path: Path) -> None:
    output = Output(tmp_path / "data.bin")
    output.begin(tiny_tokenizer(), ["A story."], fresh=False)
    for path in (output.state, output.best, output.history, output.curve):
        path.write_text("old")
    (output.folder / "notes.txt").write_text("mine")
    (output.folder / "state.pt.bak").write_text("mine")
    output.begin(tiny_tokenizer(), ["Another story."], fresh=True)
    names = {path.name for path in output.folder.iterdir()}
    assert names == {"held-out.txt", "notes.txt", "state.pt.bak"}
    assert read_stories(output.held_out) == ["Another story."]


def test_a_run_that_was_killed_before_its_first_state_begins_again(tmp_path: Path) -> None:
    output = Output(tmp_path / "data.bin")
    output.begin(tiny_tokenizer(), ["A story."], fresh=False)
    (output.folder / ".llama2py-0123456789abcdef.tmp").write_text("left by kill -9")
    output.begin(tiny_tokenizer(), ["A story."], fresh=False)


def test_a_folder_where_a_file_belongs_is_an_error(tmp_path: Path) -> None:
    output = Output(tmp_path / "data.bin")
    (output.folder / "best.bin").mkdir(parents=True)
    with pytest.raises(TrainingError, match="cannot be created or cleared"):
        output.begin(tiny_tokenizer(), [], fresh=True)
    (tmp_path / "file.train").write_text("a file")
    with pytest.raises(TrainingError, match="cannot be created or cleared"):
        Output(tmp_path / "file.bin").begin(tiny_tokenizer(), [], fresh=True)


def test_an_unsuitable_group_size_is_refused_before_training(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "stories.txt")
    for size in (0, 7, 256):
        with pytest.raises(ParameterError, match="expected a positive divisor of dim 128"):
            train(corpus, Output(tmp_path / "s.bin", int8=True, group_size=size))


@pytest.mark.parametrize("name", ["", ".", "..", "story.train", "/"])
def test_a_path_without_a_usable_name_is_an_error(name: str) -> None:
    with pytest.raises(TrainingError, match="use one like"):
        Output(name)


@pytest.mark.parametrize("name", ["x" * 300 + ".bin", "nul\0.bin", "y" * 5000])
def test_a_name_that_the_system_refuses_is_one_sentence(tmp_path: Path, name: str) -> None:
    corpus = write_corpus(tmp_path / "stories.txt")
    with pytest.raises(TrainingError, match="cannot be"):
        train(corpus, tmp_path / name)


@pytest.mark.parametrize(
    "name", ["story.bin", "story.train/held-out.txt", "story.train/../story.bin"]
)
def test_training_does_not_overwrite_its_corpus(tmp_path: Path, name: str) -> None:
    (tmp_path / "story.train").mkdir()
    corpus = write_corpus(tmp_path / name)
    before = corpus.read_bytes()
    with pytest.raises(TrainingError, match="training would overwrite this file"):
        train(corpus, tmp_path / "story.bin")
    assert corpus.read_bytes() == before

"""The files of a run never replace or delete anybody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama2py import ParameterError, TrainingError
from llama2py.formats.corpus import read_stories
from llama2py.formats.file_lock import HAVE_LOCKS
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
    output.path.write_text("old")
    (output.folder / "notes.txt").write_text("mine")
    (output.folder / "state.pt.bak").write_text("mine")
    output.begin(tiny_tokenizer(), ["Another story."], fresh=True)
    names = {path.name for path in output.folder.iterdir()}
    assert names == {"held-out.txt", "notes.txt", "state.pt.bak"}
    assert read_stories(output.held_out) == ["Another story."]
    assert not output.path.exists()  # it does not fit the new vocabulary


def test_fresh_keeps_a_checkpoint_that_no_run_wrote(tmp_path: Path) -> None:
    output = Output(tmp_path / "data.bin")
    output.path.write_text("mine")
    output.begin(tiny_tokenizer(), ["A story."], fresh=True)
    assert output.path.read_text() == "mine"  # until the first measurement


@pytest.mark.skipif(not HAVE_LOCKS, reason="this system has no flock")
def test_a_second_run_with_the_same_output_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    first, second = Output(tmp_path / "data.bin"), Output(tmp_path / "data.bin")
    first.begin(tiny_tokenizer(), ["A story."], fresh=False)
    before = first.held_out.read_bytes()
    message = r"data\.bin: another process is training this output"
    with pytest.raises(TrainingError, match=message):
        second.claim()
    for fresh in (False, True):
        with pytest.raises(TrainingError, match=message):
            second.begin(tiny_tokenizer(), ["Another story."], fresh)
    assert first.held_out.read_bytes() == before
    first.release()
    second.begin(tiny_tokenizer(), ["Another story."], fresh=False)
    assert first.held_out.read_bytes() != before
    second.release()


@pytest.mark.skipif(not HAVE_LOCKS, reason="this system has no flock")
def test_train_claims_its_output_before_it_reads_the_corpus(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "stories.txt")
    first = Output(tmp_path / "data.bin")
    first.begin(tiny_tokenizer(), ["A story."], fresh=False)
    lines: list[str] = []
    with pytest.raises(TrainingError, match="another process is training this output"):
        train(corpus, first.path, report=lines.append)
    assert lines == []
    first.release()


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

"""Corpora: how stories are separated, and which files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2py import CorpusError
from llama2py.formats.corpus import read_stories

# Letters, white space within a story, and parts of the separator.
STORIES = st.lists(
    st.text(st.sampled_from("aé🐶 \n.<|>"), min_size=1, max_size=12).map(str.strip).filter(bool),
    min_size=1,
    max_size=5,
)


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "stories.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "stories"),
    [
        ("One.", ["One."]),
        ("One.\n\nStill one.\n", ["One.\n\nStill one."]),
        ("One.\n<|endoftext|>\nTwo.\n", ["One.", "Two."]),
        ("One.\n<|endoftext|>\nTwo.\n<|endoftext|>\n", ["One.", "Two."]),
        ("<|endoftext|>\n\n One.\t\n<|endoftext|>\n \n<|endoftext|>Two.", ["One.", "Two."]),
        ("One.\r\n<|endoftext|>\r\nTwo.\r\n", ["One.", "Two."]),
        ("Ein <|endof text|> Bär 🐻", ["Ein <|endof text|> Bär 🐻"]),
    ],
)
def test_stories_are_separated_and_stripped(
    tmp_path: Path, content: str, stories: list[str]
) -> None:
    assert read_stories(written(tmp_path, content)) == stories


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    assert read_stories(str(written(tmp_path, "One."))) == ["One."]


@given(stories=STORIES)
def test_joined_stories_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, stories: list[str]
) -> None:
    path = written(tmp_path_factory.getbasetemp(), "\n<|endoftext|>\n".join(stories))
    assert read_stories(path) == stories


def test_crlf_ends_a_line(tmp_path: Path) -> None:
    """A text that was saved on Windows is the same text to a model."""
    assert read_stories(written(tmp_path, "A.\r\nB.\r\n<|endoftext|>\r\nC.")) == ["A.\nB.", "C."]


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    assert read_stories(written(tmp_path, b"\xef\xbb\xbfOne.")) == ["One."]


@pytest.mark.parametrize("content", ["", " \r\n\t\n", "<|endoftext|>", "\n<|endoftext|>\n" * 3])
def test_a_file_without_a_story_is_an_error(tmp_path: Path, content: str) -> None:
    with pytest.raises(CorpusError, match=r"stories\.txt: the text holds no story"):
        read_stories(written(tmp_path, content))


def test_an_error_says_which_byte_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"stories\.txt: byte 3 is not UTF-8"):
        read_stories(written(tmp_path, b"abc\xff"))


def test_utf16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="byte 0 is not UTF-8"):
        read_stories(written(tmp_path, "One.".encode("utf-16")))


def test_an_error_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"none\.txt: cannot be read \(No such file"):
        read_stories(tmp_path / "none.txt")


def test_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="this is a directory"):
        read_stories(tmp_path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device here")
def test_a_device_that_never_ends_is_refused() -> None:
    with pytest.raises(CorpusError, match="/dev/zero: this is a device, pipe or socket"):
        read_stories("/dev/zero")

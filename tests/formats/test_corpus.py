"""Files of stories: what parts them, and which files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2py import CorpusError
from llama2py.formats.corpus import read_stories

# Letters, white space that belongs to a story, and pieces of the separator that are not one.
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
def test_stories_are_parted_and_stripped(tmp_path: Path, content: str, stories: list[str]) -> None:
    assert read_stories(written(tmp_path, content)) == stories


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    assert read_stories(str(written(tmp_path, "One."))) == ["One."]


@given(stories=STORIES)
def test_what_was_joined_comes_back(
    tmp_path_factory: pytest.TempPathFactory, stories: list[str]
) -> None:
    path = written(tmp_path_factory.getbasetemp(), "\n<|endoftext|>\n".join(stories))
    assert read_stories(path) == stories


def test_lines_that_end_in_crlf_are_lines(tmp_path: Path) -> None:
    """The same text, saved on Windows, is the same text to a model."""
    assert read_stories(written(tmp_path, "A.\r\nB.\r\n<|endoftext|>\r\nC.")) == ["A.\nB.", "C."]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read_stories(written(tmp_path, b"\xef\xbb\xbfOne.")) == ["One."]


@pytest.mark.parametrize("content", ["", " \r\n\t\n", "<|endoftext|>", "\n<|endoftext|>\n" * 3])
def test_a_file_without_a_story_is_an_error(tmp_path: Path, content: str) -> None:
    with pytest.raises(CorpusError, match=r"stories\.txt: there is no story in it"):
        read_stories(written(tmp_path, content))


def test_bytes_that_are_not_utf8_are_an_error_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"stories\.txt: byte 3 is not UTF-8"):
        read_stories(written(tmp_path, b"abc\xff"))


def test_utf16_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="byte 0 is not UTF-8"):
        read_stories(written(tmp_path, "One.".encode("utf-16")))


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"none\.txt: cannot be read \(No such file"):
        read_stories(tmp_path / "none.txt")


def test_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot be read"):
        read_stories(tmp_path)

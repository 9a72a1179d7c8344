"""``run -m chat`` with templates."""

from __future__ import annotations

import pytest

from llama2py import load
from llama2py.chat.dialogue import Chat
from llama2py.cli import main


@pytest.mark.parametrize("template", ["llama2", "zephyr", "plain"])
def test_the_template_is_the_librarys(
    template: str, story: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["-m", "chat", "--template", template, "-t", "0", "-n", "60", "-y", "", "-i", "Hello"]
    assert main([*story, *flags]) == 0
    told = capsys.readouterr().out
    with load(story[1], story[3]) as model:
        chat = Chat(model, temperature=0, max_tokens=60, template=template)
        answer = "".join(chat.say("Hello"))
    assert answer
    assert told.startswith(f"Assistant: {answer.removeprefix(' ')}\n")


def test_a_template_that_the_model_cannot_write(
    story: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*story, "-m", "chat", "--template", "chatml", "-i", "Hi"]) == 1
    assert "ends an answer with <|im_end|>" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*story, "-m", "chat", "--template", "alpaca"])
    assert "'chatml', 'llama2', 'llama3', 'mistral', 'plain', 'zephyr'" in capsys.readouterr().err

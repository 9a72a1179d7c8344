"""Run the programs of docs/cookbook/ as a user would, and check what their first lines promise.

These tests need only pytest and an installed llama2py, so that `.ci/run` can run them on a wheel
outside the source tree. ``python tests/test_cookbook.py`` rewrites docs/cookbook.md.
"""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

import llama2py

DOCS = Path(__file__).resolve().parent.parent / "docs"
PROGRAMS = sorted((DOCS / "cookbook").glob("*.py"))
PAGE = DOCS / "cookbook.md"
# Programs import the package that these tests import, whatever their working directory.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(llama2py.__file__).resolve().parent.parent),
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONWARNINGS": "error",
}


def program(number: int) -> Path:
    (path,) = (path for path in PROGRAMS if path.name.startswith(f"{number:02}_"))
    return path


def run(number: int, folder: Path, *arguments: str, stdin: str = "") -> str:
    """Run a program in this folder. Return its output; fail unless it exits with 0."""
    done = subprocess.run(
        [sys.executable, str(program(number)), *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def model() -> llama2py.Model:
    return llama2py.load()


# ---- the page ----


def page() -> str:
    """Return the whole page: each program under the first sentence of its docstring."""
    parts = [
        "# Cookbook\n\nTwelve short, complete programs. Each runs as it is, with the built-in model"
        " and without network. The files are in\n`docs/cookbook/`; the tests run them.\n"
    ]
    for path in PROGRAMS:
        code = path.read_text(encoding="utf-8")
        title = re.split(r":\s|\.\n", ast.get_docstring(ast.parse(code)) or "")[0]
        parts.append(f"## {title}\n\n[{path.name}](cookbook/{path.name})\n\n```python\n{code}```\n")
    return "\n".join(parts)


def test_the_cookbook_has_twelve_programs() -> None:
    assert [path.name[:3] for path in PROGRAMS] == [f"{n:02}_" for n in range(1, 13)]


def test_the_page_shows_the_programs_as_they_are() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/test_cookbook.py"


# ---- what each promises ----


def test_the_web_handler_streams_stories_and_refuses_bad_requests(
    tmp_path: Path, model: llama2py.Model
) -> None:
    """The program answers its own request. As a server it streams and refuses bad requests."""
    out = run(1, tmp_path)
    told = model.generate("One day", 200, temperature=0.7, seed=7).text
    assert out.endswith(f"One day{told}\n\n")
    code = f"""\
import runpy, threading
wsgi = runpy.run_path({str(program(1))!r})
with wsgi["make_server"]("localhost", 0, wsgi["application"], server_class=wsgi["Server"]) as s:
    print(s.server_port, flush=True)
    s.serve_forever()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            url = f"http://localhost:{server.stdout.readline().strip()}/"
            with urlopen(f"{url}?prompt=A%20%F0%9F%90%B6&seed=3", timeout=30) as answer:
                text = answer.read().decode()
            told = model.generate("A 🐶", 200, temperature=0.7, seed=3).text
            assert text == f"A 🐶{told}\n"
            for query, status, said in [
                ("seed=-1", 400, "seed is -1, expected"),
                ("seed=x", 400, "'x'"),
                ("prompt=" + 600 * "dog+", 413, "longer than the model's context"),
            ]:
                with pytest.raises(HTTPError) as refused:
                    urlopen(f"{url}?{query}", timeout=30)
                assert refused.value.code == status
                assert said in refused.value.read().decode()
        finally:
            server.send_signal(signal.SIGTERM)


def test_many_stories_resume_an_interrupted_run(tmp_path: Path) -> None:
    path = tmp_path / "stories.jsonl"
    run(2, tmp_path)
    whole = path.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["seed"] for line in lines] == list(range(1, 21))
    teller = llama2py.StoryTeller()
    for line in (lines[0], lines[-1]):
        assert line["text"] == teller(seed=line["seed"], max_words=150).text
    path.write_bytes(whole[: len(whole) // 2])  # an interrupted run: the last line is incomplete
    assert "stories.jsonl: 20 stories" in run(2, tmp_path)
    assert path.read_bytes() == whole
    run(2, tmp_path, "3", "other.jsonl")
    assert (tmp_path / "other.jsonl").read_bytes() == b"".join(whole.splitlines(True)[:3])
    assert "20 stories" in run(
        2, tmp_path, "3"
    )  # the file has more stories than requested: all stay
    assert path.read_bytes() == whole


def test_scoring_ranks_texts_by_perplexity(tmp_path: Path, model: llama2py.Model) -> None:
    out = run(3, tmp_path)
    ranked = re.findall(r"^ +([\d.]+)  (.*)$", out, re.MULTILINE)
    assert [text.split()[-1] for _, text in ranked] == ["park.", "parliament.", "once."]
    for shown, text in ranked:
        assert float(shown) == pytest.approx(model.perplexity(text), abs=0.06)
    assert re.search(r"most surprising: '\w+' \(-\d+\.\d\) after '.* the par'", out)
    assert re.search(r"all texts: \d\.\d\d bits per byte$", out.strip())


def test_the_chat_takes_turns(tmp_path: Path) -> None:
    """With fixed questions, and with a user who types."""
    out = run(4, tmp_path)
    assert re.findall(r"^User: (.*)$", out, re.MULTILINE) == [
        "Tell me about a cat.",
        "And what did the dog say?",
    ]
    rooms = [int(n) for n in re.findall(r"room for (\d+) more tokens", out)]
    assert len(rooms) == 2
    assert 512 > rooms[0] > rooms[1] > 0  # the second turn still holds the first
    checkpoint = str(Path(llama2py.__file__).parent / "_data" / "story.bin")
    out = run(4, tmp_path, checkpoint, stdin="Hello!\n\n")
    assert "User: Hello!\nAssistant:" in out
    assert out.count("Assistant:") == 1


def test_the_custom_sampler_keeps_its_rules(tmp_path: Path) -> None:
    out = run(5, tmp_path)
    story, figures = out.rstrip("\n").rsplit("\n", 1)
    assert "k" not in story.lower()
    assert len(story) > 300
    assert figures == "0 times k; 0 repeated sequences"


def test_the_notebook_shows_a_story_and_coloured_tokens(
    tmp_path: Path, model: llama2py.Model
) -> None:
    out = run(6, tmp_path)
    told = model.generate("The moon was", 40, temperature=0.7, seed=1).text
    assert out.startswith(told + "\n")
    shown = (tmp_path / "notebook.html").read_text(encoding="utf-8")
    assert "<article" in shown
    assert shown.count("<span") == 40
    coloured = shown.split("</article>")[1]
    text = re.sub(r"<[^>]*>", "", coloured).strip()
    assert text == told.strip().replace("'", "&#x27;").replace('"', "&quot;")


def test_the_pytest_fixture_runs_four_tests(tmp_path: Path) -> None:
    assert "4 passed" in run(7, tmp_path)


def test_threads_generate_the_same_texts_as_one_thread(tmp_path: Path) -> None:
    out = run(8, tmp_path).splitlines()
    assert out[0] == "16 texts from 8 threads, 16 different texts"
    assert out[1] == "same texts as one thread"
    assert re.fullmatch(r"cancelled after \d+ texts", out[2])


def test_asyncio_streams_while_the_event_loop_runs(tmp_path: Path, model: llama2py.Model) -> None:
    out = run(9, tmp_path)
    for prompt, seed in [("Once upon a time", 1), ("One day, a dog", 2)]:
        assert prompt + model.generate(prompt, 80, temperature=0.7, seed=seed).text in out
    beats = re.search(r"the event loop ran (\d+) times in the meantime", out)
    assert beats
    assert int(beats[1]) > 2  # the event loop did not wait for the texts
    assert out.endswith("the endless task was cancelled\n")


def test_each_fork_continues_its_own_first_token(tmp_path: Path, model: llama2py.Model) -> None:
    """Each branch is the greedy continuation of the beginning and one first token."""
    out = run(10, tmp_path)
    beginning, *branches = re.split(r"\n  \.\.", out.removesuffix("\n"))
    tokens = model.tokenizer.encode(beginning)
    with model.session() as session:
        first = (-session.forward(tokens)).argsort()[:3].tolist()
    told = [model.generate([*tokens, token], 39, temperature=0.0) for token in first]
    whole = [
        model.tokenizer.decode([*tokens, t, *g.tokens]) for t, g in zip(first, told, strict=True)
    ]
    assert [beginning + branch for branch in branches] == whole


def test_the_choice_is_one_of_the_words(tmp_path: Path) -> None:
    out = run(11, tmp_path)
    drawn = {w: int(n) for w, n in re.findall(r"(\w+): drawn (\d+) times of 20", out)}
    assert sum(drawn.values()) == 20  # only the words
    assert sum(n > 0 for n in drawn.values()) > 1
    shares = {w: float(p) for w, p in re.findall(r"(\w+): (0\.\d+)", out)}
    assert shares.keys() == drawn.keys()
    assert sum(shares.values()) == pytest.approx(1, abs=0.003)
    assert f"most probable: {max(shares, key=lambda w: shares[w])}" in out
    assert shares["elephant"] < 0.05


def test_the_benchmark_prints_one_row_per_dtype(tmp_path: Path) -> None:
    rows = [line.split() for line in run(12, tmp_path).splitlines()[2:]]
    assert [row[0] for row in rows] == ["float32", "bfloat16", "int8", "int4"]
    megabytes = [float(row[1]) for row in rows]
    assert megabytes == sorted(megabytes, reverse=True)
    assert all(float(speed.replace(",", "")) > 0 for row in rows for speed in row[2:])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

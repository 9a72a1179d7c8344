"""The programs of docs/cookbook/: run as a user would, and kept to what their first lines promise.

Needs nothing but pytest and an installed llama2py, so that `.ci/run` can run it on a wheel away
from this tree. ``python tests/test_cookbook.py`` writes docs/cookbook.md anew.
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
# Of the package that these tests use, wherever a program runs.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(llama2py.__file__).resolve().parent.parent),
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONWARNINGS": "error",
}


def program(number: int) -> Path:
    (path,) = (path for path in PROGRAMS if path.name.startswith(f"{number:02}_"))
    return path


def run(number: int, folder: Path, *arguments: str, stdin: str = "") -> str:
    """What a program prints that ends well, run in a folder of its own."""
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
    """All programs, each under the first sentence of its docstring."""
    parts = [
        "# Cookbook\n\nTwelve short programs, each whole: run as it is, it uses the built-in model"
        " and needs no network.\nThey lie in [docs/cookbook](cookbook), and the tests run them.\n"
    ]
    for path in PROGRAMS:
        code = path.read_text(encoding="utf-8")
        title = re.split(r":\s|\.\n", ast.get_docstring(ast.parse(code)) or "")[0]
        parts.append(f"## {title}\n\n[{path.name}](cookbook/{path.name})\n\n```python\n{code}```\n")
    return "\n".join(parts)


def test_there_are_twelve() -> None:
    assert [path.name[:3] for path in PROGRAMS] == [f"{n:02}_" for n in range(1, 13)]


def test_the_page_shows_them_as_they_are() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/test_cookbook.py"


# ---- what each promises ----


def test_a_web_handler(tmp_path: Path, model: llama2py.Model) -> None:
    """It answers itself; and it serves, pieces as they come, until it is stopped."""
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


def test_many_stories_go_on_where_they_were_stopped(tmp_path: Path) -> None:
    path = tmp_path / "stories.jsonl"
    run(2, tmp_path)
    whole = path.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["seed"] for line in lines] == list(range(1, 21))
    teller = llama2py.StoryTeller()
    for line in (lines[0], lines[-1]):
        assert line["text"] == teller(seed=line["seed"], max_words=150).text
    path.write_bytes(whole[: len(whole) // 2])  # a run that was killed amid a line
    assert "stories.jsonl: 20 stories" in run(2, tmp_path)
    assert path.read_bytes() == whole
    run(2, tmp_path, "3", "other.jsonl")
    assert (tmp_path / "other.jsonl").read_bytes() == b"".join(whole.splitlines(True)[:3])
    assert "20 stories" in run(2, tmp_path, "3")  # there are more than asked for: none is lost
    assert path.read_bytes() == whole


def test_scoring_ranks_texts(tmp_path: Path, model: llama2py.Model) -> None:
    out = run(3, tmp_path)
    ranked = re.findall(r"^ +([\d.]+)  (.*)$", out, re.MULTILINE)
    assert [text.split()[-1] for _, text in ranked] == ["park.", "parliament.", "once."]
    for shown, text in ranked:
        assert float(shown) == pytest.approx(model.perplexity(text), abs=0.06)
    assert re.search(r"most surprising: '\w+' \(-\d+\.\d\) behind '.* the par'", out)
    assert re.search(r"all together: \d\.\d\d bits per byte$", out.strip())


def test_a_chat_takes_turns(tmp_path: Path) -> None:
    """By itself, and with a user who types."""
    out = run(4, tmp_path)
    assert re.findall(r"^User: (.*)$", out, re.MULTILINE) == [
        "Tell me about a cat.",
        "And what did the dog say?",
    ]
    rooms = [int(n) for n in re.findall(r"room for (\d+) more tokens", out)]
    assert len(rooms) == 2
    assert 512 > rooms[0] > rooms[1] > 0  # the first turn is still there in the second
    checkpoint = str(Path(llama2py.__file__).parent / "_data" / "story.bin")
    out = run(4, tmp_path, checkpoint, stdin="Hello!\n\n")
    assert "User: Hello!\nAssistant:" in out
    assert out.count("Assistant:") == 1


def test_a_custom_sampler_keeps_its_rules(tmp_path: Path) -> None:
    out = run(5, tmp_path)
    story, figures = out.rstrip("\n").rsplit("\n", 1)
    assert "k" not in story.lower()
    assert len(story) > 300
    assert figures == "0 times k; 0 threes came twice"


def test_a_notebook(tmp_path: Path, model: llama2py.Model) -> None:
    out = run(6, tmp_path)
    told = model.generate("The moon was", 40, temperature=0.7, seed=1).text
    assert out.startswith(told + "\n")
    shown = (tmp_path / "notebook.html").read_text(encoding="utf-8")
    assert "<article" in shown
    assert shown.count("<span") == 40
    coloured = shown.split("</article>")[1]
    text = re.sub(r"<[^>]*>", "", coloured).strip()
    assert text == told.strip().replace("'", "&#x27;").replace('"', "&quot;")


def test_a_pytest_fixture(tmp_path: Path) -> None:
    assert "4 passed" in run(7, tmp_path)


def test_threads(tmp_path: Path) -> None:
    out = run(8, tmp_path).splitlines()
    assert out[0] == "16 texts of 8 threads, 16 different ones"
    assert out[1] == "the same as one thread's"
    assert re.fullmatch(r"cancelled after \d+ texts", out[2])


def test_asyncio(tmp_path: Path, model: llama2py.Model) -> None:
    out = run(9, tmp_path)
    for prompt, seed in [("Once upon a time", 1), ("One day, a dog", 2)]:
        assert prompt + model.generate(prompt, 80, temperature=0.7, seed=seed).text in out
    beats = re.search(r"the loop turned (\d+) times meanwhile", out)
    assert beats
    assert int(beats[1]) > 2  # it did not wait for the texts
    assert out.endswith("the endless one was cancelled\n")


def test_a_fork(tmp_path: Path, model: llama2py.Model) -> None:
    """Each branch is the greedy text of its beginning and its first token."""
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


def test_a_choice(tmp_path: Path) -> None:
    out = run(11, tmp_path)
    drawn = {w: int(n) for w, n in re.findall(r"(\w+): drawn (\d+) times of 20", out)}
    assert sum(drawn.values()) == 20  # nothing but one of the words
    assert sum(n > 0 for n in drawn.values()) > 1
    shares = {w: float(p) for w, p in re.findall(r"(\w+): (0\.\d+)", out)}
    assert shares.keys() == drawn.keys()
    assert sum(shares.values()) == pytest.approx(1, abs=0.003)
    assert f"the likeliest: {max(shares, key=lambda w: shares[w])}" in out
    assert shares["elephant"] < 0.05


def test_a_benchmark(tmp_path: Path) -> None:
    rows = [line.split() for line in run(12, tmp_path).splitlines()[2:]]
    assert [row[0] for row in rows] == ["float32", "bfloat16", "int8", "int4"]
    megabytes = [float(row[1]) for row in rows]
    assert megabytes == sorted(megabytes, reverse=True)
    assert all(float(speed.replace(",", "")) > 0 for row in rows for speed in row[2:])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

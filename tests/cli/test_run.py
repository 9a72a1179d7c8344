"""``llama2py run``: output, flags, prompts."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llama2py import StoryTeller, load
from llama2py._data import builtin_model
from llama2py.cli import main
from llama2py.tokenizers.load import load_tokenizer
from tests.cli.conftest import Call
from tests.support.command_line import llama2py


def recorded(test_data: Path, **wanted: object) -> dict[str, Any]:
    cases: list[dict[str, Any]] = json.loads((test_data / "golden" / "llama2c.json").read_text())
    return next(c for c in cases if all(c[name] == value for name, value in wanted.items()))


def test_run_prints_the_recorded_story_and_its_speed(
    call: Call, story: list[str], test_data: Path
) -> None:
    case = recorded(
        test_data, checkpoint="stories260K", seed=42, prompt="One day, Lily met a Shoggoth"
    )
    done = call(*story, "-t", "1.0", "-p", "0.9", "-s", "42", "-n", "0", "-i", case["prompt"])
    assert done.returncode == 0
    assert done.stdout == case["stdout"]
    speed, details = done.stderr.splitlines()
    assert float(speed.removeprefix("achieved tok/s: ")) > 0
    assert details.startswith("prompt tok/s: ")
    assert "(15 tokens), first token after" in details
    assert details.endswith("seed 42")


def test_long_flags_equal_the_short_ones(call: Call, story: list[str]) -> None:
    short = call(*story, "-t", "0.5", "-p", "0.8", "-s", "3", "-n", "40", "-i", "Tom")
    flags = ["--temperature=0.5", "--top-p=0.8", "--seed=3", "--steps=40", "--prompt=Tom"]
    assert call(*story, *flags).stdout == short.stdout
    assert len(short.stdout) > 40


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_steps_count_the_prompt_and_may_cut_it(
    call: Call, story: list[str], test_data: Path, steps: int
) -> None:
    case = recorded(test_data, checkpoint="stories260K", steps=steps)
    flags = ["-t", case["temperature"], "-p", case["topp"], "-s", case["seed"], "-n", steps]
    done = call(*story, *map(str, flags), "-i", case["prompt"])
    assert done.stdout == case["stdout"]


def test_special_tokens_of_a_prompt_need_a_flag(call: Call, story: list[str]) -> None:
    prompt = "Tom</s> and <s>"
    model, vocabulary = story[1], load_tokenizer(story[3])
    for flags, special in (([], False), (["--special"], True)):
        done = call(*story, *flags, "-s", "3", "-n", "20", "-i", prompt)
        tokens = vocabulary.encode(prompt, special=special)
        with load(model, story[3]) as loaded:
            text = loaded.generate(tokens, max_tokens=21 - len(tokens), seed=3).text
        assert done.stdout == f"{prompt}{text}\n"
        note = (
            "llama2py: the prompt holds the text of </s>, <s>: with --special, it becomes those"
            " tokens"
        )
        assert (note in done.stderr.splitlines()) == (not special)
    with_bos = call(*story, "--special", "-s", "3", "-n", "20", "-i", "<s>Tom")
    assert with_bos.stdout == "<s>" + call(*story, "-s", "3", "-n", "20", "-i", "Tom").stdout
    done = call(*story, "--special", "-m", "chat")
    assert done.returncode == 2
    assert "--special is for -m generate" in done.stderr


def test_seed_0_draws_a_seed_that_repeats_the_story(call: Call, story: list[str]) -> None:
    first, second = call(*story, "-s", "0"), call(*story)
    assert first.stdout != second.stdout
    seed = second.stderr.split()[-1]
    assert call(*story, "-s", seed).stdout == second.stdout


def test_threads_and_backend_do_not_change_the_story(call: Call, story: list[str]) -> None:
    flags = ["-s", "7", "-n", "60"]
    one = call(*story, *flags, "--threads", "1")
    assert call(*story, *flags, "--threads", "3").stdout == one.stdout
    assert call(*story, *flags, "--backend", "numpy").stdout == one.stdout


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--top-k", "3"], {"top_k": 3}),
        (["--min-p", "0.3"], {"min_p": 0.3}),
        (["--repetition-penalty", "1.5"], {"repetition_penalty": 1.5}),
        (["--frequency-penalty", "0.7"], {"frequency_penalty": 0.7}),
        (["--presence-penalty", "-0.7"], {"presence_penalty": -0.7}),
        (["--stop", " her"], {"stop": [" her"]}),
        (["--stop", "xyz", "--stop", "."], {"stop": ["xyz", "."]}),
    ],
)
def test_sampling_and_stop_flags_equal_the_options_of_the_library(
    story: list[str], flags: list[str], options: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["-s", "5", "-n", "80", "-i", "Lily was"]
    assert main([*story, *common]) == 0
    plain = capsys.readouterr().out
    assert main([*story, *common, *flags]) == 0
    printed = capsys.readouterr().out
    with load(story[1], story[3]) as model:
        n_prompt = len(model.tokenizer.encode("Lily was"))
        text = model.generate("Lily was", 81 - n_prompt, 1.0, 0.9, 5, **options).text
    assert printed == f"Lily was{text}\n"
    assert printed != plain


# ---- the built-in model ----


@pytest.fixture(scope="module")
def tell() -> StoryTeller:
    """A teller with the built-in model."""
    return StoryTeller()


@pytest.mark.parametrize(
    ("flags", "how"),
    [
        ([], {}),
        (["builtin"], {}),
        (["-i", "The cat and the queen"], {"opening": "The cat and the queen"}),
        (["-i", "Tell me about a sad frog"], {"about": "a sad frog"}),
    ],
)
def test_run_without_a_checkpoint_prints_a_whole_story(
    flags: list[str], how: dict[str, str], tell: StoryTeller, call: Call
) -> None:
    done = call("run", *flags, "-s", "4")
    story = tell(seed=4, max_words=10_000, **how)
    assert story.ended
    assert (done.returncode, done.stdout) == (0, f"{story.text}\n")
    assert re.fullmatch(
        rf"the best of 8 candidates in \d\.\d\d s, {story.words} words, seed 4\n", done.stderr
    )


@pytest.mark.parametrize(
    ("flags", "max_tokens", "temperature", "top_p"),
    [
        (["-t", "0.7"], 512, 0.7, 0.9),
        (["-p", "0.5"], 512, 0.6, 0.5),
        (["-n", "40"], 40, 0.6, 0.9),
        (["--candidates", "1"], 512, 0.6, 0.9),
        (["--candidates", "1", "-t", "1", "-n", "256"], 256, 1.0, 0.9),
        ([str(builtin_model())], 256, 1.0, 0.9),  # a file: as llama2.c
    ],
)
def test_a_single_text_of_the_built_in_model_has_its_own_defaults(
    flags: list[str],
    max_tokens: int,
    temperature: float,
    top_p: float,
    tell: StoryTeller,
    call: Call,
) -> None:
    done = call("run", *flags, "-s", "4", "-i", "Lily")
    assert "candidates" not in done.stderr
    n_prompt = len(tell.model.tokenizer.encode("Lily")) - 1
    text = tell.model.generate("Lily", max_tokens - n_prompt, temperature, top_p, seed=4).text
    assert done.stdout == f"Lily{text}\n"
    assert done.stderr.startswith("achieved tok/s")


def test_the_numpy_backend_prints_a_single_text_as_it_is_generated(call: Call) -> None:
    done = call("run", "--backend", "numpy", "-s", "4")
    with load(backend="numpy") as model:
        assert done.stdout == f"{model.generate('', None, 0.6, 0.9, seed=4).text}\n"
    assert done.stderr.startswith("achieved tok/s")


def test_a_model_in_a_file_may_write_candidates(call: Call, story: list[str]) -> None:
    done = call(*story, "--candidates", "3", "-t", "0.8", "-s", "4")
    with StoryTeller(story[1], story[3], temperature=0.8, candidates=3) as tell:
        assert done.stdout == f"{tell(seed=4, max_words=10_000).text}\n"
    assert done.stderr.startswith("the best of 3 candidates")


@pytest.mark.parametrize(
    "flags",
    [["-n", "40"], ["--stop", "x"], ["--top-k", "3"], ["-m", "chat"], ["--min-p", "0.1"]],
)
def test_candidates_do_not_go_with_the_flags_of_a_single_text(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--candidates", "2", *flags]) == 1
    assert f"--candidates 2 does not go with {flags[0]}" in capsys.readouterr().err


# ---- prompts ----


@pytest.mark.parametrize(
    ("stdin", "prompt"),
    [
        ("Zoë 🐶\n", "Zoë 🐶"),
        ("Zoë 🐶", "Zoë 🐶"),
        ("Zoë\r\n", "Zoë"),
        ("\ufeffZoë\r\nran.\r\n", "Zoë\nran."),
        ("Zoë\r", "Zoë"),
        ("Zoë\n\n", "Zoë\n"),
    ],
)
def test_a_prompt_from_standard_input_loses_bom_and_line_ends_of_windows(
    call: Call, story: list[str], stdin: str, prompt: str
) -> None:
    flags = ["-t", "0", "-n", "30"]
    piped = call(*story, *flags, "-i", "-", stdin=stdin.encode())
    assert piped.stdout == call(*story, *flags, "-i", prompt).stdout
    assert piped.stdout.startswith(prompt)


def test_an_output_that_cannot_show_a_character_gets_a_question_mark(story: list[str]) -> None:
    done = llama2py(*story, "-n", "30", "-i", "Zoë", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert done.stdout.startswith("Zo?")


def test_a_prompt_that_is_not_utf8_is_an_error(call: Call, story: list[str]) -> None:
    piped = call(*story, "-i", "-", stdin=b"ok \xff")
    assert (piped.returncode, piped.stdout) == (1, "")
    assert piped.stderr == (
        "llama2py: the prompt on standard input is not UTF-8 (byte 3): convert it to UTF-8\n"
    )
    typed = call(*story, "-i", b"ok \xff".decode("utf-8", "surrogateescape"))
    assert (typed.returncode, typed.stdout) == (1, "")
    assert typed.stderr == (
        "llama2py: the text holds the byte 0xFF, which is not UTF-8, at position 3\n"
    )


@pytest.mark.parametrize("prompt", ["Once upon a time", "Lily", "Who is it?"])
def test_a_prompt_in_place_of_a_model_is_a_usage_error_with_a_hint(
    prompt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", prompt]) == 2
    quoted = prompt if prompt == "Lily" else f"'{prompt}'"
    hint = f"there is no model {quoted}; to use it as a prompt: -i {quoted}\n"
    assert capsys.readouterr().err == f"llama2py run: {hint}"


@pytest.mark.parametrize("name", ["missing.bin", "./missing", "stories42M"])
def test_a_missing_model_gets_no_hint_about_prompts(
    name: str, hub_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", name]) == 1
    assert "prompt" not in capsys.readouterr().err


# ---- interruptions ----


def hear_ctrl_c() -> None:
    """Handle SIGINT even if the tests' parent ignores it, as a shell does for background jobs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("wait_for", [b"", b"Once"])
def test_ctrl_c_ends_the_story_with_its_speed(story: list[str], wait_for: bytes) -> None:
    """With -n 0 and the NumPy backend the story takes long enough to be interrupted."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llama2py", *story, "-n", "0", "-t", "0", "--backend", "numpy"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hear_ctrl_c,
    )
    assert process.stdout is not None
    process.stdout.read(len(wait_for) or 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert b"achieved tok/s" in err or b"prompt tok/s" in err
    assert b"Traceback" not in err


def test_a_closed_pipe_ends_the_story_silently(story: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "llama2py", *story, "-n", "0", "--backend", "numpy"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141

"""Meta's functions: cases worked out by hand from the source of facebookresearch/llama.

They were checked once against the real code (commit 54c22c0), run on a CPU with the weights of
stories260K in Meta's format: without its ``.cuda()``, with ``device="cpu"``, and with the
Transformer built as in `Llama.build` under gloo with a model-parallel size of 1. The 120 greedy
calls had contexts of 16, 24 and 64; one to four prompts of different lengths; 0, 1, 7 and 40 tokens
to generate; echo and logprobs; and an EOS in the middle (a frequent token renamed EOS). All tokens
were equal, and the log-probabilities agreed to 6e-6, except in the one case that
docs/from-meta-llama.md names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama2py import CheckpointError, Model, ParameterError, PromptError, convert
from llama2py.checkpoint import Conventions, write_checkpoint
from llama2py.engine.backend import draw_rows
from llama2py.meta import UNSAFE_ERROR, Llama
from llama2py.tokenizers.llama2c import write_tokenizer_bin
from llama2py.tokenizers.tokenizer import BOS, EOS
from tests.conftest import TINY, random_checkpoint, tiny_model, tiny_tokenizer
from tests.support.scripted import ScriptedBackend
from tests.support.scripted_dialogues import vocabulary

A, B, C, D = 260, 261, 262, 263  # "a" to "d" in conftest's tokenizer


class Successor(ScriptedBackend):
    """The next id follows each token, EOS follows D; other tokens are e times less likely."""

    def __init__(self, seq_len: int = 8) -> None:
        super().__init__([], 300, seq_len)

    def run(
        self,
        tokens: Any,
        caches: Any,
        positions: Any,
        rows: Any,
        draws: Any = None,
        stop_tokens: Any = (),
    ) -> Any:
        if draws is not None:
            return draw_rows(self, tokens, caches, positions, rows, draws, stop_tokens)
        logits = np.zeros((len(rows), 300), np.float32)
        for row, at in zip(logits, rows, strict=True):
            row[EOS if tokens[at] == D else tokens[at] + 1] = 1
        return logits


HIT, MISS = (x - float(np.log(299 + np.e)) for x in (1, 0))


def llama(max_seq_len: int = 8, **kwargs: Any) -> Llama:
    return Llama(Model(Successor(), tiny_tokenizer()), max_seq_len, **kwargs)


# max_seq_len, prompts, max_gen_len, echo -> tokens, log-probabilities
CASES: list[tuple[int, list[list[int]], int, bool, list[list[int]], list[list[float]]]] = [
    # EOS in the middle; it is cut off, and so is its log-probability
    (8, [[BOS, B]], 5, False, [[C, D]], [[HIT, HIT]]),
    (8, [[BOS, B]], 5, True, [[BOS, B, C, D]], [[0, MISS, HIT, HIT]]),
    # max_gen_len cuts
    (8, [[BOS, B]], 1, False, [[C]], [[HIT]]),
    (8, [[BOS, B]], 0, False, [[]], [[]]),
    (8, [[BOS, B]], 0, True, [[BOS, B]], [[0, MISS]]),
    # the first token is EOS
    (8, [[BOS, D]], 3, False, [[]], [[]]),
    (8, [[BOS, D]], 3, True, [[BOS, D]], [[0, MISS]]),
    # uneven prompts: each gets max_gen_len tokens of its own
    (8, [[A], [BOS, C, B]], 2, False, [[B, C], [C, D]], [[HIT, HIT], [HIT, HIT]]),
    (
        8,
        [[A], [BOS, C, D, B]],
        1,
        True,
        [[A, B], [BOS, C, D, B, C]],
        [[0, HIT], [0, MISS, HIT, MISS, HIT]],
    ),
    # the context cuts: prompt and answer together hold max_seq_len
    (3, [[BOS, A], [5]], 9, False, [[B], [6, 7]], [[HIT], [HIT, HIT]]),
    # a prompt as long as the context gets no answer; the other prompt does
    (3, [[BOS, A, 9]], 2, False, [[]], [[]]),
    (3, [[BOS, A, B]], 2, True, [[BOS, A, B]], [[0, MISS, HIT]]),
    (3, [[BOS, A, 9], [5, 9]], 2, False, [[], [10]], [[], [HIT]]),
    # BOS does not end a text; an EOS in the prompt does, but only with echo
    (8, [[7, 0]], 3, False, [[BOS]], [[HIT]]),
    (8, [[BOS, EOS, B]], 1, False, [[C]], [[HIT]]),
    (8, [[BOS, EOS, B]], 1, True, [[BOS]], [[0]]),
]


@pytest.mark.parametrize("case", CASES)
def test_generate_as_worked_out_by_hand(case: tuple[Any, ...]) -> None:
    max_seq_len, prompts, max_gen_len, echo, tokens, logprobs = case
    made = llama(max_seq_len)
    got, none = made.generate(prompts, max_gen_len, temperature=0, echo=echo)
    assert (got, none) == (tokens, None)
    got, values = made.generate(prompts, max_gen_len, temperature=0, echo=echo, logprobs=True)
    assert got == tokens
    assert values is not None
    assert [len(v) for v in values] == [len(t) for t in tokens]
    for one, expected in zip(values, logprobs, strict=True):
        assert one == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with tiny_model() as model:
        yield model


def test_a_seed_repeats_and_the_calls_of_one_model_differ(model: Model) -> None:
    runs = []
    for seed in (1, 1, 2):
        made = Llama(model, 64, 4, seed)
        runs.append([made.generate([[BOS, A]] * 3, 20, top_p=1.0)[0] for _ in range(2)])
    assert runs[0] == runs[1] != runs[2]
    texts = [tuple(tokens) for call in runs[0] for tokens in call]
    assert len(set(texts)) == 6


def test_top_p_of_zero_is_greedy(model: Model) -> None:
    made = Llama(model)
    best, _ = made.generate([[BOS, A]], 9, temperature=0)
    assert made.generate([[BOS, A]], 9, temperature=2.0, top_p=0)[0] == best


def test_logprobs_are_before_temperature(model: Model) -> None:
    made = Llama(model, 30)
    tokens, values = made.generate([[BOS, A, B]], 9, temperature=3.0, logprobs=True, echo=True)
    assert values is not None
    assert values[0][1:] == pytest.approx(list(model.score(tokens[0])), abs=1e-5)


# ---- limits ----


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([[BOS]] * 3, ParameterError, r"there are 3 prompts, expected 1 to 2 \(max_batch_size\)"),
        ([], ParameterError, "there are no prompts, expected 1"),
        ([[BOS], []], PromptError, "prompt 1 has 0 tokens"),
        ([[BOS] * 9], PromptError, r"prompt 0 has 9 tokens, expected 1 to 8 \(max_seq_len\)"),
        ([[BOS, 300]], PromptError, "token 300 is out"),
    ],
)
def test_prompts_outside_the_limits_are_errors(
    prompts: list[list[int]], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        llama(max_batch_size=2).generate(prompts, 3)


def test_numbers_outside_their_range_are_errors() -> None:
    with pytest.raises(ParameterError, match="max_gen_len is -1"):
        llama().generate([[BOS]], -1)
    with pytest.raises(ParameterError, match=r"max_seq_len is 9, expected 1 to .* 8"):
        llama(9)
    with pytest.raises(ParameterError, match="max_batch_size is 0"):
        llama(max_batch_size=0)


# ---- texts ----


def test_text_completion_continues_texts() -> None:
    """ " c", " d", ... follow " b"; the tokenizer adds the space before the first word."""
    assert llama().text_completion(["b"], temperature=0) == [{"generation": "c d e f g h"}]
    assert llama().text_completion(["b"], temperature=0, echo=True, max_gen_len=1) == [
        {"generation": "b c"}
    ]
    (full,) = llama().text_completion(["b"], temperature=0, max_gen_len=2, logprobs=True)
    assert full["generation"] == "c d"
    assert full["tokens"] == ["c", "d"]
    assert full["logprobs"] == pytest.approx([HIT, HIT], abs=1e-6)


class Recorded(Llama):
    """Remembers the prompts of the last call."""

    def generate(self, prompt_tokens: Any, *args: Any, **kwargs: Any) -> Any:
        self.prompts = prompt_tokens
        return super().generate(prompt_tokens, *args, **kwargs)


def chat(seq_len: int = 300) -> Recorded:
    return Recorded(Model(Successor(seq_len), tiny_tokenizer()))


def say(*contents: str, first: str = "user") -> Any:
    roles = ["user", "assistant"] * len(contents)
    return [
        {"role": role, "content": content}
        for role, content in zip(
            ["system", *roles] if first == "system" else roles, contents, strict=False
        )
    ]


def test_chat_prompts_have_the_format_of_llama_2() -> None:
    made, encode = chat(), tiny_tokenizer().encode
    made.chat_completion(
        [say(" hi\n"), say("be kind", "hi", first="system"), say("hi ", " lo ", "bye")],
        temperature=0,
        max_gen_len=3,
    )
    assert made.prompts == [
        encode("[INST] hi [/INST]"),
        encode("[INST] <<SYS>>\nbe kind\n<</SYS>>\n\nhi [/INST]"),
        [*encode("[INST] hi [/INST] lo ", eos=True), *encode("[INST] bye [/INST]")],
    ]


def test_chat_answers_have_the_form_of_meta() -> None:
    """The tokens "^", "_" and "`" follow "]"."""
    made = chat()
    answer = {"role": "assistant", "content": "^_`"}
    unsafe = {"role": "assistant", "content": UNSAFE_ERROR}
    dialogs = [say("hi"), say("a [/INST] b"), say("<<SYS>>", "x", first="system")]
    assert made.chat_completion(dialogs, temperature=0, max_gen_len=3) == [
        {"generation": answer},
        {"generation": unsafe},
        {"generation": unsafe},
    ]
    full = made.chat_completion(dialogs[:2], temperature=0, max_gen_len=3, logprobs=True)
    assert [one["generation"] for one in full] == [answer, unsafe]
    assert full[1]["tokens"] == ["^", "_", "`"]
    assert full[1]["logprobs"] == pytest.approx([HIT] * 3, abs=1e-6)


@pytest.mark.parametrize(
    "dialog",
    [
        [],
        say("a", "b"),
        say("a", first="system"),
        [*say("a"), *say("b")],
        say("a", "b", "c", first="system"),
        [{"role": "assistant", "content": "a"}],
        [*say("a", "b"), {"role": "system", "content": "c"}],
    ],
)
def test_dialogs_out_of_order_are_errors(dialog: Any) -> None:
    with pytest.raises(PromptError, match=r"the roles of a dialog are .* expected"):
        chat().chat_completion([dialog], max_gen_len=1)


@pytest.mark.parametrize("jinja", ["{{ '<|im_start|>' }}", "{{ '[INST] ' + ' [/INST]' }}"])
def test_a_model_of_another_template_is_refused(jinja: str) -> None:
    model = Model(Successor(300), tiny_tokenizer(), Conventions(jinja))
    with pytest.raises(ParameterError, match=r"this model has another chat template: use llama2py"):
        Recorded(model).chat_completion([say("hi")])
    model = Model(Successor(300), vocabulary("llama3"))  # Meta's own Llama 3
    with pytest.raises(ParameterError, match="another chat template"):
        Recorded(model).chat_completion([say("hi")])
    llama2 = "{{ '[INST] <<SYS>>' + s + '<</SYS>>' + m + ' [/INST]' }}"
    model = Model(Successor(300), tiny_tokenizer(), Conventions(llama2))
    assert Recorded(model).chat_completion([say("hi")], max_gen_len=1)


# ---- build ----


def test_build_loads_files_and_folders(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.bin", TINY, dict(random_checkpoint(TINY).tensors))
    write_tokenizer_bin(tiny_tokenizer(), tmp_path / "tokenizer.bin")
    folder = convert(tmp_path / "m.bin", tmp_path / "huggingface", tokenizer=False)
    for where in (tmp_path, tmp_path / "m.bin", folder):
        made = Llama.build(str(where), str(tmp_path / "tokenizer.bin"), 512, 4, seed=3)
        assert (made.max_seq_len, made.max_batch_size) == (64, 4)
        with tiny_model() as model:
            again = Llama(model, 64, 4, seed=3)
            assert made.generate([[BOS, A]], 9) == again.generate([[BOS, A]], 9)


def test_build_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the folder holds no checkpoints, expected 1; pass"):
        Llama.build(tmp_path, None, 8, 1)

"""Values of options: errors of one short line."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable

import pytest

from llama2py.cli import options
from tests.cli.conftest import Call


@pytest.mark.parametrize("digits", [21, 5000])
@pytest.mark.parametrize("flag", ["-n", "-s", "-t", "--top-k", "--threads"])
def test_a_number_of_many_digits_is_a_short_usage_error(flag: str, digits: int, call: Call) -> None:
    done = call("run", flag, "-" + "9" * digits)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert len(done.stderr) < 300


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (options.whole_number, "-3", -3),
        (options.natural_number, "0", 0),
        (options.count, "1", 1),
        (options.seed, str(2**64 - 1), 2**64 - 1),
        (options.threads, "256", 256),
        (options.thread_counts, "2,1,2", [2, 1]),
        (options.counts, "8,1,8,300", [8, 1, 300]),
        (options.sampling_number("temperature"), "1e-3", 0.001),
    ],
)
def test_a_value_within_the_range_is_taken(
    kind: Callable[[str], object], text: str, value: object
) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (options.whole_number, "1.5", "'1.5' is not a whole number"),
        (options.natural_number, "-1", "-1 is negative"),
        (options.count, "0", "0 is less than 1"),
        (options.seed, str(2**64), "is above 2**64 - 1"),
        (options.threads, "257", "257 is above 256"),
        (options.thread_counts, "1,", "'' is not a whole number"),
        (options.counts, "1,0", "0 is less than 1"),
        (options.sampling_number("top_p"), "1.01", "top_p is 1.01"),
        (options.sampling_number("temperature"), "warm", "'warm' is not a number"),
    ],
)
def test_a_value_out_of_range_is_refused(
    kind: Callable[[str], object], text: str, message: str
) -> None:
    with pytest.raises(ArgumentTypeError, match=re.escape(message)):
        kind(text)

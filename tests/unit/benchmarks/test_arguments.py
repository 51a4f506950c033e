"""Arguments that would end a benchmark after hours are refused when it starts."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import dgs, learning, screening_table
from benchmarks.arguments import count, duration


@pytest.mark.parametrize(
    ("parser", "arguments"),
    [
        (dgs._parser(), "--marks 0"),
        (dgs._parser(), "--seeds -1"),
        (dgs._parser(), "--minutes 0"),
        (learning._parser(), "--minutes nan"),
        (learning._parser(), "--prompts 0"),
        (learning._parser(), "--steps 1.5"),
        (screening_table._parser(), "--rollouts ten"),
    ],
)
def test_sizes_and_times_are_above_0(parser: argparse.ArgumentParser, arguments: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(arguments.split())


def test_sizes_and_times_are_read() -> None:
    assert (count("12"), duration("0.5")) == (12, 0.5)

"""Arguments that would end a benchmark after hours are refused when it starts."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import dgs, learning, screening_table
from benchmarks.arguments import count, duration, exit_with
from synod.errors import SettingsError
from trainer.errors import RewardServiceUnavailable


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


@pytest.mark.parametrize("error", [SettingsError("no scorer 'tier'"), RewardServiceUnavailable("no service")])
def test_an_error_that_the_user_can_correct_ends_with_its_message(error: Exception) -> None:
    def fail() -> int:
        raise error

    with pytest.raises(SystemExit, match=f"error: {error}"):
        exit_with(fail)


def test_a_defect_keeps_its_traceback() -> None:
    def fail() -> int:
        return [][0]

    with pytest.raises(IndexError):
        exit_with(fail)

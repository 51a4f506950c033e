"""What the commands of several benchmarks share: arguments, their types, and how an error ends the command."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from typing import NoReturn

from synod.errors import SettingsError, SynodError
from trainer.errors import RewardServiceUnavailable


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Exit with the status of `main`; an error that the user can correct is one message, without a traceback."""
    try:
        sys.exit(main())
    except (SettingsError, SynodError, RewardServiceUnavailable) as error:
        sys.exit(f"error: {error}")


def count(text: str) -> int:
    """Return a whole number of at least 1. Raises ArgumentTypeError."""
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")


def duration(text: str) -> float:
    """Return a time above 0. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if 0 < value < math.inf:
        return value
    raise argparse.ArgumentTypeError(f"'{text}' is not a time above 0")


def add_policy_options(parser: argparse.ArgumentParser) -> None:
    """Add where and how a policy of full size computes: --device, --dtype and --checkpointing."""
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="the device of the policy (cuda)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="bfloat16",
        help="of matrix products and attention (bfloat16)",
    )
    parser.add_argument(
        "--checkpointing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute activations twice instead of keeping them",
    )

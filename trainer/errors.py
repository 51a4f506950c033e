"""What ends a training, besides wrong settings, a checkpoint that does not fit and a full disk."""

from __future__ import annotations


class RewardServiceUnavailable(RuntimeError):
    """The reward service stayed away for longer than `patience_s`."""


class NonFinite(ArithmeticError):
    """A loss or gradient that is NaN or infinite; `group` is the offending group's index, None for the gradient."""

    def __init__(self, message: str, group: int | None) -> None:
        super().__init__(message)
        self.group = group

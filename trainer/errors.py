"""Errors that end a training, besides SettingsError and the errors of `trainer.checkpoint`."""

from __future__ import annotations


class RewardServiceUnavailable(RuntimeError):
    """The reward service was unavailable for longer than `patience_s`."""


class NonFinite(ArithmeticError):
    """A loss or gradient is NaN or infinite; `group` is the loss's group, None for the gradient."""

    def __init__(self, message: str, group: int | None) -> None:
        super().__init__(message)
        self.group = group

"""Errors that end a training, besides SettingsError and the errors of `trainer.checkpoint`."""

from __future__ import annotations

from pathlib import Path


class RewardServiceUnavailable(RuntimeError):
    """The reward service was unavailable for longer than `patience_s`."""


class OutOfMemory(MemoryError):
    """A step or an evaluation does not fit the memory of its device; the message says what to change."""


class NonFinite(ArithmeticError):
    """A loss or gradient is NaN or infinite; `group` is the loss's group, None for the gradient."""

    def __init__(self, message: str, group: int | None) -> None:
        super().__init__(message)
        self.group = group

    def with_saved_groups(self, step: int, folder: Path) -> NonFinite:
        """Return this error with the step, the folder that holds the failed groups, and what to do."""
        return NonFinite(
            f"step {step}: {self}; nothing was updated. The group is in {folder} and the last checkpoint is intact. "
            "Lower [trainer.optimizer] lr, or inspect the group's log-probabilities",
            self.group,
        )


class OtherRankFailed(RuntimeError):
    """Another rank of the run failed; this one ended with it."""


class WorkersFailed(RuntimeError):
    """The workers of Ray Train failed more often than they are started again."""

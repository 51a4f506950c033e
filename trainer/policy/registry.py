"""The families of policies, by the `family` of `[trainer.policy]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from trainer.policy.base import Policy
from trainer.policy.show_o import loading
from trainer.policy.show_o.policy import Sampling
from trainer.settings import PolicySettings, ShowOSettings


def load(settings: PolicySettings) -> Policy:
    """Load the policy of the settings, on the CPU. Raises SettingsError for files that are missing or do not fit."""
    return FAMILIES[settings.family](settings)


def _show_o(settings: ShowOSettings) -> Policy:
    sampling = Sampling(**settings.sampler.model_dump(), positions=settings.positions)
    return loading.load(settings.model, vq=settings.vq, sampling=sampling)


FAMILIES: Final[dict[str, Callable[[PolicySettings], Policy]]] = {"show_o": _show_o}

"""The families of policies, by the `family` of `[trainer.policy]`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from trainer.policy.base import Policy
from trainer.policy.show_o import loading
from trainer.policy.show_o.policy import Sampling
from trainer.settings import PolicySettings, ShowOSettings


def load(settings: PolicySettings, concepts: Collection[str] = ()) -> Policy:
    """Load the policy of the settings, on the CPU. `concepts` are the names that the prompts will use.

    Raises SettingsError for files that are missing or do not fit, and for a concept that the policy has no token for.
    """
    return FAMILIES[settings.family](settings, concepts)


def _show_o(settings: ShowOSettings, concepts: Collection[str]) -> Policy:
    sampling = Sampling(**settings.sampler.model_dump(), positions=settings.positions)
    return loading.load(settings.model, vq=settings.vq, sampling=sampling, concepts=concepts)


FAMILIES: Final[dict[str, Callable[[PolicySettings, Collection[str]], Policy]]] = {"show_o": _show_o}

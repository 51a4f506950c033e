"""The families of policies, by the `family` of `[trainer.policy]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from trainer.policy.base import Policy
from trainer.policy.show_o import loading
from trainer.policy.show_o.policy import Sampling
from trainer.settings import PolicySettings, ShowOSettings


def load(settings: PolicySettings, seed: int = 0) -> Policy:
    """Load the policy of the settings, on the CPU; `seed` decides the start of its adapters, if it has any.

    Raises SettingsError for files that are missing or do not fit, and for targets of adapters that it does not have.
    """
    return FAMILIES[settings.family](settings, seed)


def _show_o(settings: ShowOSettings, seed: int) -> Policy:
    sampling = Sampling(**settings.sampler.model_dump(), positions=settings.positions)
    policy = loading.load(settings.model, vq=settings.vq, sampling=sampling)
    policy.phi.checkpointing = settings.checkpointing
    if settings.lora is not None:
        policy.add_adapters(**settings.lora.model_dump(), seed=seed, base=settings.model)
    return policy


FAMILIES: Final[dict[str, Callable[[PolicySettings, int], Policy]]] = {"show_o": _show_o}

"""The families of policies, by the `family` of `[trainer.policy]`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from trainer.policy.base import Policy
from trainer.policy.show_o import loading
from trainer.policy.show_o.policy import Sampling
from trainer.settings import PolicySettings, ShowOSettings


def load(settings: PolicySettings, seed: int = 0, concepts: Collection[str] = ()) -> Policy:
    """Load the policy of the settings, on the CPU; `seed` decides the start of its adapters, if it has any.

    `concepts` are names that the prompts will use. Raises SettingsError for files that are missing or do not fit, for
    targets of adapters that it does not have, and for a concept that it has no token for.
    """
    return FAMILIES[settings.family](settings, seed, concepts)


def _show_o(settings: ShowOSettings, seed: int, concepts: Collection[str]) -> Policy:
    sampling = Sampling(**settings.sampler.model_dump(), positions=settings.positions)
    policy = loading.load(settings.model, vq=settings.vq, sampling=sampling, concepts=concepts)
    policy.phi.checkpointing = settings.checkpointing
    if settings.lora is not None:
        policy.add_adapters(**settings.lora.model_dump(), seed=seed, base=settings.model)
    return policy


FAMILIES: Final[dict[str, Callable[[PolicySettings, int, Collection[str]], Policy]]] = {"show_o": _show_o}

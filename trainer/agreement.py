"""What all ranks of a run must have alike: settings, the files that they name, and weights.

Ranks on machines with different ones would train a policy of no settings, or wait for each other for ever, because
settings decide which exchanges there are.
"""

from __future__ import annotations

from typing import Final

from synod.errors import SettingsError
from trainer.checkpoint import differences, file_digest, fingerprint
from trainer.distributed import Ranks
from trainer.evaluate.draw import digest_of
from trainer.policy.base import Policy
from trainer.settings import TrainerSettings

OWN: Final = frozenset({"run_dir", "rewards.url", "rewards.patience_s"})  # may differ between machines
SAMPLE: Final = 4096  # numbers of each tensor


def check_settings(settings: TrainerSettings, ranks: Ranks) -> None:
    """Raise SettingsError on every rank unless all have the same settings but OWN, and the same prompts and concepts.

    The message names each setting, and its value on two ranks that differ.
    """
    if ranks.world == 1:
        return
    with ranks.together():
        alike = fingerprint(settings, OWN)
        if settings.data.heldout is not None:
            alike["data.heldout (content)"] = file_digest(settings.data.heldout)
    first, *others = ranks.gather_all(alike)
    with ranks.together():
        for rank, other in enumerate(others, 1):
            if lines := differences(first, other, "on rank 0", f"on rank {rank}"):
                listed = "\n".join(lines)
                raise SettingsError(
                    f"the ranks have different settings:\n{listed}\nGive every machine the same settings and files"
                )


def check_weights(policy: Policy, ranks: Ranks) -> None:
    """Raise SettingsError on every rank unless all have the same weights, by SAMPLE numbers of each tensor."""
    if ranks.world > 1:
        with ranks.together():
            digest = digest_of(policy, SAMPLE)
        ranks.check_equal(digest, "digest of the weights; give the same [trainer.policy] model on every machine")

"""What all ranks of a run must have alike: settings, the files that they name, and weights.

Ranks on machines with different ones would train a policy of no settings, or wait for each other for ever, because
settings decide which exchanges there are.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from synod.errors import SettingsError
from trainer.checkpoint import differences, fingerprint
from trainer.distributed import Ranks
from trainer.evaluate.draw import digest_of
from trainer.policy.base import Policy
from trainer.settings import SyncR1Settings, TrainerSettings

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
            alike["data.heldout (content)"] = _content(settings.data.heldout)
        if isinstance(settings.data, SyncR1Settings):
            alike["data.concepts (content)"] = _content(settings.data.concepts)
    first, *others = ranks.gather_all(alike)
    with ranks.together():
        for rank, other in enumerate(others, 1):
            if lines := differences(first, other, "on rank 0", f"on rank {rank}"):
                raise SettingsError("\n".join(["the ranks have different settings:", *lines, _REMEDY]))


def check_weights(policy: Policy, ranks: Ranks) -> None:
    """Raise SettingsError on every rank unless all have the same weights, by SAMPLE numbers of each tensor."""
    if ranks.world > 1:
        with ranks.together():
            digest = digest_of(policy, SAMPLE)
        ranks.check_equal(digest, "digest of the weights; give the same [trainer.policy] model on every machine")


_REMEDY: Final = "Give every machine the same settings and files"


def _content(path: Path) -> str:
    """Return a digest of a file, or of all files of a directory with their names."""
    found = hashlib.blake2b(digest_size=8)
    for file in sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]:
        content = file.read_bytes()
        found.update(f"{file.relative_to(path)} {len(content)} ".encode() + content)
    return found.hexdigest()

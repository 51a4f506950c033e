"""The recipes that benchmarks train and compare. They differ in which rollouts enter the update, and in nothing else.

"today" alone also has another sampler, other decisions and another credit: it is the recipe before all of these.
Settings that no recipe names are those of the TOML and of SYNOD__TRAINER__ variables, equal for all.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import ValidationError

from synod.contracts import ScoreItem
from synod.errors import SettingsError
from trainer.rewards.base import RewardBackend
from trainer.settings import TrainerSettings, load
from trainer.types import Reward, RewardSpec

Tree = Mapping[str, Any]
NEVER: Final = 10**6  # steps that no run reaches: it ends by its time
WHOLE: Final = 144  # images in a reward request, more than any group has
OURS: Final = "auto"
REFERENCE: Final = "plain_9"

SHARED: Final[Tree] = {  # of every recipe but "today"
    "policy": {"positions": "committed", "sampler": {"confidence": "max_logp"}},
    "loss": {"credit": "split", "baseline": "group"},
}
TODAY: Final[Tree] = {
    "policy": {"positions": "masked", "sampler": {"confidence": "drawn", "schedule": "cosine"}},
    "loss": {"credit": "total", "baseline": "group", "image": {"alpha": 0.1}},
}
DGS: Final[Tree] = {  # the paper's numbers, with the corrected threshold
    "select": "first_above",
    "threshold": "quantile",
    "target_pass_rate": 0.25,
    "screen_fraction": 0.2,
    "max_previews": 36,
    "audit": 0,  # its images take time that the paper's rule does not need
}


@dataclass(frozen=True)
class Arm:
    """A recipe.

    screen     [trainer.screen] but for `preview_batch_size`; what is not named has its default
    changes    other settings of [trainer]
    surrogate  what previews are scored by
    permuted   whether rewards are permuted within each group
    """

    about: str
    screen: Tree
    changes: Tree = field(default_factory=lambda: SHARED)
    surrogate: str = "ber"
    permuted: bool = False


def merged(first: Tree, *others: Tree) -> dict[str, Any]:
    """Return a tree with the values of the others in its place, later ones first."""
    found = dict(first)
    for other in others:
        for key, value in other.items():
            below = found.get(key)
            found[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return found


def _plain(count: int) -> Tree:
    return {"select": "first_above", "threshold": "none", "group_size": count}


ARMS: Final[Mapping[str, Arm]] = {
    "plain_9": Arm("every group is 9 rollouts, nothing is selected", _plain(9)),
    "plain_14": Arm("every group is 14 rollouts", _plain(14)),
    "plain_18": Arm("every group is 18 rollouts", _plain(18)),
    "paper": Arm("9 of at most 36 previews above a threshold of BER at 0.2 T (the paper's DGS)", DGS),
    "paper_reward": Arm(
        "the same with the preview's own reward in place of BER: the best surrogate of a preview",
        DGS,
        surrogate="known+predicted",
    ),
    "population": Arm(
        "the same previews, with the mean of all previews as the baseline",
        DGS,
        merged(SHARED, {"loss": {"baseline": "population"}}),
    ),
    "extremes": Arm(
        "18 images are finished, the 9 furthest from their mean enter the update",
        {"select": "extremes", "threshold": "none", "group_size": 9, "finished": 18},
    ),
    OURS: Arm(
        "the audit moves the screen to where it pays", {"select": "auto", "group_size": 9}, surrogate="known+predicted"
    ),
    "today": Arm("the paper's DGS, one advantage for both modalities, every draw in the loss", DGS, TODAY),
    "permuted": Arm("plain_9 with rewards permuted within each group: the control", _plain(9), permuted=True),
}


def settings_of(
    name: str,
    config: Path,
    run_dir: Path,
    *,
    seed: int,
    prompts: int,
    permuted: bool = False,
    steps: int = NEVER,
    url: str | None = None,
    changes: Sequence[Path] = (),
) -> TrainerSettings:
    """Return the settings of a recipe's run. Raises SettingsError, which names the recipe.

    `changes` are TOML files over `config`. `permuted` asks for a run on permuted rewards: each request for rewards
    holds a whole group.
    """
    own: Tree = {
        "seed": seed,
        "steps": steps,
        "run_dir": run_dir.resolve(),
        "evaluate": {"prompts": prompts, "every": 0, "patience": None},
        "rewards": {"url": url} if url else {},
    }
    tree, arm = load(config, changes=changes).model_dump(), ARMS[name]
    screen = {"preview_batch_size": tree["screen"]["preview_batch_size"], "group_size": 9, **arm.screen}
    tree = {**merged(tree, arm.changes, {"rewards": {"surrogate": arm.surrogate}}, own), "screen": screen}
    if permuted:
        tree["reward_batch_size"] = WHOLE
    try:
        settings = TrainerSettings.model_validate(tree)
    except ValidationError as error:
        lines = "\n".join(f"  {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise SettingsError(f"recipe '{name}' does not fit {config}:\n{lines}") from None
    if settings.optimizer.schedule != "constant":
        raise SettingsError(
            f"[trainer.optimizer] schedule is '{settings.optimizer.schedule}', which needs a number of steps, but runs "
            'of equal time end after a time; give "constant"'
        )
    return settings


class Permuted:
    """A service that permutes the rewards of each request: a whole group, by the settings of a permuted run.

    The order follows from `seed` and the images, or the answers of items without one, so that a resumed run has the
    same order.
    """

    def __init__(self, service: RewardBackend, seed: int) -> None:
        self._service, self._seed = service, seed

    def submit_previews(self, items: Sequence[ScoreItem], reward: RewardSpec | None = None) -> Future[list[Reward]]:
        return self._service.submit_previews(items, reward)

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        digest = 0
        for item in items:
            answer = "" if item.reasoning is None else item.reasoning.text
            digest = zlib.crc32(answer.encode() if item.image is None else item.pixels().tobytes(), digest)
        order = np.random.default_rng([self._seed, digest]).permutation(len(items))
        return _ordered(self._service.submit(items, reward), order.tolist())


def _ordered(pending: Future[list[Reward]], order: Sequence[int]) -> Future[list[Reward]]:
    """Return a future of another one's rewards in this order; it raises what that one raises."""
    found: Future[list[Reward]] = Future()

    def follow(done: Future[list[Reward]]) -> None:
        try:
            rewards = done.result()
        except Exception as error:  # raised again where the rewards are awaited
            found.set_exception(error)
        else:
            found.set_result([rewards[place] for place in order])

    pending.add_done_callback(follow)
    return found

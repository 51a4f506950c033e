"""Equivalent configurations of the training loop give one trajectory, which is recorded in training_trajectory.json.

Reward batch size, preview batch size and a resumed run do not change what is computed: metrics, thresholds, parameters
and optimizer state are compared bit for bit. Kernels round differently at different batch sizes, so this policy samples
one row at a time; the loop under test is the same.

The comparison with the record is bitwise on the CPU model and torch version that made it. On other machines kernels sum
in another order, and metrics agree within a relative 1e-4 (float32, three updates), cosines near 0 within 1e-5. After
an intended change of the trajectory record it again: SYNOD_RECORD=1 pytest FILE.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from synod.contracts import Pixels, ScoreItem
from tests.unit.trainer.conftest import settings_from, tiny_settings, world_dir  # noqa: F401
from tests.unit.trainer.loops import MakePolicy, MakeSettings, lines, run_loop
from tests.unit.trainer.reward_services import Judge, answered, brightness, redness
from tests.unit.trainer.tiny_show_o import make_policy, tokenizer_of, vocab, vq  # noqa: F401
from trainer.algorithms.threshold import Quantile
from trainer.policy.base import TextSegment
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.segments import ImageSegment
from trainer.settings import TrainerSettings
from trainer.types import Query, Reward, RewardSpec, Segment

RECORD = Path(__file__).with_name("training_trajectory.json")
STEPS, DRAWN, KEPT = 3, 8, 4  # training steps; previews drawn and kept for each prompt
BASE = {
    "PROMPTS_PER_STEP": "2",
    "REWARD_BATCH_SIZE": "4",
    "DATA__GENEVAL_SHARE": "0.25",
    "SCREEN__PREVIEW_BATCH_SIZE": "4",
    "SCREEN__AUDIT": "0",
    "LOSS__BASELINE": "population",
    "LOSS__LOSS_STEP_FRACTION": "0.5",
    "OPTIMIZER__WARMUP_STEPS": "2",
    "CHECKPOINT_EVERY": "1",
}
CONFIGURATIONS = [
    {"REWARD_BATCH_SIZE": "3"},
    {"SCREEN__PREVIEW_BATCH_SIZE": "1", "REWARD_BATCH_SIZE": "1"},
    {"SCREEN__PREVIEW_BATCH_SIZE": "2", "REWARD_BATCH_SIZE": "2"},
]


class RowByRow(ShowO):
    """A Show-o that samples and decodes one rollout at a time, so that no batch size changes a bit."""

    def reason(self, query: Query, uniform_BS: torch.Tensor) -> list[TextSegment]:  # noqa: N803
        return [super(RowByRow, self).reason(query, row[None])[0] for row in uniform_BS]

    def denoise(self, segments: Sequence[Segment], until: int) -> list[ImageSegment]:
        return [super(RowByRow, self).denoise([segment], until)[0] for segment in segments]

    def images(self, segments: Sequence[Segment]) -> list[Pixels]:
        return [super(RowByRow, self).images([segment])[0] for segment in segments]


class Patterned(Judge):
    """Lets previews 1, 3, 6 and 7 of each prompt pass, so eight are drawn at any batch size; loses some rewards."""

    def __init__(self) -> None:
        super().__init__()
        self.scored, self.rewarded = 0, 0

    def submit_previews(self, items: Sequence[ScoreItem], reward: RewardSpec | None = None) -> Future[list[Reward]]:
        rewards = []
        for item in items:
            passes = self.scored % DRAWN in (1, 3, 6, 7)
            rewards.append(Reward(0.1 * redness(item) + (0.8 if passes else 0.1)))
            self.scored += 1
        return answered(rewards)

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        rewards = []
        for item in items:
            lost = self.rewarded % (2 * KEPT) == 6
            rewards.append(Reward(None) if lost else Reward(brightness(item), {"brightness": brightness(item)}))
            self.rewarded += 1
        return answered(rewards)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(
    make_policy: MakePolicy,  # noqa: F811
    tiny_settings: MakeSettings,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., dict[str, Any]]:
    """`run(1, 3, REWARD_BATCH_SIZE="1")`: the trajectory of a run that stops after step 1 and resumes until step 3."""
    monkeypatch.setattr("trainer.train.log_images", lambda *_: None)  # most of the time, and no part of a trajectory
    monkeypatch.setattr("trainer.checkpoint.KEEP", STEPS)
    made: list[TrainerSettings] = []
    policy = partial(make_policy, kind=RowByRow)

    def make(*ends: int, **options: str) -> dict[str, Any]:
        for steps in ends:
            name = f'"run-{len(made)}"'
            settings = tiny_settings(**{**BASE, **options, "STEPS": str(steps), "RUN_DIR": name})
            run_loop(settings, policy, Patterned(), controller=Quantile(target_pass_rate=0.5, start=0.5))
        made.append(settings)
        return trajectory(settings)

    return make


def trajectory(settings: TrainerSettings) -> dict[str, Any]:
    """Metrics of every step, floats in hexadecimal, and the digest of every tensor and number of each checkpoint."""
    state = {}
    for step in range(1, settings.steps + 1):
        folder = settings.run_dir / f"checkpoints/step-{step:06d}"
        digest = hashlib.sha256((folder / "tensors.safetensors").read_bytes())
        digest.update(json.dumps(json.loads((folder / "state.json").read_text())["state"]).encode())
        state[str(step)] = digest.hexdigest()
    return {"metrics": hexed(lines(settings.run_dir)), "state": state}


def hexed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: hexed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hexed(inner) for inner in value]
    return value.hex() if isinstance(value, float) else value


def plain(value: Any) -> Any:
    """The inverse of `hexed`."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return float.fromhex(value) if isinstance(value, str) and "0x" in value else value


def near(value: Any, least: float) -> Any:
    if isinstance(value, dict):
        return {key: near(inner, least) for key, inner in value.items()}
    if isinstance(value, list):
        return [near(inner, least) for inner in value]
    return pytest.approx(value, rel=1e-4, abs=least) if isinstance(value, float) else value


def machine() -> dict[str, str]:
    """What decides how float32 kernels round."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return {
        "torch": str(torch.__version__),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "cpu": models[0].partition(": ")[2] if models else "unknown",
    }


def test_equivalent_configurations_give_the_recorded_trajectory(run: Callable[..., dict[str, Any]]) -> None:
    whole = run(STEPS)
    assert {line["previews"] for line in whole["metrics"]} == {2 * DRAWN}
    assert {line["kept"] for line in whole["metrics"]} == {2 * KEPT}
    assert len(set(whole["state"].values())) == STEPS  # every step moves the policy
    if os.environ.get("SYNOD_RECORD"):
        RECORD.write_text(json.dumps({"machine": machine(), **whole}, indent=1) + "\n")
    recorded = json.loads(RECORD.read_text())
    if recorded.pop("machine") == machine():
        assert whole == recorded
    for step, (found, expected) in enumerate(zip(plain(whole["metrics"]), plain(recorded["metrics"]), strict=True)):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == near(value, 1e-5 if "cosine" in key else 1e-6), (step, key)
    for options in CONFIGURATIONS:
        assert run(2, **options) == {"metrics": whole["metrics"][:2], "state": {k: whole["state"][k] for k in "12"}}, (
            options
        )
    for done in range(1, STEPS):
        assert run(done, STEPS) == whole, f"resumed after step {done}"

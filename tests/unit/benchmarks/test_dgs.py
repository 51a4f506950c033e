"""The queue of runs with a tiny policy: it skips what is finished, continues what was started, and writes its files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from benchmarks import dgs
from benchmarks.arms import ARMS, settings_of
from benchmarks.timed import curve, trained_s
from synod.errors import SettingsError
from tests.unit.benchmarks.trained_rewards import Killed, Service, config, permuted, stepped  # noqa: F401
from tests.unit.trainer.conftest import settings_from, tiny_settings, world_dir  # noqa: F401
from tests.unit.trainer.loops import MakePolicy
from tests.unit.trainer.tiny_show_o import make_policy, tokenizer_of, vocab, vq  # noqa: F401
from trainer.policy.show_o.policy import ShowO
from trainer.report.metrics import read
from trainer.settings import TrainerSettings

CHANGE = {
    "type": "object",
    "required": ["before", "after", "difference", "stderr", "stderr_by_prompt", "n", "prompts", "dropped"],
}
RUN = {
    "type": "object",
    "required": ["seed", "command", "commit", "machine", "facts", "minutes", "steps", "heldout", "curve"],
    "properties": {
        "heldout": {"type": "object", "additionalProperties": CHANGE, "required": ["image part", "geneval official"]},
        "curve": {"type": "array", "minItems": 2, "items": {"required": ["minutes", "steps", "gain"]}},
    },
}
ARM = {"required": ["arm", "about", "runs"], "properties": {"runs": {"additionalProperties": RUN}}}
RESULT = {
    "required": ["command", "commit", "machine", "marks", "prompts", "primary", "arms"],
    "properties": {
        "arms": {
            "additionalProperties": {
                "required": ["about", "seeds", "failed", "steps", "minutes", "measures", "against"],
            }
        }
    },
}
MARKS_S = (60.0, 120.0)  # after one step of a minute, and after two


class Bench:
    """Makes queues of tiny runs in one directory."""

    def __init__(self, folder: Path, toml: Path, make: MakePolicy) -> None:
        self.folder, self.toml, self.make = folder, toml, make
        self.policies = 0

    def queue(
        self, arms: Sequence[str], service: Service, *, seeds: int = 1, prompts: int = 6, where: str = "dgs"
    ) -> dgs.Queue:
        runs = [dgs.Run(arm, seed, self.settings(arm, seed, prompts, where)) for seed in range(seeds) for arm in arms]
        out, starts = self.folder / f"{where}.json", self.folder / "runs" / where / "starts"
        return dgs.Queue(runs, MARKS_S, out, starts, self._policy, lambda settings: nullcontext(service))

    def settings(self, arm: str, seed: int, prompts: int = 6, where: str = "dgs") -> TrainerSettings:
        folder = self.folder / "runs" / where / arm / f"seed-{seed}"
        return settings_of(arm, self.toml, folder, seed=seed, prompts=prompts, permuted=ARMS[arm].permuted)

    def arm(self, name: str, where: str = "dgs") -> Any:
        return json.loads((self.folder / where / f"{name}.json").read_text())

    def _policy(self, settings: TrainerSettings) -> ShowO:
        self.policies += 1
        sampler = settings.policy.sampler
        policy = self.make(positions=settings.policy.positions, confidence=sampler.confidence)
        policy.keep_reference()
        return policy


@pytest.fixture
def bench(
    tmp_path: Path,
    config: Path,  # noqa: F811
    make_policy: MakePolicy,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Bench:
    monkeypatch.setattr("trainer.checkpoint.KEEP", 2)
    return Bench(tmp_path, config, make_policy)


def gains(run: Any) -> list[Any]:
    return [(one["steps"], one["minutes"], one["gain"]) for one in run["curve"]]


def test_runs_are_recorded_once_and_skipped_after(
    bench: Bench,
    permuted: list[int],  # noqa: F811
) -> None:
    service = Service()
    assert bench.queue(("plain_9", "permuted"), service).work()
    assert (service.sizes.count(9), len(permuted)) == (2, 2), "the control's two requests have a whole group each"
    for name in ("plain_9", "permuted"):
        jsonschema.validate(bench.arm(name), ARM)
        run = bench.arm(name)["runs"]["0"]
        assert [(steps, minutes) for steps, minutes, _ in gains(run)] == [(1, 1.0), (2, 2.0)]
        assert run["heldout"]["image part"]["n"] == 6
        assert run["heldout"]["image part"]["difference"] == gains(run)[-1][2]["image part"]
        tier = run["heldout"]["tier"]
        assert (tier["before"], tier["difference"]) == (pytest.approx(0.1), pytest.approx(0.0))
        assert not (bench.settings(name, 0).run_dir / "checkpoints").exists()
    jsonschema.validate(json.loads((bench.folder / "dgs.json").read_text()), RESULT)
    assert len(list((bench.folder / "runs/dgs/starts").iterdir())) == 1, "both share one evaluation of the start"
    points = curve(bench.settings("plain_9", 0).run_dir)
    assert [(minutes, steps) for minutes, steps, _ in points] == [(1.0, 1), (2.0, 2)]

    asked, policies = len(service.sizes), bench.policies
    assert bench.queue(("plain_9", "permuted"), service).work()
    assert len(service.sizes) == asked
    assert bench.policies == policies + 2, "loaded to compare the weights, not trained"


def test_a_killed_queue_continues_with_equal_results(bench: Bench) -> None:
    """The service dies in the second step; the same queue then ends as an undisturbed one."""
    undisturbed = Service()
    assert bench.queue(("plain_9",), undisturbed, where="whole").work()
    whole = bench.arm("plain_9", "whole")["runs"]["0"]
    evaluation = (len(undisturbed.sizes) - 2 * 3) // 3  # three of them, and two steps of nine images in threes
    with pytest.raises(Killed):
        bench.queue(("plain_9",), Service(dies_at=2 * evaluation + 4)).work()
    assert [line["step"] for line in read(bench.settings("plain_9", 0).run_dir)] == [0]
    assert not (bench.folder / "dgs/plain_9.json").exists()
    again = Service()
    assert bench.queue(("plain_9",), again).work()
    found = bench.arm("plain_9")["runs"]["0"]
    assert gains(found) == gains(whole)
    assert found["heldout"] == whole["heldout"]
    assert len(again.sizes) == evaluation + 3, "the start, the first step and its mark are not drawn again"


def test_nothing_is_started_after_the_deadline(bench: Bench) -> None:
    queue = bench.queue(("plain_9",), Service())
    assert not queue.work(deadline=-math.inf)
    assert not bench.settings("plain_9", 0).run_dir.exists(), "nothing is started after the deadline"


def test_other_settings_and_weights_are_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that was started, and of one that is finished."""
    with pytest.raises(Killed):
        bench.queue(("plain_9",), Service(dies_at=0)).work()
    with pytest.raises(SettingsError, match=r"facts\.json is of a run with other(.|\n)*evaluate\.prompts: 6 there"):
        bench.queue(("plain_9",), Service(), prompts=7).work()
    assert bench.queue(("plain_9",), Service()).work()
    with pytest.raises(SettingsError, match=r"plain_9\.json is of a run with other(.|\n)*evaluate\.prompts: 6 there"):
        bench.queue(("plain_9",), Service(), prompts=7).work()
    monkeypatch.setenv("SYNOD__TRAINER__OPTIMIZER__LR", "2e-3")
    with pytest.raises(SettingsError, match=r"optimizer\.lr: 0\.001 there, 0\.002 now"):
        bench.queue(("plain_9",), Service()).work()
    monkeypatch.delenv("SYNOD__TRAINER__OPTIMIZER__LR")
    make = bench.make

    def other(**options: Any) -> ShowO:
        policy = make(**options)
        policy.phi.lm_head.bias.data[0] += 0.5
        return policy

    bench.make = other
    with pytest.raises(SettingsError, match=r"\n  weights: "):
        bench.queue(("plain_9",), Service()).work()


def test_all_recipes_of_a_seed_come_before_the_next_seed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, int]] = []

    def train(queue: dgs.Queue, run: dgs.Run, deadline: float) -> bool:
        trained.append((run.arm, run.seed))
        return len(trained) < 3

    monkeypatch.setattr(dgs.Queue, "_train", train)
    assert not bench.queue(("plain_9", "paper"), Service(), seeds=2).work()
    assert trained == [("plain_9", 0), ("paper", 0), ("plain_9", 1)]


def test_time_is_that_of_steps_alone() -> None:
    seconds = {"preview": 2.0, "update": 4.0, "evaluate": 30.0, "checkpoint": 1.0, "total": 40.0}
    assert trained_s({"seconds": seconds}) == 9.0
    assert trained_s({"seconds": {"update": 4.0, "total": 5.0}}) == 5.0

"""Evaluations and images on two ranks: every file of a run is byte for byte that of a run on one."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from synod.client import SynodClient
from synod.contracts import ScoreItem
from synod.errors import SettingsError, SynodError
from tests.unit.trainer.evaluate.scoring_service import Service
from tests.unit.trainer.loops import MakePolicy, MakeSettings, lines
from tests.unit.trainer.reward_services import Judge, redness
from tests.unit.trainer.world_two import spawn
from trainer.algorithms.threshold import make_controller
from trainer.distributed import Ranks
from trainer.errors import OtherRankFailed, RewardServiceUnavailable
from trainer.evaluate import command
from trainer.evaluate.during import HeldOut
from trainer.policy.show_o import loading
from trainer.policy.show_o.policy import Sampling
from trainer.report.metrics import read
from trainer.settings import TrainerSettings
from trainer.train import train
from trainer.types import Reward, RewardSpec

pytestmark = pytest.mark.slow
SETTINGS = {
    "STEPS": "3",
    "SEED": "1",
    "OPTIMIZER__LR": "0.1",
    "PROMPTS_PER_STEP": "3",  # a visual, a textual and a GenEval group, of which rank 1 draws the textual one
    "DATA__GENEVAL_SHARE": "0.3333",
    "LOSS__TEXT__BETA": "0",
    "LOSS__IMAGE__BETA": "0",
    "EVALUATE__PROMPTS": "10",  # batches of 4, 4 and 2, of which rank 1 draws the second
    "EVALUATE__EVERY": "1",
    "EVALUATE__PATIENCE": "1",
    "EVALUATE__SCORERS": '["hps"]',
    "CHECKPOINT_EVERY": "100",
}


class Watched(Judge):
    """The scorer that is not trained on measures red; the service is lost after `lost_after` of its requests."""

    def __init__(self, lost_after: int = 10**6) -> None:
        super().__init__()
        self.left = lost_after

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        if "hps" not in reward.scorers:
            return super().submit(items, reward)
        self.left -= 1
        if self.left < 0:
            raise RewardServiceUnavailable("planted")
        future: Future[list[Reward]] = Future()
        future.set_result([Reward(redness(item), {"hps": redness(item)}) for item in items])
        return future


def run(ranks: Ranks, settings: TrainerSettings, model: str, judge: Judge | None = None) -> int:
    """Evaluate and train as `trainer.run` does; return the number of steps."""
    torch.set_num_threads(1)
    judge = judge or Watched()
    policy = loading.load(model, sampling=Sampling(4, 2.0, max_new_tokens=4))
    held_out = HeldOut(settings, judge, print, ranks)
    held_out.before(policy)
    controller = make_controller(settings.screen.threshold, settings.screen.target_pass_rate)
    with pytest.MonkeyPatch.context() as patch:  # the weights of AdamW amplify rounding errors of gradients near 0
        patch.setattr(
            "trainer.state.make_optimizer", lambda policy, _: torch.optim.SGD(policy.parameter_groups()[0].parameters)
        )
        state = train(settings, policy, judge, controller, print, held_out, ranks)
    held_out.after(policy, state.step)
    return state.step


@contextmanager
def fails_on_rank_1(ranks: Ranks, kind: type[Exception]) -> Any:
    with pytest.raises(kind if ranks.rank == 1 else OtherRankFailed):
        yield


def written(run_dir: Path) -> dict[str, bytes]:
    """The files of evaluations and images, by name."""
    found = [*run_dir.glob("evaluation/**/*"), *run_dir.glob("images/**/*"), run_dir / "samples.jsonl"]
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in found if path.is_file()}


def _check(ranks: Ranks, settings: TrainerSettings, failed: TrainerSettings, model: str, steps: int) -> None:
    assert run(ranks, settings, model) == steps
    evaluation = failed.run_dir / "evaluation"

    with fails_on_rank_1(ranks, RewardServiceUnavailable):  # in the evaluation before training
        run(ranks, failed, model, Watched(0 if ranks.rank == 1 else 9))
    assert not list(failed.run_dir.glob("evaluation/*.json"))

    with pytest.MonkeyPatch.context() as patch, fails_on_rank_1(ranks, OSError):  # while an image is written
        if ranks.rank == 1:
            patch.setattr("trainer.evaluate.heldout.write_images", _no_space)
        run(ranks, failed, model)
    assert not list(failed.run_dir.glob("evaluation/*.json")), "rows without their images"

    with fails_on_rank_1(ranks, RewardServiceUnavailable):  # in the evaluation after the first step
        run(ranks, failed, model, Watched(1 if ranks.rank == 1 else 9))
    assert [path.name for path in evaluation.glob("*.json")] == ["before.json"]
    assert [path.name for path in (failed.run_dir / "checkpoints").iterdir()] == ["step-000001"]

    with pytest.MonkeyPatch.context() as patch:  # a rank that reads a shared directory late gets rank 0's rows
        if ranks.rank == 1:
            patch.setattr("trainer.evaluate.during.evaluations", _no_space)
        assert run(ranks, failed, model) == steps

    (evaluation / "before.json").write_text("{}")
    with pytest.raises(SettingsError, match="is not an evaluation"):  # on both ranks
        HeldOut(failed, Watched(), print, ranks)


def evaluate(service: Service, out: str) -> int:
    """Run `synod evaluate` in the present directory: six images in batches of two, the second batch is rank 1's."""
    with pytest.MonkeyPatch.context() as patch:
        transport = httpx.MockTransport(service)
        patch.setattr(command, "SynodClient", lambda url, **_: SynodClient(url, retries=0, transport=transport))
        arguments = ["train.toml", "--suite", "prompts", "--prompts", "prompts.jsonl", "--scorers", "ber"]
        return command.main([*arguments, "--limit", "3", "--images", "2", "--batch", "2", "--out", out])


def _check_command(ranks: Ranks, folder: Path) -> None:
    os.chdir(folder)
    service = Service()
    if ranks.rank == 1:
        service.error = lambda number: SynodError("planted")
    assert evaluate(service, "both") == 1
    assert (folder / "both/rows-1.jsonl").exists(), "what rank 1 has scored waits for the next run"
    service.error = lambda number: None
    service.fails = lambda scorer, value: ranks.rank == 1
    assert evaluate(service, "both") == 1, "a missing score of rank 1"
    service.fails = lambda scorer, value: False
    assert evaluate(service, "both") == 0
    assert service.num_items == 4 if ranks.rank == 0 else 6, "rank 0 scores its four images once"


def scores(out: Path) -> dict[str, float]:
    """The scores of the images in rows.jsonl."""
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    found = [(row["item"]["image"], row["scores"]["ber"].get("value")) for row in rows]
    return {image: value for image, value in found if value is not None}


def _check_all(ranks: Ranks, run_arguments: Sequence[Any], folder: Path) -> None:
    _check(ranks, *run_arguments)
    _check_command(ranks, folder)


def _no_space(*_: object) -> Any:
    raise OSError(28, "No space left on device")


def test_files_of_two_ranks_are_those_of_one(
    tiny_settings: MakeSettings,
    make_policy: MakePolicy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One start of two processes, which takes most of the time, serves all cases."""
    make_policy().save(tmp_path / "start")
    one, two, failed = (tiny_settings(RUN_DIR=f'"{name}"', **SETTINGS) for name in ("one", "two", "failed"))
    steps = run(Ranks(), one, str(tmp_path / "start"))
    assert 1 < steps < 3, "the run ends early, and not at once"
    make_policy().save(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert evaluate(Service(), "alone") == 0
    capfd.readouterr()
    spawn(_check_all, tmp_path, (two, failed, str(tmp_path / "start"), steps), tmp_path)
    expected = written(one.run_dir)
    assert written(two.run_dir) == expected
    assert {name.rpartition("/")[2] for name in expected} >= {"before.json", "after.json", "image-009.png"}
    assert len({name for name in expected if name.startswith("images/000000/group1-")}) > 4
    assert [line["heldout"] for line in lines(two.run_dir)] == [line["heldout"] for line in lines(one.run_dir)]
    for line in read(two.run_dir):
        shared = line["ranks"]
        assert 0 <= shared["wait_share"] < 1
        assert shared["slowest"] in (0, 1)
        assert shared["seconds"].keys() == line["seconds"].keys()
    assert [line["ranks"] for line in read(one.run_dir)] == [None] * steps
    (failed.run_dir / "evaluation/before.json").write_bytes(expected["evaluation/before.json"])
    assert written(failed.run_dir) == expected

    said = capfd.readouterr()
    assert said.out.count("images and scores:") == 2, "rank 0 alone prints"
    assert "rank 1 failed: SynodError: planted" in said.err
    drawn = {str(path.relative_to(tmp_path / "alone")): path.read_bytes() for path in tmp_path.glob("alone/**/*.png")}
    assert len(drawn) == 6
    for name, image in drawn.items():
        assert (tmp_path / "both" / name).read_bytes() == image
    assert scores(tmp_path / "both") == scores(tmp_path / "alone")
    assert not list(tmp_path.glob("both/rows-*"))

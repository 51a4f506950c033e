"""Checkpoints: exact, atomic, and refused with other settings."""

from __future__ import annotations

import json
import math
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.trainer.tiny_run import make_settings
from trainer import checkpoint
from trainer.checkpoint import CheckpointMismatch, CheckpointNotWritten, fingerprint, latest, load, save
from trainer.settings import TrainerSettings

Make = Callable[..., TrainerSettings]


def same(a: Any, b: Any) -> bool:
    """Equal in structure, type and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def test_every_kind_of_value_comes_back(settings_from: Make, tmp_path: Path) -> None:
    tensors = [
        torch.arange(6).reshape(2, 3).T,
        torch.tensor(0.1, dtype=torch.float64),
        torch.tensor([math.nan, math.inf, -0.0]),
        torch.zeros(0, 3),
        torch.randn(3, generator=torch.Generator().manual_seed(0)).bfloat16(),
        torch.tensor([True, False]),
    ]
    scalars = [None, True, -(2**70), 0.1, math.nan, -math.inf, "", "a/0", "\u00f6"]
    tree = {"tensors": tensors, "a/0": {0: scalars, "0": tuple(tensors), "": {}}, 7: ([], ((),), [{}])}
    assert same(load(save(tmp_path, 1, tree, settings_from()), settings_from())[1], tree)


def test_tied_weights_are_saved_separately(settings_from: Make, tmp_path: Path) -> None:
    weight = torch.randn(4, 4)
    state = {"embed": weight, "head": weight, "row": weight[1], "transposed": weight.T}
    _, back = load(save(tmp_path, 1, state, settings_from()), settings_from())
    assert same(back, state)


@pytest.mark.parametrize("value", [np.float64(1), {1.5: 1}, {"a": {None: 1}}, object(), {1, 2}, b"x", 1j])
def test_unsupported_values_are_refused_before_writing(settings_from: Make, tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match="/here"):
        save(tmp_path / "c", 1, {"here": value}, settings_from())
    assert not (tmp_path / "c").exists()


def test_the_last_two_are_kept_and_the_newest_is_found(
    settings_from: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "KEEP", 2)
    settings = settings_from()
    assert latest(tmp_path / "none") is None
    for step in (2, 10, 9, 999_999, 1_000_000):
        save(tmp_path / "c", step, {"x": step}, settings)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["step-1000000", "step-999999"]
    newest = latest(tmp_path / "c")
    assert newest is not None
    assert load(newest, settings) == (1_000_000, {"x": 1_000_000})


def test_an_existing_checkpoint_is_not_overwritten(settings_from: Make, tmp_path: Path) -> None:
    settings = settings_from()
    save(tmp_path, 4, {"x": 1}, settings)
    assert load(save(tmp_path, 4, {"x": 2}, settings), settings) == (4, {"x": 1})


def test_incomplete_checkpoints_are_ignored_and_removed(settings_from: Make, tmp_path: Path) -> None:
    """As after a SIGKILL."""
    save(tmp_path, 1, {"x": 1}, settings_from())
    for name in (".partial-2", ".partial-step-000000", "step-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tensors.safetensors").write_bytes(b"half")
    newest = latest(tmp_path)
    assert newest is not None
    assert newest.name == "step-000001"
    save(tmp_path, 2, {"x": 2}, settings_from())
    assert sorted(path.name for path in tmp_path.glob("*step*")) == ["step-000001", "step-000002", "step-x"]
    assert not list(tmp_path.glob(".partial*"))


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file grows beyond 100 kB: writing stops in the middle of one, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_last_checkpoint(settings_from: Make, tmp_path: Path, small_disk: None) -> None:
    settings = settings_from()
    save(tmp_path / "c", 1, {"x": torch.ones(3)}, settings)
    with pytest.raises(CheckpointNotWritten, match=r"step 2 could not .*File too large.*step-000001 is intact"):
        save(tmp_path / "c", 2, {"x": torch.ones(100_000)}, settings)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-000001"]
    assert same(load(tmp_path / "c/step-000001", settings)[1], {"x": torch.ones(3)})


@pytest.mark.parametrize("failing", ["Path.mkdir", "save_file", "Path.write_text", "os.fsync", "Path.rename"])
def test_a_failed_write_keeps_the_last_checkpoint(
    settings_from: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    settings, directory = settings_from(), tmp_path / "c"
    save(directory, 1, {"x": torch.ones(3)}, settings)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"trainer.checkpoint.{failing}", full)
        with pytest.raises(CheckpointNotWritten, match=r"No space left.*step-000001 is intact"):
            save(directory, 2, {"x": torch.ones(5)}, settings)
    assert [path.name for path in directory.iterdir()] == ["step-000001"]
    assert load(save(directory, 2, {"x": 5}, settings), settings) == (2, {"x": 5})


def test_a_failed_first_checkpoint_is_reported(settings_from: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointNotWritten, match="no earlier one exists"):
        save(tmp_path / "file/c", 1, {}, settings_from())


def test_other_settings_are_refused_by_name(settings_from: Make, tmp_path: Path) -> None:
    path = save(tmp_path / "c", 1, {"x": 1}, settings_from("[trainer.screen]\nthreshold = 'none'\n"))
    with pytest.raises(CheckpointMismatch) as caught:
        load(
            path,
            settings_from("[trainer.screen]\nthreshold = 'power'\n", LOSS__TEXT__BETA="0.02", LOSS__IMAGE__BETA="0.02"),
        )
    message = str(caught.value)
    assert "trainer.loss.image.beta: 0.01 there, 0.02 now" in message
    assert 'trainer.screen.threshold: "none" there, "power" now' in message
    assert "a new `run_dir`" in message
    assert "trainer.steps" not in message


def test_other_rewards_and_prompts_are_refused_by_name(settings_from: Make, tmp_path: Path) -> None:
    saved = "[trainer.rewards]\nscorers = { ber = 1.0, jpeg = -1.0 }\n"
    path = save(tmp_path / "c", 1, {"x": 1}, settings_from(saved))
    with pytest.raises(CheckpointMismatch) as caught:
        load(
            path,
            settings_from(
                "[trainer.screen]\nselect = 'extremes'\n"
                "[trainer.rewards]\nscorers = { ber = 0.5, hps = 1.0 }\naggregation = 'gdpo'\n"
            ),
        )
    message = str(caught.value)
    for change in ("ber: 1.0 there, 0.5 now", "jpeg: -1.0 there, absent now", "hps: absent there, 1.0 now"):
        assert f"trainer.rewards.scorers.{change}" in message
    assert 'trainer.rewards.aggregation: "sum" there, "gdpo" now' in message
    with pytest.raises(CheckpointMismatch, match=r'trainer\.rewards\.ensemble: null there, "sync_r1" now'):
        load(path, settings_from())
    with pytest.raises(CheckpointMismatch, match=r"trainer\.data\.geneval_share: 0\.0 there, 0\.5 now"):
        load(path, settings_from(saved, DATA__GENEVAL_SHARE="0.5"))


def test_free_settings_may_change(settings_from: Make, tmp_path: Path) -> None:
    path = save(tmp_path / "c", 1, {"x": 1}, settings_from())
    free = {"STEPS": "7", "REWARDS__URL": "http://far:1", "REWARDS__PATIENCE_S": "1", "CHECKPOINT_EVERY": "9"}
    settings = settings_from("", RUN_DIR="elsewhere", EVALUATE__PROMPTS="3", EVALUATE__SCORERS="{ hps = 1.0 }", **free)
    assert load(path, settings) == (1, {"x": 1})


def test_a_run_may_move_with_its_files(settings_from: Make, world_dir: Path, tmp_path: Path) -> None:
    """As the working directory of another Ray job; other files under the same names are another run."""
    path = save(tmp_path / "c", 1, {"x": 1}, settings_from())
    there = tmp_path / "moved"
    shutil.copytree(world_dir, there, ignore=shutil.ignore_patterns("c", "moved"))
    settings = make_settings(there)
    assert settings.data.prompts != settings_from().data.prompts
    assert load(path, settings) == (1, {"x": 1})
    (there / "concepts/bo/train/0.png").write_bytes(b"another")
    with pytest.raises(CheckpointMismatch, match=r"trainer\.data\.concepts \(content\): "):
        load(path, settings)


def test_every_other_setting_is_bound(settings_from: Make) -> None:
    """A new setting is bound until it is declared free."""
    bound = fingerprint(settings_from())
    assert {key.split(".")[0] for key in {*bound, *checkpoint.FREE}} == set(TrainerSettings.model_fields)
    assert not bound.keys() & checkpoint.FREE
    assert "rewards.ensemble" in bound  # another ensemble is another reward
    assert json.loads(json.dumps(bound)) == bound


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "state.json").unlink(),
        lambda path: (path / "state.json").write_text('{"step": 1}'),
        lambda path: (path / "state.json").write_text("[]"),
        lambda path: (path / "tensors.safetensors").write_bytes((path / "tensors.safetensors").read_bytes()[:-4]),
        lambda path: (path / "tensors.safetensors").unlink(),
    ],
)
def test_a_damaged_checkpoint_is_named_with_a_remedy(
    settings_from: Make, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    path = save(tmp_path / "c", 1, {"x": torch.ones(9)}, settings_from())
    damage(path)
    with pytest.raises(CheckpointMismatch, match=r"step-000001 cannot be read .*Remove it"):
        load(path, settings_from())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_more_steps_need_a_constant_learning_rate(settings_from: Make, tmp_path: Path, schedule: str) -> None:
    constant, falling = (f'[trainer.optimizer]\nschedule = "{name}"' for name in ("constant", schedule))
    saved = save(tmp_path / "constant", 1, {"x": 1}, settings_from(constant, STEPS="5"))
    assert load(saved, settings_from(constant, STEPS="6")) == (1, {"x": 1})
    saved = save(tmp_path / "falling", 1, {"x": 1}, settings_from(falling, STEPS="5"))
    assert load(saved, settings_from(falling, STEPS="5")) == (1, {"x": 1})
    with pytest.raises(CheckpointMismatch, match=r"trainer\.steps: 5 there, 6 now"):
        load(saved, settings_from(falling, STEPS="6"))

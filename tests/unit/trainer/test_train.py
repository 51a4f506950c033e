"""The training loop: screen, thresholds, failures, signals, and that the policy learns."""

from __future__ import annotations

import copy
import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from synod.contracts import ScoreItem
from synod.errors import InvalidRequest
from tests.unit.trainer.loops import (
    LEARNING,
    NO_SCREEN,
    MakePolicy,
    MakeSettings,
    equal,
    lines,
    previews_of,
    run_loop,
    tasks,
    weights,
)
from tests.unit.trainer.reward_services import Judge, Measure, brightness, redness
from trainer import checkpoint
from trainer.algorithms.screen import ScreenResult
from trainer.algorithms.threshold import Paper, Power, Quantile, ThresholdController, ThresholdState
from trainer.checkpoint import CheckpointMismatch
from trainer.clock import Clock
from trainer.distributed import ONE_RANK
from trainer.errors import NonFinite, OutOfMemory
from trainer.groups import Previews, ScoredGroup
from trainer.policy.show_o.policy import ShowO
from trainer.report.metrics import SAMPLES, Metrics, read
from trainer.sampling import finish, sample_previews
from trainer.settings import TrainerSettings
from trainer.state import TrainState
from trainer.stop import stop_on_signal
from trainer.types import Prompt, Reward, RewardSpec, Task

EVERY = {"CHECKPOINT_EVERY": "1"}


def files(run: Path, step: int) -> dict[str, bytes]:
    """The bytes of each file of a checkpoint."""
    folder = run / f"checkpoints/step-{step:06d}"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def saved(step: int, settings: TrainerSettings) -> dict[str, Any]:
    return checkpoint.load(settings.run_dir / f"checkpoints/step-{step:06d}", settings)[1]


def test_a_screen_that_keeps_all_equals_no_screen(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    """Parameters, optimizer state and metrics are equal, bit for bit."""
    runs = list[TrainerSettings]()
    for threshold in ("quantile", NO_SCREEN):
        options = {"STEPS": "1", "PROMPTS_PER_STEP": "2", "REWARD_BATCH_SIZE": "4", "SCREEN__THRESHOLD": threshold}
        settings = tiny_settings(**options, RUN_DIR=f'"{threshold}"')
        run_loop(settings, make_policy, Judge())
        runs.append(settings)
    first, second = (files(run.run_dir, 1)["tensors.safetensors"] for run in runs)
    assert first == second
    assert not equal(weights(make_policy()), saved(1, runs[0])["policy"])
    (one,), (two,) = (lines(run.run_dir) for run in runs)
    assert one == two
    assert (one["previews"], one["kept"], one["threshold"], one["pass_rate"]) == (8, 8, None, 1.0)
    for modality, limit in (("image", 1e-6), ("text", 1e-5)):
        assert abs(one[f"ratio_max_{modality}"] - 1) < limit
        assert abs(one[f"ratio_min_{modality}"] - 1) < limit
        assert one[f"clip_fraction_{modality}"] == 0


def test_a_finished_run_is_not_changed(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    settings = tiny_settings(STEPS="1")
    with ONE_RANK.clock("loading"):
        pass
    run_loop(settings, make_policy, Judge())
    (record,) = read(settings.run_dir)
    assert "loading" not in record["seconds"], "the first step does not include what was before it"
    before, message, asked = files(settings.run_dir, 1), lines(settings.run_dir), Judge()
    state = run_loop(settings, make_policy, asked)
    assert (state.step, asked.asked, asked.previewed) == (1, [], [])
    assert files(settings.run_dir, 1) == before
    assert lines(settings.run_dir) == message
    longer = tiny_settings(STEPS="2")
    assert run_loop(longer, make_policy, Judge()).step == 2
    assert lines(settings.run_dir)[:1] == message


@pytest.mark.parametrize("part", ["module", "vq"])
def test_a_policy_without_frozen_weights_does_not_resume_on_another_base(
    make_policy: MakePolicy, tiny_settings: MakeSettings, part: str
) -> None:
    """Its reference and its image tokenizer would be those of another model."""
    run_loop(tiny_settings(STEPS="1", CHECKPOINT_EVERY="1"), make_policy, Judge())
    other = make_policy()
    other.vq = copy.deepcopy(other.vq)  # the tests share one
    next(getattr(other, part).parameters()).data.view(-1)[0] += 0.5
    with pytest.raises(CheckpointMismatch, match=r"step 1 started from other weights than \[trainer.policy\]"):
        run_loop(tiny_settings(STEPS="2"), make_policy, Judge(), other)


def test_missing_scores_and_a_failed_write_do_not_change_a_resumed_run(
    make_policy: MakePolicy, tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that stops at a full disk resumes to the checkpoints and records of a whole run, bit for bit."""

    def lossy(measure: Measure, every: int) -> Measure:
        return lambda item: None if int(item.pixels().sum()) % every == 0 else measure(item)

    options = {**EVERY, "STEPS": "3", "PROMPTS_PER_STEP": "2", "LOSS__BASELINE": "population"}
    whole, cut = (tiny_settings(**options, RUN_DIR=f'"{name}"') for name in ("whole", "cut"))
    judge = Judge(lossy(brightness, 5), lossy(redness, 4))
    run_loop(whole, make_policy, judge)
    assert 0 < sum(line["masked"] for line in lines(whole.run_dir)) < 8
    assert 4 < sum(score is None for _, score in judge.previewed) < len(judge.previewed) / 2
    count = iter(range(9))

    def full(tensors: Any, path: Path) -> None:
        if next(count) == 1:
            path.write_bytes(b"the first part")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path)

    monkeypatch.setattr("trainer.checkpoint.save_file", full)
    with pytest.raises(checkpoint.CheckpointNotWritten, match=r"step 2 .*No space left.*step-000001 is intact"):
        run_loop(cut, make_policy, judge)
    assert run_loop(cut, make_policy, judge).step == 3
    assert lines(cut.run_dir) == lines(whole.run_dir)
    for step in (1, 2, 3):
        first, second = (saved(step, settings) for settings in (whole, cut))
        assert files(cut.run_dir, step)["tensors.safetensors"] == files(whole.run_dir, step)["tensors.safetensors"]
        assert (first["thresholds"], first["slopes"]) == (second["thresholds"], second["slopes"])


# -- thresholds -------------------------------------------------------------------------------------------------------


def test_every_key_has_its_own_threshold(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    """Surrogate scores differ by ten between the pathways, and every third one is missing."""
    count = iter(range(10_000))

    def surrogate(item: ScoreItem) -> float | None:
        level = 10.0 * str(item.prompt).startswith("photo")
        return None if next(count) % 3 == 2 else level + redness(item)

    judge = Judge(surrogate=surrogate)
    settings = tiny_settings(STEPS="4", PROMPTS_PER_STEP="2")
    state = run_loop(settings, make_policy, judge)
    scores = iter(score for _, score in judge.previewed)
    expected = dict.fromkeys(("<bo>/visual", "<bo>/textual"), ThresholdState())
    for line in lines(settings.run_dir):
        assert line["capped"] <= 2
        passed, judged, thresholds, previews = 0, 0, [], 0
        for key in line["keys"]:
            threshold, mine = expected[key].threshold, []
            while True:  # batches of four up to twelve previews
                mine += [next(scores) for _ in range(4)]
                good = [s is not None and s > threshold for s in mine] if threshold is not None else [True] * len(mine)
                if sum(good) >= 4 or len(mine) == 12:
                    break
            measured = [s for s in mine if s is not None]
            passed, previews = passed + sum(good), previews + len(mine)
            judged += len(mine) if threshold is None else len(measured)
            thresholds += [] if threshold is None else [threshold]
            expected[key] = Quantile(target_pass_rate=0.5).update(expected[key], measured, len(mine), 0, False)
        assert line["previews"] == previews
        assert line["pass_rate"] == passed / judged
        assert line["threshold"] == (pytest.approx(sum(thresholds) / len(thresholds)) if thresholds else None)
    assert next(scores, "none left") == "none left"
    assert state.thresholds == expected
    textual, visual = (expected[f"<bo>/{pathway}"].threshold or 0 for pathway in ("textual", "visual"))
    assert 0 < textual < 1 < 10 < visual


def test_a_threshold_is_fixed_within_a_step(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    """Of six GenEval groups of two tags in a step, all of one tag have one threshold; their scores move the next."""
    settings = tiny_settings(STEPS="2", PROMPTS_PER_STEP="6", DATA__GENEVAL_SHARE="1.0")
    used: list[dict[str, set[float | None]]] = []
    state = TrainState.new(make_policy(), Quantile(0.5), settings)
    for step in range(2):
        thresholds: dict[str, set[float | None]] = {}
        groups = []
        for index, task in enumerate(tasks(settings, step)):
            key = (settings.seed, step, index)
            previews = previews_of(
                sample_previews(state.policy, Judge(), task, state.plan(task, settings, key), settings, key, Clock())
            )
            thresholds.setdefault(task.key, set()).add(previews.threshold)
            groups.append(finish(state.policy, Judge(), previews, settings, Clock()).wait())
        state.advance(groups)
        used.append(thresholds)
    assert [len(values) for thresholds in used for values in thresholds.values()] == [1] * 4
    assert all(used[1][key] != used[0][key] for key in used[1])


@pytest.mark.parametrize("controller", [Quantile(0.5, start=0.5), Power(), Paper()])
def test_groups_of_one_key_move_a_threshold_once(
    make_policy: MakePolicy, tiny_settings: MakeSettings, controller: ThresholdController
) -> None:
    """By the scores and counts of both; the second reached its cap, and one of its scores is missing."""

    def group(key: str, scores: tuple[float | None, ...], passed: int, *topped_up: int) -> ScoredGroup:
        screened = ScreenResult((0,), passed, len(scores), len(scores), is_full=True, topped_up=topped_up)
        task = Task(key, "visual", Prompt("a photo", "tag"), RewardSpec({"ber": 1.0}))
        return ScoredGroup(Previews(task, (), (), scores, screened, 0.5), (), (), (Reward(None),), ("",))

    state = TrainState.new(make_policy(), controller, tiny_settings())
    state.advance(
        [group("a", (0.2, 0.6, 0.7, 0.4), 2), group("b", (0.8, 0.9), 2), group("a", (0.1, None, 0.9, 0.3), 1, 0)]
    )
    start = controller.initial_state()
    assert state.thresholds == {
        "a": controller.update(start, [0.2, 0.6, 0.7, 0.4, 0.1, 0.9, 0.3], 8, 3, True),
        "b": controller.update(start, [0.8, 0.9], 2, 2, False),
    }


def test_the_average_is_resumed_evaluated_and_saved(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    def run(name: str, *ends: str) -> TrainState:
        for steps in ends:
            settings = tiny_settings(STEPS=steps, OPTIMIZER__EMA="0.5", RUN_DIR=f'"{name}"', CHECKPOINT_EVERY="1")
            state = run_loop(settings, make_policy, Judge())
        return state

    whole, resumed = run("whole", "3"), run("resumed", "1", "3")
    assert whole.ema is not None
    assert resumed.ema is not None
    assert equal(whole.ema.to_save(), resumed.ema.to_save())
    last = weights(whole.policy)
    with whole.averaged():
        assert equal(weights(whole.policy), whole.ema.to_save())
        assert not equal(weights(whole.policy), last)
    assert equal(weights(whole.policy), last)


def test_a_capped_group_is_counted(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    """Ten of twelve previews are below the threshold: two pass, the two best of the others top up the group."""
    scores = [0.1, 0.2, 0.9, 0.3, 0.42, 0.1, 0.8, 0.2, 0.1, 0.45, 0.3, 0.2]
    left = iter(scores)
    settings, controller = tiny_settings(STEPS="1"), Quantile(target_pass_rate=0.5, start=0.5)
    state = run_loop(settings, make_policy, Judge(surrogate=lambda item: next(left)), controller=controller)
    (line,) = lines(settings.run_dir)
    assert (line["capped"], line["previews"], line["kept"], line["pass_rate"]) == (1, 12, 4, 2 / 12)
    assert (line["threshold"], line["masked"], line["skipped"]) == (0.5, 0, 0)
    assert (line["denoising_steps"], line["denoising_steps_unscreened"]) == (12 * 1 + 4 * 3, 48)
    assert line["denoising_steps_saved_ratio"] == pytest.approx(1 - 24 / 48)
    expected = controller.update(ThresholdState(0.5), scores, 12, 2, True)
    assert list(state.thresholds.values()) == [expected]


# -- failures ---------------------------------------------------------------------------------------------------------


def test_flat_groups_are_replaced_and_resumed(
    make_policy: MakePolicy, tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts with an even digit are flat. A resumed run draws the same replacements."""
    drawn: list[tuple[str, tuple[int, ...], str]] = []
    screened = set[tuple[str, int, str]]()  # the keys of thresholds, by run and step

    def watched(policy: Any, service: Any, task: Task, plan: Any, settings: Any, key: Any, clock: Any) -> Any:
        drawn.append((settings.run_dir.name, tuple(key), task.prompt.text))
        screened.add((settings.run_dir.name, key[1], task.key))
        return sample_previews(policy, service, task, plan, settings, key, clock)

    monkeypatch.setattr("trainer.rollout.sample_previews", watched)

    def reward(item: ScoreItem) -> float:
        return 0.5 if any(digit in str(item.prompt) for digit in "02468") else brightness(item)

    moved: list[str] = []

    class Counted(Quantile):
        def update(self, *arguments: Any) -> ThresholdState:
            moved.append("once")
            return super().update(*arguments)

    def run(name: str, *ends: str, **options: str) -> TrainerSettings:
        for steps in ends:
            settings = tiny_settings(**EVERY, **options, STEPS=steps, PROMPTS_PER_STEP="2", RUN_DIR=f'"{name}"')
            run_loop(settings, make_policy, Judge(reward), controller=Counted(target_pass_rate=0.5))
        return settings

    plain, whole, cut = (
        run("plain", "3"),
        *(run(*one, RESAMPLE_FLAT_GROUPS="8") for one in (("a", "3"), ("b", "1", "3"))),
    )
    before, found = lines(plain.run_dir), lines(whole.run_dir)
    assert sum(line["flat"] for line in before) > 0
    assert {line["replaced"] for line in before} == {0}
    assert sum(line["flat"] for line in found) == 0
    assert sum(line["replaced"] for line in found) > 0
    assert {line["kept"] for line in found} == {8}
    assert lines(cut.run_dir) == found
    assert files(cut.run_dir, 3)["tensors.safetensors"] == files(whole.run_dir, 3)["tensors.safetensors"]
    assert len(drawn) == sum(2 + line["replaced"] for line in [*before, *found, *found])
    assert len(moved) == len(screened) < len(drawn)  # once by all groups of a step that share a threshold
    keys = [key for name, key, _ in drawn if name == "a"]
    assert len(set(keys)) == len(keys)  # no two groups have the same random numbers
    firsts = [prompt for name, key, prompt in drawn if name == "a" and key[2] == 2]
    assert len(set(firsts)) == len(firsts) > 1  # each step has its own replacements


def test_missing_rewards_are_masked_and_counted(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    count = iter(range(100))
    values: list[float | None] = []

    def reward(item: ScoreItem) -> float | None:
        values.append(None if next(count) % 4 == 1 else 0.5 + brightness(item))
        return values[-1]

    settings = tiny_settings(STEPS="1", PROMPTS_PER_STEP="2")
    run_loop(settings, make_policy, Judge(reward))
    (line,) = lines(settings.run_dir)
    measured = [value for value in values if value is not None]
    assert (line["masked"], line["kept"], line["skipped"]) == (2, 8, 0)
    assert line["reward_mean"] == pytest.approx(sum(measured) / 6)
    assert line["components"] == {"ber": pytest.approx(sum(measured) / 6)}
    groups = read(settings.run_dir, SAMPLES)
    assert [s["score"] for group in groups for s in group["samples"]["finished"]] == values


def test_a_step_without_rewards_changes_no_weights(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    """All rewards of the first step but one are missing; the second step trains as usual."""
    count = iter(range(100))
    settings = tiny_settings(STEPS="2", PROMPTS_PER_STEP="2", **EVERY)
    run_loop(settings, make_policy, Judge(lambda item: None if next(count) < 7 else brightness(item)))
    first, second = lines(settings.run_dir)
    assert (first["skipped"], first["masked"], first["kept"]) == (2, 7, 8)  # one reward is below two
    names = ("loss_text", "loss_image", "grad_norm", "advantage_abs_text", "advantage_abs_image")
    assert [first[name] for name in names] == [None] * 5
    initial = weights(make_policy())
    one, two = (saved(step, settings) for step in (1, 2))
    assert equal(one["policy"], initial)
    assert one["optimizer"]["state"] == {}
    assert (second["skipped"], second["masked"]) == (0, 0)
    assert second["grad_norm"] > 0
    assert not equal(two["policy"], initial)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_non_finite_loss_stops_and_saves_the_group(
    make_policy: MakePolicy, tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """In step 1, of GenEval and concept groups: weights stay, and rollouts with rewards are saved."""
    settings = tiny_settings(STEPS="3", PROMPTS_PER_STEP="2", DATA__GENEVAL_SHARE="0.5", **EVERY)
    policy, judge = make_policy(), Judge()
    terms, calls = policy.terms, iter(range(1000))

    def poisoned(segments: Any, step: int, **options: Any) -> Any:
        found = terms(segments, step, **options)
        if step != 3 or segments[0].prompt not in GENEVAL or next(calls) != 1:
            return found
        new = found.new_BD
        return replace(found, new_BD=new * torch.nan if where == "loss" else new + (new.sum() * 0).sqrt())

    monkeypatch.setattr(policy, "terms", poisoned)
    with pytest.raises(NonFinite) as caught:
        run_loop(settings, make_policy, judge, policy)
    folder = settings.run_dir / "failed/step-000001"
    assert str(folder) in str(caught.value)
    assert "step 1: the " in str(caught.value)
    assert "nothing was updated" in str(caught.value)
    assert equal(weights(policy), saved(1, settings)["policy"])
    assert checkpoint.latest(settings.run_dir / "checkpoints") == settings.run_dir / "checkpoints/step-000001"
    assert [line["step"] for line in lines(settings.run_dir)] == [0]
    message = json.loads((folder / "groups.json").read_text())
    tensors = load_file(folder / "rollouts.safetensors")
    if where == "loss":
        (group,) = message["groups"]
        assert group["key"].endswith("/none")
        assert len(group["rollouts"]) == 4
        assert {name.split(".")[0] for name in tensors} == {f"group{caught.value.group}"}
    else:
        assert len(message["groups"]) == 2
        assert {name.split(".")[0] for name in tensors} == {"group0", "group1"}
        assert sum("-text.ids_S" in name for name in tensors) == 4  # of the concept's group
    images = [value for name, value in tensors.items() if name.endswith("-image.codes_TN")]
    assert [tuple(value.shape) for value in images] == [(4, 16)] * (4 * len(message["groups"]))
    assert all(reward["value"] is not None for group in message["groups"] for reward in group["rewards"])


GENEVAL = {f"a photo of {i} cats" for i in range(3)} | {"a photo of two dogs"}


# -- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["while drawing", "between two steps"])
def test_a_signal_stops_after_the_current_step(
    make_policy: MakePolicy,
    tiny_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    when: str,
) -> None:
    """No finished step is lost, although a checkpoint is due only every ten steps."""
    settings = tiny_settings(STEPS="9", SCREEN__THRESHOLD=NO_SCREEN, REWARD_BATCH_SIZE="4")
    count, update, before = iter(range(99)), tqdm.update, signal.getsignal(number)

    def reward(item: ScoreItem) -> float:
        if when == "while drawing" and next(count) == 5:  # the second image of step 1
            os.kill(os.getpid(), number)
        return brightness(item)

    def shown(bar: Any, n: int = 1) -> Any:
        if when == "between two steps" and next(count) == 1:
            os.kill(os.getpid(), number)
        return update(bar, n)

    monkeypatch.setattr(tqdm, "update", shown)
    state = run_loop(settings, make_policy, Judge(reward))
    assert state.step == 2
    assert [path.name for path in (settings.run_dir / "checkpoints").iterdir()] == [f"step-{state.step:06d}"]
    assert [line["step"] for line in lines(settings.run_dir)] == list(range(state.step))
    assert "stopping after this step" in capsys.readouterr().out
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts(tmp_path: Path) -> None:
    with stop_on_signal(tmp_path) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        while not stop.is_set():  # the handler runs between two instructions
            pass
        os.kill(os.getpid(), signal.SIGTERM)  # a second SIGTERM has no effect
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


# -- learning ---------------------------------------------------------------------------------------------------------


def test_policy_learns_and_not_from_permuted_rewards(
    make_policy: MakePolicy, tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward is the share of red pixels; permuted within the group, it is independent of the images."""
    monkeypatch.setattr("trainer.train.log_images", lambda *_: None)  # which takes most of the time
    settings = {**LEARNING, "OPTIMIZER__LR": "3e-4"}
    rises = {}
    for name, judge in (("true", Judge(red_share)), ("permuted", Permuted(red_share))):
        policy = make_policy()
        policy.phi.lm_head.weight.data *= 0.2  # near uniform, with everything to learn
        run = tiny_settings(**settings, RUN_DIR=f'"{name}"')
        run_loop(run, make_policy, judge, policy)
        rewards = [line["reward_mean"] for line in lines(run.run_dir)]
        rises[name] = np.mean(rewards[-6:]) - np.mean(rewards[:1])
    assert rises["true"] > 0.08
    assert rises["permuted"] < 0.5 * rises["true"]


def red_share(item: ScoreItem) -> float:
    return float((item.pixels()[..., 0] > 128).mean())


class Permuted(Judge):
    def submit(self, items: Any, pathway: Any) -> Any:
        order = np.random.default_rng(len(self.asked)).permutation(len(items))
        return super().submit([items[i] for i in order], pathway)


@pytest.mark.parametrize(
    "error", [InvalidRequest("planted"), MemoryError(), OSError("planted")], ids=lambda e: type(e).__name__
)
def test_any_failure_keeps_the_finished_steps(
    make_policy: MakePolicy, tiny_settings: MakeSettings, error: Exception
) -> None:
    asked = iter(range(100))

    def reward(item: ScoreItem) -> float:
        if next(asked) == 10:  # in the third step of four rollouts
            raise error
        return brightness(item)

    settings = tiny_settings(STEPS="4", CHECKPOINT_EVERY="9")
    with pytest.raises((type(error), OutOfMemory)):
        run_loop(settings, make_policy, Judge(reward))
    assert [path.name for path in (settings.run_dir / "checkpoints").iterdir()] == ["step-000002"]


def test_a_step_that_is_half_done_is_not_saved(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    """The optimizer fails in the second step, in which it may have changed some weights."""
    steps = iter(range(100))

    def step(self: torch.optim.AdamW, *_: object) -> None:
        if next(steps) == 1:
            raise MemoryError("planted")

    settings = tiny_settings(STEPS="4", CHECKPOINT_EVERY="9")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(OutOfMemory, match="planted"):
            run_loop(settings, make_policy, Judge(brightness))
    assert not (settings.run_dir / "checkpoints").exists()


def test_a_record_that_cannot_be_written_loses_no_step(
    make_policy: MakePolicy, tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log(self: Metrics, step: int, values: object) -> None:
        if step == 1:
            raise OSError("planted")

    monkeypatch.setattr(Metrics, "log", log)
    settings = tiny_settings(STEPS="4", CHECKPOINT_EVERY="9")
    with pytest.raises(OSError, match="planted"):
        run_loop(settings, make_policy, Judge(brightness))
    assert [path.name for path in (settings.run_dir / "checkpoints").iterdir()] == ["step-000002"]


def test_samples_have_components_and_no_unscored_previews(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    for threshold, kinds in (("none", {"finished"}), ("quantile", {"finished", "previews", "rejected"})):
        settings = tiny_settings(STEPS="1", SCREEN__THRESHOLD=threshold, RUN_DIR=f'"{threshold}"')
        run_loop(settings, make_policy, Judge())
        (record,) = read(settings.run_dir, SAMPLES)
        assert set(record["samples"]) == kinds
        for sample in record["samples"]["finished"]:
            assert sample["components"] == {"ber": sample["score"]}


def test_gains_of_norms_are_trained_resumed_and_saved(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    """Only they move, and only they are in a checkpoint; a resumed run equals the whole one."""

    def gains() -> ShowO:
        policy = make_policy()
        policy.train_norms()
        return policy

    settings = tiny_settings(STEPS="2", CHECKPOINT_EVERY="1", RUN_DIR='"whole"')
    whole, resumed = gains(), gains()
    run_loop(settings, gains, Judge(), whole)
    moved = {key for key, value in weights(make_policy()).items() if not torch.equal(value, weights(whole)[key])}
    saved = checkpoint.load(settings.run_dir / "checkpoints/step-000002", settings)[1]
    assert len(moved) == 7
    assert saved["policy"].keys() == moved
    assert len(saved["optimizer"]["state"]) == 7
    run_loop(tiny_settings(STEPS="1", CHECKPOINT_EVERY="1", RUN_DIR='"parts"'), gains, Judge())
    run_loop(tiny_settings(STEPS="2", CHECKPOINT_EVERY="1", RUN_DIR='"parts"'), gains, Judge(), resumed)
    assert equal(weights(resumed), weights(whole))

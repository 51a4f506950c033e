"""The sizing model: hand-worked cases, simulations, and properties; the page's tables are its output."""

from __future__ import annotations

import json
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sizing import __main__ as command
from benchmarks.sizing.model import (
    BUCKET_BYTES,
    Disk,
    Network,
    Policy,
    Screen,
    Service,
    Work,
    all_reduce_seconds,
    communication_seconds,
    gather_seconds,
    groups_of_ranks,
    mean_previews,
    predict,
    previews_drawn,
    slowest_draw,
)
from benchmarks.sizing.policies import cases
from synod.errors import SettingsError
from tests.unit.trainer.synthetic import PHASES, make_run
from trainer import checkpoint
from trainer.distributed import ranks as trainer_ranks
from trainer.settings import TrainerSettings

WORK = Work(preview_s=0.1, finish_s=1.0, update_s=3.0, record_s=0.2, step_s=0.5)
NO_SCREEN = Screen(group=4, pass_rate=None)
QUICK = Network(latency_s=0.0)
SCREENS = (Screen(), Screen(9, 12, 36, 0.4), Screen(4, 5, 12, 0.5), Screen(4, 4, 4, 0.1))


def simulated(screen: Screen, shape: tuple[int, ...]) -> np.ndarray:
    """Draw the numbers of previews of groups as `trainer.sampling.sample_previews` does, preview by preview."""
    rng, drawn = np.random.default_rng(0), np.zeros(int(np.prod(shape)), int)
    for i in range(len(drawn)):
        passed = 0
        while passed < screen.group and drawn[i] < screen.cap:
            size = min(screen.batch, screen.cap - drawn[i])
            passed += int((rng.random(size) < screen.pass_rate).sum())
            drawn[i] += size
    return drawn.reshape(shape)


@pytest.mark.parametrize("screen", SCREENS)
def test_previews_of_a_group_agree_with_a_simulation(screen: Screen) -> None:
    found = simulated(screen, (4000,))
    density = previews_drawn(screen)
    assert density.sum() == pytest.approx(1)
    assert density.min() >= 0
    assert np.abs(np.bincount(found, minlength=len(density)) / 4000 - density).max() < 0.03
    assert mean_previews(screen) == pytest.approx(found.mean(), rel=0.02)


def test_without_a_screen_a_group_is_drawn() -> None:
    assert mean_previews(NO_SCREEN) == 4
    assert slowest_draw(WORK, NO_SCREEN, 6, 3) == pytest.approx(2 * (4 * 0.1 + 1.0))


@pytest.mark.parametrize(("groups", "world"), [(3, 3), (16, 8), (7, 3), (1, 1)])
def test_the_slowest_rank_agrees_with_a_simulation(groups: int, world: int) -> None:
    screen = SCREENS[1]
    drawn = simulated(screen, (1500, groups))
    ranks = [drawn[:, rank::world] for rank in range(world)]
    seconds = np.stack([0.1 * one.sum(1) + one.shape[1] * 1.0 for one in ranks])
    assert slowest_draw(WORK, screen, groups, world) == pytest.approx(seconds.max(0).mean(), rel=0.01)


AUTO = Screen(group=4, pass_rate=None, screened=0.3, whole=0.2)


@pytest.mark.parametrize(("groups", "world"), [(3, 3), (16, 8), (7, 3)])
def test_the_slowest_rank_of_auto_agrees_with_a_simulation(groups: int, world: int) -> None:
    """Half of the groups draw four previews, the others eight, of which .2 of all finish eight images."""
    kind = np.random.default_rng(0).choice(3, p=(0.5, 0.3, 0.2), size=(4000, groups))
    each = 0.1 * np.where(kind == 0, 4, 8) + np.where(kind == 2, 2.0, 1.0)
    slowest = np.stack([each[:, rank::world].sum(1) for rank in range(world)]).max(0)
    assert slowest_draw(WORK, AUTO, groups, world) == pytest.approx(slowest.mean(), rel=0.01)
    assert mean_previews(AUTO) == pytest.approx(6)


def test_a_step_of_auto_by_hand() -> None:
    """One rank and two groups: 12 previews, of which 4.8 are scored, and 9.6 finished images."""
    found = predict(WORK, AUTO, Policy(1e9, 1e9), 2, 1, service=Service(10, 20, 0.5, 1000), disk=Disk(1e9))
    draw = 2 * (0.1 * 6 + 1.2 * 1.0)
    assert found.draw_s == pytest.approx(draw)
    assert found.wait_share == pytest.approx(0)
    assert found.images_per_s * found.step_s == pytest.approx(9.6)
    assert found.scorer_gpus == pytest.approx((4.8 / 10 + 9.6 / 20) / (draw * 0.5))


def test_the_groups_of_auto_follow_from_a_run(tmp_path: Path) -> None:
    """Nine steps of two groups: six plain, eight screened, four whole."""
    run = make_run(tmp_path / "run", 10)
    groups = [("plain", "plain")] * 3 + [("screened", "screened")] * 4 + [("whole", "whole")] * 2
    drawn, kept = {"plain": 9, "screened": 18, "whole": 18}, {"plain": 9, "screened": 9, "whole": 18}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line, kinds in zip(lines[1:], groups, strict=True):
        line |= {"previews": sum(drawn[k] for k in kinds), "kept": sum(kept[k] for k in kinds), "keys": list(kinds)}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_settings(run, select="auto")
    case, _, _ = command.of_run(run, 1e6)
    assert case.screen == Screen(9, 12, 18, None, pytest.approx(8 / 18), pytest.approx(4 / 18))
    decode = PHASES["decode"] * 9 / (9 * (6 + 2 * 12) + 9 * (14 + 2 * 4))
    assert case.work.finish_s == pytest.approx(9 * PHASES["finish"] / 22 + 9 * decode)  # of nine images
    found = predict(case.work, case.screen, case.policy, 18, 1)
    measured = 9 * sum(PHASES[name] for name in ("reason", "preview", "surrogate", "decode", "finish"))
    assert found.draw_s == pytest.approx(measured)


def test_more_groups_of_a_rank_mean_less_waiting() -> None:
    mean = 0.1 * mean_previews(Screen()) + 1.0
    for world in (8, 64, 512):
        excess = [slowest_draw(WORK, Screen(), g * world, world) / (g * mean) - 1 for g in (1, 2, 4, 8, 16)]
        assert excess == sorted(excess, reverse=True)
        assert excess[4] < 0.45 * excess[1]  # a factor of sqrt(8) at most, less what the cap takes
    density = previews_drawn(Screen())
    variance = float((np.arange(len(density)) - mean_previews(Screen())) ** 2 @ density)
    near = 0.1 * np.sqrt(2 * 64 * variance * np.log(512))
    assert slowest_draw(WORK, Screen(), 64 * 512, 512) == pytest.approx(64 * mean + near, rel=0.03)


def test_an_all_reduce_by_hand() -> None:
    """8 GB over 8 ranks at 100 GB/s: 2 * 7/8 * 8 / 100 s; over 4 nodes of 8 as well, 2 * 3/4 * 8 / 10 more."""
    network = Network(gpus_per_node=8, node_gb_s=100, network_gb_s=10, latency_s=0)
    assert all_reduce_seconds(8e9, 8, network) == pytest.approx(0.14)
    assert all_reduce_seconds(8e9, 32, network) == pytest.approx(0.14 + 1.2)
    slow = replace(network, latency_s=1e-3)  # 3 messages of 2 * (7 + 3) ms
    assert all_reduce_seconds(2.5 * BUCKET_BYTES, 32, slow) - all_reduce_seconds(
        2.5 * BUCKET_BYTES, 32, network
    ) == pytest.approx(0.06)
    assert trainer_ranks.BUCKET_BYTES == BUCKET_BYTES
    assert gather_seconds(8e9, 8, network) == pytest.approx(0.07)


def test_messages_of_a_sharded_policy_by_hand() -> None:
    """Two copies over 8 ranks each, weights and gradients of 4 GB, two passes for each of a rank's 3 groups."""
    policy = Policy(1e9, 1e9, shard=8, passes=2, gathers=5)
    network = Network(gpus_per_node=8, node_gb_s=100, network_gb_s=10, latency_s=0)
    gather, between = 7 / 8 * 4 / 100, 2 * 1 / 2 * 4 / 10
    assert communication_seconds(policy, 48, 16, network) == pytest.approx(gather + 6 * (5 + 1) * gather + between)
    assert communication_seconds(policy, 24, 8, network) == pytest.approx(gather + 6 * (5 + 1) * gather)
    half = replace(policy, shard=4)  # two copies in a node: each rank sums a quarter by its own link
    gather, inside = 3 / 4 * 4 / 100, 2 * 1 / 2 * 1 / 100
    assert communication_seconds(half, 24, 8, network) == pytest.approx(gather + 6 * (5 + 1) * gather + inside)


def test_a_step_by_hand() -> None:
    """Two ranks, three groups of four without a screen: the first rank draws two, and waits for nobody."""
    policy = Policy(1e9, 1e9)
    network = Network(node_gb_s=4, latency_s=0)
    found = predict(WORK, NO_SCREEN, policy, 3, 2, network=network, service=Service(10, 10, 0.5, 1000), disk=Disk(6, 4))
    draw, update, message, checkpoint = 2 * 1.4, 2 * 3.0, 2 * 0.5 * 4 / 4, 12 / 6
    step = draw + update + 2 * 0.2 + 0.5 + message + checkpoint / 4
    assert found.step_s == pytest.approx(step)
    assert found.draw_s == pytest.approx(draw)
    assert found.wait_share == pytest.approx(0.5 * (1.4 + 3.0) / step)  # half of what the idle rank lacks
    assert found.record_share == pytest.approx(0.4 / step)
    assert found.communication_share == pytest.approx(message / step)
    assert found.images_per_s == pytest.approx(12 / step)
    assert found.scorer_gpus == pytest.approx(12 / 10 / (draw * 0.5))
    assert found.service_mb_s == pytest.approx(12 * 1000 / draw / 1e6)
    assert (found.checkpoint_gb, found.checkpoint_s) == (12, pytest.approx(checkpoint))
    assert found.checkpoint_share == pytest.approx(0.5 / step)


@given(
    groups=st.integers(1, 5),
    shard=st.sampled_from([1, 8]),
    seconds=st.lists(st.floats(0.01, 10), min_size=5, max_size=5),
    screen=st.sampled_from(SCREENS),
)
def test_one_rank_sends_nothing_and_waits_for_nobody(
    groups: int, shard: int, seconds: list[float], screen: Screen
) -> None:
    work, policy = Work(*seconds), Policy(1e9, 1e9, shard=shard, passes=9)
    found = predict(work, screen, policy, groups, 1, disk=Disk(1e9))
    mean = work.preview_s * mean_previews(screen) + work.finish_s + work.update_s + work.record_s
    assert found.communication_s == 0
    assert found.step_s == pytest.approx(groups * mean + work.step_s, abs=1e-6)
    assert found.wait_share * found.step_s == pytest.approx(0, abs=1e-6)


FASTER = ("node_gb_s", "network_gb_s", "surrogate_images_s", "reward_images_s", "disk_gb_s")


@given(
    world=st.sampled_from([2, 8, 16, 64, 512]),
    groups=st.integers(1, 3),
    case=st.integers(0, 3),
    name=st.sampled_from(FASTER),
    factor=st.floats(1, 100),
)
def test_more_bandwidth_is_never_slower(world: int, groups: int, case: int, name: str, factor: float) -> None:
    chosen = CASES[case]
    policy = replace(chosen.policy, shard=min(chosen.policy.shard, world))
    assumed = [Network(), Service(), Disk()]
    faster = [replace(a, **{name: factor * getattr(a, name)}) if hasattr(a, name) else a for a in assumed]

    def found(network: Network, service: Service, disk: Disk) -> tuple[float, ...]:
        one = predict(
            chosen.work, NO_SCREEN, policy, groups * world, world, network=network, service=service, disk=disk
        )
        return one.step_s, one.communication_s, one.scorer_gpus, one.checkpoint_s, 1 / one.images_per_s

    assert all(a <= b * (1 + 1e-12) for a, b in zip(found(*faster), found(*assumed), strict=True))


@given(world=st.integers(1, 600), groups=st.integers(1, 2000))
def test_groups_of_ranks_are_those_of_the_trainer(world: int, groups: int) -> None:
    if groups < world:
        with pytest.raises(ValueError, match=f"prompts_per_step must be at least {world}"):
            groups_of_ranks(groups, world)
    else:
        counts = groups_of_ranks(groups, world)
        assert sum(counts) == groups
        assert counts == sorted(counts, reverse=True)
        assert max(counts) - min(counts) <= 1


def test_ranks_that_do_not_divide_into_copies_are_refused() -> None:
    with pytest.raises(ValueError, match="12 ranks do not divide into copies of 8"):
        communication_seconds(Policy(1, 1, shard=8), 12, 12, QUICK)


CASES = cases()


def test_named_policies_have_their_sizes() -> None:
    lora, full, large, sharded = (case.policy for case in CASES)
    assert full.trained == full.parameters == pytest.approx(1.45e9, rel=0.005)
    assert lora.trained == 24 * 32 * (4 * 2 * 2048 + 2 * (2048 + 8192))  # rank * (in + out) of six layers a block
    assert large.parameters == sharded.trained == pytest.approx(7e9, rel=0.03)
    assert CASES[0].work.update_s == pytest.approx(4 / 5 * CASES[1].work.update_s)
    forward = 2 * 1.2e9 * 2 * 1026 * 1.1  # two for each weight of the blocks, two passes of an image, attention
    assert CASES[0].work.preview_s == pytest.approx(10 * forward / (0.3 * 989e12), rel=0.1)


def test_the_page_has_the_output_of_the_command() -> None:
    page = command.PAGE.read_text()
    assert command.generated(page) == page, "run python -m benchmarks.sizing --docs"
    with pytest.raises(ValueError, match="no block 'policies'"):
        command.generated(page.replace("<!-- end policies -->", ""))


def test_the_phase_times_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", 4)
    write_settings(run)
    case, service, disk = command.of_run(run, 1e6)
    previews, kept = 35 + 34 + 33, 3 * 9  # of steps 1, 2 and 3; each has one group
    decode = 3 * PHASES["decode"] / (previews + kept)
    drawing = 3 * (PHASES["reason"] + PHASES["preview"] + PHASES["surrogate"])
    expected = (
        drawing / previews + decode,
        PHASES["finish"] + 9 * decode,
        PHASES["update"],
        0.4,  # in no phase
        PHASES["reward_wait"],
    )
    assert astuple(case.work) == pytest.approx(expected)
    assert case.screen == Screen(9, 12, 36, pytest.approx((0.3 + 0.2 + 0.3) / 3))
    assert disk.checkpoint_every == 7
    assert service.image_bytes == 3 * 16 * 16
    assert case.policy == Policy(1e6, 1e6, passes=25 * 3)  # half of 50 steps, 9 rollouts 4 at a time
    with pytest.raises(SettingsError, match="no checkpoint"):
        command.of_run(run)
    several = make_run(tmp_path / "several", 2) / "metrics.jsonl"
    lines = [{**json.loads(line), "ranks": {"wait_share": 0.1}} for line in several.read_text().splitlines()]
    several.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SettingsError, match="several ranks"):
        command.of_run(tmp_path / "several", 1e6)
    assert command.main(["--run", str(run), "--worlds", "8", "--trained", "1e6"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert command.main(["--run", str(tmp_path)]) == 2
    assert "fewer than two steps" in capsys.readouterr().err
    options = ["--run", str(run), "--trained", "1e9", "--shard", "8", "--worlds", "12", "16", "--node-gb-s", "1"]
    assert command.main(options) == 0
    head, _, twelve, sixteen = (line.split(" | ") for line in capsys.readouterr().out.splitlines())
    assert twelve[1:3] == ["12", "12 ranks do not divide into copies of 8; give a multiple of it"]
    assert f"{run}, FSDP2 over 8" in sixteen[0]
    assert float(sixteen[head.index("time for messages")].removesuffix(" %")) > 50
    assert command.main([*options[:6], "--worlds", "12"]) == 2
    assert "12 ranks do not divide" in capsys.readouterr().err


def write_settings(run: Path, policy: dict[str, object] | None = None, **screen: object) -> None:
    table = {"group_size": 9, "preview_batch_size": 12, "max_previews": 36, "threshold": "quantile", **screen}
    settings = {
        "screen": table,
        "checkpoint_every": 7,
        "loss": {"loss_step_fraction": 0.5, "micro_batch": 4},
        "policy": {"sampler": {"denoising_steps": 50}, **(policy or {})},
    }
    (run / "settings.json").write_text(json.dumps(settings))


def test_a_run_that_does_not_say_what_is_needed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", 3)
    write_settings(run, {"lora": {"rank": 4}})
    options = ["--run", str(run), "--trained", "1e6", "--worlds", "8"]
    assert command.main(options) == 0
    assert command.main([*options, "--shard", "8"]) == 2
    assert "give --parameters NUMBER" in capsys.readouterr().err
    assert command.main([*options, "--shard", "8", "--parameters", "1e9"]) == 0
    write_settings(run, select="best_and_worst")
    assert command.main(options) == 2
    assert "only 'auto' and 'first_above' are modelled" in capsys.readouterr().err
    write_settings(run)
    lines = [{**json.loads(line), "threshold": None} for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert command.main(options) == 2
    assert "no threshold in any of its 2 steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--worlds", "0", "0 is not a number above 0"),
        ("--disk-gb-s", "0", "0 is not a number above 0"),
        ("--passes", "0", "0 is not a number above 0"),
        ("--pass-rate", "0", "0 is not a number above 0"),
        ("--pass-rate", "25", "25 is above 1"),
        ("--latency-s", "-1", "-1 is not a number at least 0"),
        ("--shard", "x", "invalid int value: 'x'"),
    ],
)
def test_numbers_outside_their_limits_are_refused(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main([f"{option}={value}"] if option != "--worlds" else [option, value])
    assert message in capsys.readouterr().err


def test_trained_numbers_are_counted_in_the_checkpoint(tmp_path: Path, tiny: TrainerSettings) -> None:
    weights = {"a": torch.zeros(3, 4), "b": torch.zeros(5)}
    state = {"policy": weights, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3, 4)}}}}
    path = checkpoint.save(tmp_path / "checkpoints", 1, state, tiny)
    policy = command._policy(tmp_path)
    assert policy.trained == 17
    assert policy.checkpoint_bytes == sum(file.stat().st_size for file in path.iterdir()) / 17


@pytest.fixture
def tiny(tmp_path: Path) -> TrainerSettings:
    (tmp_path / "prompts.txt").write_text("a dog\n")
    return TrainerSettings.model_validate(
        {
            "run_dir": str(tmp_path),
            "policy": {"model": "x/y"},
            "data": {"task": "prompts", "prompts": str(tmp_path / "prompts.txt")},
            "rewards": {"ensemble": "one"},
        }
    )

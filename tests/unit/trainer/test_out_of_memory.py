"""A step that does not fit the memory: what is advised, and that the advice works."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from tests.unit.trainer.loops import MakePolicy, MakeSettings, equal, lines, run_loop, weights
from tests.unit.trainer.reward_services import Judge, serve
from trainer.__main__ import main
from trainer.errors import OtherRankFailed, OutOfMemory
from trainer.memory import Configuration
from trainer.out_of_memory import (
    CPU_MESSAGE,
    device_bytes,
    explain_out_of_memory,
    gathered_bytes,
    is_out_of_memory,
    memory_of,
    update_advice,
)
from trainer.policy.show_o.policy import ShowO

LAYERS = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to ...")


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`small_device(2e6)`: the device of the policy has two megabytes."""
    return lambda size: monkeypatch.setattr("trainer.out_of_memory.device_bytes", lambda policy: round(size))


def limited(policy: ShowO, rollouts: int, error: Exception) -> ShowO:
    """The policy on a device that fits an update of so many rollouts at a time."""
    terms = policy.terms

    def terms_that_fit(segments: Any, step: int, **options: Any) -> Any:
        if len(segments) > rollouts:
            raise error
        return terms(segments, step, **options)

    policy.terms = terms_that_fit  # type: ignore[method-assign]
    return policy


@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()])
def test_the_advice_lets_the_run_go_on(
    make_policy: MakePolicy, tiny_settings: MakeSettings, small_device: Callable[[float], None], error: Exception
) -> None:
    """Two steps fit, the third does not; with the advised micro-batch the run resumes where it was."""
    before = tiny_settings(STEPS="2", CHECKPOINT_EVERY="1")
    run_loop(before, make_policy, Judge())
    settings = tiny_settings(STEPS="3", CHECKPOINT_EVERY="1")
    policy = make_policy()
    small_device(memory_of(policy, settings, Configuration(1, checkpointing=False, lora=False)).total / 0.9 + 1)
    with pytest.raises(OutOfMemory, match=r"^out of memory in the update \(.+\)\. An update takes about ") as caught:
        run_loop(settings, make_policy, Judge(), limited(policy, 1, error))
    message = str(caught.value)
    assert "4 rollouts in a pass" in message
    assert "Set [trainer.loss] micro_batch = 1 (now 4): about " in message
    assert message.endswith("Earlier checkpoints are intact: start the same command again")
    assert "more lines" not in message
    advised = tiny_settings(STEPS="3", CHECKPOINT_EVERY="1", LOSS__MICRO_BATCH="1")
    assert run_loop(advised, make_policy, Judge(), limited(make_policy(), 1, error)).step == 3
    assert [line["step"] for line in lines(advised.run_dir)] == [0, 1, 2]


def test_an_update_out_of_memory_changes_no_weight(
    make_policy: MakePolicy, tiny_settings: MakeSettings, small_device: Callable[[float], None]
) -> None:
    small_device(1e6)
    policy = make_policy()
    with pytest.raises(OutOfMemory):
        run_loop(tiny_settings(), make_policy, Judge(), limited(policy, 2, CUDA))
    assert equal(weights(policy), weights(make_policy()))


def test_drawing_out_of_memory_names_its_own_setting(
    make_policy: MakePolicy, tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denoise(segments: Any, until: int) -> Any:
        raise CUDA

    for now, remedy in (
        ("4", r"Set \[trainer.screen\] preview_batch_size = 2 \(now 4\), with a new run_dir"),
        ("1", "Train on a larger device: images are drawn one at a time already"),
    ):
        policy = make_policy()
        monkeypatch.setattr(policy, "denoise", denoise)
        settings = tiny_settings(SCREEN__PREVIEW_BATCH_SIZE=now)
        with pytest.raises(OutOfMemory, match=rf"^out of memory in drawing \(CUDA .*GiB\.\)\. {remedy}\. Earlier"):
            run_loop(settings, make_policy, Judge(), policy)


def test_other_errors_are_not_explained(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    other_rank = OtherRankFailed(f"rank 1 failed: OutOfMemory: {CPU_MESSAGE}")
    for error in (RuntimeError("shapes differ"), KeyError("x"), other_rank):
        assert not is_out_of_memory(error)
        with (
            pytest.raises(type(error)) as caught,
            explain_out_of_memory("the update", make_policy(), tiny_settings()),
        ):
            raise error
        assert caught.value is error


def test_the_command_prints_the_advice(
    make_policy: MakePolicy,
    tiny_settings: MakeSettings,
    world_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_settings()
    make_policy().save(world_dir / "model")
    monkeypatch.setattr(ShowO, "terms", lambda *_, **__: (_ for _ in ()).throw(CUDA))
    with serve(Judge()) as url:
        assert main([str(world_dir / "train.toml"), "--steps", "1", "--url", url, "--no-evaluation"]) == 1
    assert "\nsynod train: out of memory in the update (CUDA out of memory." in capsys.readouterr().err


def test_the_allocator_of_the_host_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


# -- the arithmetic of a policy ---------------------------------------------------------------------------------------


def test_the_memory_of_a_policy_counts_its_parameters(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    policy, settings = make_policy(), tiny_settings()
    count = sum(p.numel() for p in policy.module.parameters())
    whole = memory_of(policy, settings, Configuration(3, checkpointing=False, lora=False))
    assert (whole.weights, whole.reference, whole.gradients, whole.optimizer) == (
        *(4 * count, 4 * count),
        *(4 * count, 8 * count),
    )
    assert whole.activations == policy.activation_bytes(3, checkpointing=False)
    assert memory_of(policy, settings, Configuration(3, True, False)).activations < whole.activations
    no_kl = tiny_settings(LOSS__TEXT__BETA="0", LOSS__IMAGE__BETA="0")
    assert memory_of(policy, no_kl, Configuration(3, False, False)).reference == 0


def test_a_split_policy_has_its_root_and_two_blocks_whole(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    """The tiny policy has two blocks, so that all of it is gathered at a time."""
    policy, settings = make_policy(), tiny_settings(RANKS__SHARD="2")
    size = sum(p.nbytes for p in policy.module.parameters())
    found = memory_of(policy, settings, Configuration(3, checkpointing=False, lora=False))
    assert (found.weights, found.gradients, found.optimizer) == (size // 2 + size, size // 2 + size, size)
    policy.phi.model.layers.append(copy.deepcopy(policy.phi.model.layers[0]))
    assert gathered_bytes(policy) == size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_counted_before_they_exist(
    make_policy: MakePolicy, tiny_settings: MakeSettings, dtype: Literal["float32", "bfloat16"]
) -> None:
    """With the default rank and targets, and then with those of the settings."""
    policy, half = make_policy(), {"POLICY__DTYPE": dtype}
    policy.dtype = dtype
    expected = 2 * 32 * (4 * (64 + 64) + 2 * (64 + 128))  # layers, rank, four square layers and two of the MLP
    adapted = Configuration(1, checkpointing=False, lora=True)
    before = memory_of(policy, tiny_settings(**half), adapted)
    assert (before.gradients, before.optimizer, before.reference) == (4 * expected, 8 * expected, 0)
    policy.add_adapters(rank=32, alpha=64, targets=LAYERS, seed=0, base="base")
    found = memory_of(policy, tiny_settings(POLICY__LORA__RANK="32", **half), adapted)
    assert (found.gradients, found.optimizer) == (before.gradients, before.optimizer)
    assert found.weights == pytest.approx(before.weights, rel=0.01)  # the biases of the layers are in bfloat16, too
    stored = sum(p.nbytes for p in policy.module.parameters())
    assert found.weights == stored + (2 * expected if dtype == "bfloat16" else 0)


def test_settings_in_use_are_not_advised_again(
    make_policy: MakePolicy, tiny_settings: MakeSettings, small_device: Callable[[float], None]
) -> None:
    small_device(1)
    policy = make_policy()
    policy.add_adapters(rank=4, alpha=8, targets=LAYERS, seed=0, base="base")
    settings = tiny_settings(POLICY__LORA__RANK="4", POLICY__CHECKPOINTING="true", LOSS__MICRO_BATCH="2")
    text = update_advice(policy, settings)
    assert "2 rollouts in a pass" in text
    assert text.endswith("even with [trainer.loss] micro_batch = 1 (now 2)")
    larger = update_advice(policy, tiny_settings(POLICY__LORA__RANK="4", LOSS__MICRO_BATCH="9"))
    assert "4 rollouts in a pass" in larger, "a group has no more"


def test_a_policy_on_the_host_has_its_memory(make_policy: MakePolicy) -> None:
    assert 2**28 < device_bytes(make_policy()) < 2**50

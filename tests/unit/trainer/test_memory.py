"""The arithmetic of an update's memory, worked by hand, and the advice that follows from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.memory import GIB, RELIEF, USABLE, Configuration, UpdateMemory, advice, smaller, update_memory


def of(now: Configuration) -> UpdateMemory:
    """A policy of 1 GiB: each rollout keeps 2 GiB, or 0.2 GiB with checkpointing."""
    kept = round(now.micro_batch * (0.2 if now.checkpointing else 2) * GIB)
    trainable = GIB // 400 if now.lora else GIB // 4
    return update_memory(GIB, trainable, reference=not now.lora, activations=kept)


def test_an_update_is_the_sum_of_its_parts() -> None:
    """Weights 4, a copy 4, gradients 4, two moments 8, activations 7 of one float32 parameter."""
    assert update_memory(4, 1, reference=True, activations=7).total == 4 + 4 + 4 + 8 + 7
    adapters = update_memory(2_000, 10, reference=False, activations=7, copies=500)
    assert adapters == UpdateMemory(weights=2_500, reference=0, gradients=40, optimizer=80, activations=7)


def test_a_split_update_divides_all_but_what_is_gathered() -> None:
    """7 B parameters over 8 ranks, 2 GB of them gathered; the bfloat16 copies of autocast are whole."""
    size = 7 * 10**9
    whole = update_memory(4 * size, size, reference=True, activations=0)
    assert whole.total == 140 * 10**9
    assert update_memory(4 * size, size, reference=True, activations=0, gathered=2 * 10**9) == whole
    split = update_memory(4 * size, size, reference=True, activations=0, shard=8, gathered=2 * 10**9)
    assert split.total == 140 * 10**9 / 8 + 3 * 2 * 10**9
    assert split.optimizer == 7 * 10**9
    half = update_memory(4 * size, size, reference=True, activations=0, copies=2 * size, shard=8, gathered=2 * 10**9)
    assert half.total == split.total + 2 * size


def test_smaller_configurations_cost_least_first() -> None:
    found = list(smaller(Configuration(3, checkpointing=False, lora=False)))
    assert (
        found
        == [
            Configuration(micro_batch, checkpointing, lora)
            for lora in (False, True)
            for checkpointing in (False, True)
            for micro_batch in (3, 2, 1)
        ][1:]
    )
    assert list(smaller(Configuration(1, checkpointing=True, lora=True))) == []
    assert all(one.checkpointing for one in smaller(Configuration(2, checkpointing=True, lora=False)))


@pytest.mark.parametrize(
    ("limit", "change"),
    [  # 5 GiB of state and 2 GiB a rollout: 13 GiB with four of them
        (20, "Set [trainer.loss] micro_batch = 2 (now 4): about 9 GiB"),  # 3 is 11 GiB, above 0.75 * 13
        (8, "Set [trainer.loss] micro_batch = 1 (now 4): about 7 GiB"),
        (7, "Set [trainer.policy] checkpointing = true: about 5.8 GiB"),
        (6.1, "Set [trainer.loss] micro_batch = 2 (now 4), [trainer.policy] checkpointing = true: about 5.4 GiB"),
        (4, "Set [trainer.loss] micro_batch = 1 (now 4), [trainer.policy.lora] (with a new run_dir): about 3.03 GiB"),
        (3, "Set [trainer.policy] checkpointing = true, [trainer.policy.lora] (with a new run_dir): about 1.83 GiB"),
    ],
)
def test_the_cheapest_change_that_fits_is_advised(limit: float, change: str) -> None:
    text = advice(Configuration(4, checkpointing=False, lora=False), of, round(limit * GIB))
    parts = "weights 1, reference 1, gradients 1, optimizer 2, activations 8; 4 rollouts in a pass"
    assert text == f"An update takes about 13 GiB ({parts}), and the device has {limit:g} GiB. {change}"


def test_a_device_that_is_too_small_is_named() -> None:
    text = advice(Configuration(4, checkpointing=True, lora=False), of, GIB)
    assert text.endswith(
        "the device has 1 GiB. Train on a larger device, or split the policy over more ([trainer.ranks] shard): it "
        "takes about 1.23 GiB, even with [trainer.loss] micro_batch = 1 (now 4), [trainer.policy.lora] (with a new "
        "run_dir)"
    )
    text = advice(Configuration(1, checkpointing=True, lora=True), of, GIB)
    assert text.endswith("or split the policy over more ([trainer.ranks] shard): it takes about 1.23 GiB")
    assert "reference" not in text


@given(st.integers(1, 12), st.booleans(), st.booleans(), st.floats(1, 60))
def test_advice_always_lowers_the_need(micro_batch: int, checkpointing: bool, lora: bool, limit: float) -> None:
    now = Configuration(micro_batch, checkpointing, lora)
    text = advice(now, of, round(limit * GIB))
    fits = [one for one in smaller(now) if of(one).total <= min(USABLE * limit * GIB, RELIEF * of(now).total)]
    assert ("Train on a larger device" in text) == (not fits)
    assert not fits or f"about {of(fits[0]).total / GIB:.3g} GiB" in text

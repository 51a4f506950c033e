"""The step of a full-size policy: it runs on a tiny one, and its arithmetic agrees with torch's counter."""

from __future__ import annotations

import argparse

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import show_o_512, train_memory
from benchmarks.random_show_o import FULL, TINY, build, halfway, prompt
from trainer.policy.show_o.policy import Sampling


def options(*given: str) -> argparse.Namespace:
    return show_o_512._parser().parse_args(["--device", "cpu", "--tiny", *given])


@pytest.mark.parametrize("given", [(), ("--lora", "--dtype", "float32", "--no-checkpointing")])
def test_a_step_of_a_tiny_policy(given: tuple[str, ...]) -> None:
    found = show_o_512.whole_step(
        options("--group", "3", "--micro-batch", "2", "--steps", "4", "--loss-steps", "2", *given)
    )
    assert list(found["seconds"]) == ["build", "answer", "draw", "decode", "update", "optimizer"]
    assert found["tokens"] == 17 + 18
    assert found["update_share_of_peak"] is None  # a CPU's peak is not known
    one = show_o_512.one_pass(options(*given))
    assert one["gradient_norm"] > 0
    assert one["peak_gib"] > 0


def test_the_full_size_has_1155_tokens() -> None:
    config = FULL
    assert config.max_text_length + 1 + config.num_vq_tokens + 2 == 1155
    assert train_memory._size(FULL) == pytest.approx(1.45e9, rel=0.005)
    assert 140e6 < train_memory._size(train_memory.MIDDLE) < 180e6


def test_flops_are_those_that_torch_counts() -> None:
    """Of a forward and backward pass over one step of two images, half of whose positions are masked."""
    policy = build(TINY, Sampling())
    segments = halfway(policy, 2)
    assert policy.vocab.text_block([prompt(policy.config, 0)])[0].shape == (1, 17)  # it fills its block
    with FlopCounterMode(display=False) as counter, policy.sharing(segments):
        terms = policy.terms(segments, 0)
        terms.new_BD[terms.mask_BD].sum().backward()
    masked = int(terms.mask_BD.sum())
    expected = show_o_512.update_flops(policy.config, 2, 1, masked, reference=False)
    assert masked == 16
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.03)


def test_the_arithmetic_of_a_case() -> None:
    whole, adapted = train_memory.Case(9, 9), train_memory.Case(9, 3, "bfloat16", checkpointing=True, lora=True)
    size = train_memory._size(FULL)
    found = train_memory.predict(FULL, whole)
    assert (found.weights, found.reference, found.gradients, found.optimizer) == (
        4 * size,
        4 * size,
        4 * size,
        8 * size,
    )
    assert train_memory.predict(FULL, adapted).total < 24 * 2**30  # a 24 GB card
    assert train_memory.predict(FULL, adapted).reference == 0


def test_images_are_half_masked() -> None:
    policy = build(TINY, Sampling())
    segments = halfway(policy, 3)
    assert [s.step for s in segments] == [1] * 3
    assert len({s.prompt for s in segments}) == 3
    assert all(int(s.masked_TN.sum()) == 8 for s in segments)
    assert torch.equal(segments[0].masked_TN[0], torch.arange(16) % 2 == 0)

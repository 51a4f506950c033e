"""The average against its sum written out, frozen parameters, swapping in and out, and checkpoints."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.ema import Ema


def make_module(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)).to(dtype)
    module[0].requires_grad_(False)
    return module


def move(module: nn.Module, step: int) -> None:
    """Change every parameter, frozen ones too."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_is_the_weighted_sum_of_all_steps(decay: float) -> None:
    module = make_module()
    ema = Ema(module, decay)
    history = [values(module)]
    for step in range(40):
        move(module, step)
        ema.update(step)
        history.append(values(module))
    decays = [min(decay, (1 + step) / (10 + step)) for step in range(40)]
    shares = [1.0, *(1 - d for d in decays)]
    for i in range(len(shares)):
        for later in decays[i:]:
            shares[i] *= later
    assert sum(shares) == pytest.approx(1)
    assert shares[0] < 1e-3
    with ema.applied():
        for name in ("1.weight", "1.bias"):
            expected = sum(share * one[name].double() for share, one in zip(shares, history, strict=True))
            assert torch.allclose(module.state_dict()[name].double(), torch.as_tensor(expected), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_applied_restores_bit_for_bit_after_an_error(dtype: torch.dtype) -> None:
    module = make_module(dtype)
    ema = Ema(module, 0.9)
    for step in range(3):
        move(module, step)
        ema.update(step)
    before, places = values(module), [p.data_ptr() for p in module.parameters()]

    def evaluate() -> None:
        with ema.applied():
            assert not torch.equal(module[1].weight, before["1.weight"])
            assert torch.equal(module[0].weight, before["0.weight"])
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        evaluate()
    after = values(module)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [p.data_ptr() for p in module.parameters()] == places


def test_only_trainable_tensors_are_averaged_in_float32() -> None:
    module = make_module(torch.bfloat16)
    ema = Ema(module, 0.9)
    assert set(ema.to_save()) == {"1.weight", "1.bias"}
    move(module, 0)
    for step in range(100):  # steps of 1e-4 of the distance vanish in bfloat16
        ema.update(10**4 + step)
    assert {average.dtype for average in ema.to_save().values()} == {torch.float32}
    assert torch.allclose(ema.to_save()["1.weight"], module[1].weight.float(), atol=1e-3)


def test_a_restored_average_continues_bit_for_bit() -> None:
    whole_module, cut_module = make_module(), make_module()
    whole, cut = Ema(whole_module, 0.99), Ema(cut_module, 0.99)
    for step in range(6):
        move(whole_module, step)
        whole.update(step)
        if step == 3:
            saved = {name: average.clone() for name, average in cut.to_save().items()}
            cut = Ema(cut_module, 0.99)
            cut.restore(saved)
        move(cut_module, step)
        cut.update(step)
    found, expected = cut.to_save(), whole.to_save()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(KeyError, match=r"1\.weight"):
        whole.restore({})

"""Our Phi against transformers' PhiModel with the same weights: q/k LayerNorm, partial rotary, parallel blocks."""

from __future__ import annotations

import pytest
import torch
import transformers

from trainer.policy.show_o.phi import Phi, PhiConfig


@pytest.mark.parametrize(("heads", "partial", "theta"), [(4, 0.5, 10_000.0), (2, 0.25, 500.0)])
def test_same_hidden_states_as_transformers(heads: int, partial: float, theta: float) -> None:
    config = transformers.PhiConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=heads,
        qk_layernorm=True,
        hidden_act="gelu_new",
        rope_parameters={"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": partial},
        attn_implementation="eager",
    )
    theirs = transformers.PhiModel(config).eval()
    ours = Phi(PhiConfig(50, 64, 96, 3, heads, partial_rotary_factor=partial, rope_theta=theta))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    ours.model.load_state_dict(theirs.state_dict())  # strict: the keys are the public ones

    ids = torch.randint(50, (3, 20), generator=generator)
    causal = torch.ones(20, 20, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        expected = theirs(ids).last_hidden_state
        found = ours(ids, causal)
        _, cached = ours.encode(ids[:, :13], causal[:, :, :13, :13])
        rest = ours(ids[:, 13:], causal[:, :, 13:], cached, 13)
    assert expected.std() > 0.5
    assert (found - expected).abs().max() < 1e-5
    assert (rest - expected[:, 13:]).abs().max() < 1e-5
    assert (ours(ids, None) - expected).abs().max() > 0.1  # the mask matters

"""The image tokenizer: public keys, the bits of a code, layers against their formulas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from synod.errors import SettingsError
from trainer.policy.show_o.magvit import AttentionBlock, Magvit, MagvitConfig, Quantizer, Resample, ResidualBlock

PUBLIC = """encoder.conv_in.weight 128 3 3 3
encoder.down.0.block.3.conv2.weight 128 128 3 3
encoder.down.0.downsample.conv.weight 128 128 3 3
encoder.down.1.block.0.nin_shortcut.weight 256 128 1 1
encoder.down.2.block.3.conv1.bias 256
encoder.down.3.downsample.conv.bias 512
encoder.mid.attn_1.norm.weight 512
encoder.mid.attn_1.q.weight 512 512 1 1
encoder.mid.attn_1.proj_out.weight 512 512 1 1
encoder.norm_out.weight 512
encoder.conv_out.weight 13 512 3 3
encoder.quant_conv.weight 13 13 1 1
decoder.post_quant_conv.weight 13 13 1 1
decoder.conv_in.weight 512 13 3 3
decoder.up.4.block.2.conv2.weight 512 512 3 3
decoder.up.4.upsample.conv.weight 512 512 3 3
decoder.up.3.block.0.conv1.weight 256 512 3 3
decoder.up.3.block.0.nin_shortcut.weight 256 512 1 1
decoder.up.2.block.2.conv1.weight 256 256 3 3
decoder.up.1.block.0.nin_shortcut.weight 128 256 1 1
decoder.up.0.block.0.conv1.weight 128 128 3 3
decoder.up.0.block.3.conv2.weight 128 128 3 3
decoder.norm_out.bias 128
decoder.conv_out.weight 3 128 3 3
quantize.embedding 8192 13
quantize.power_vals 13"""


def test_keys_of_the_public_tokenizer() -> None:
    with torch.device("meta"):
        state = Magvit(MagvitConfig()).state_dict()
    for line in PUBLIC.splitlines():
        key, *shape = line.split()
        assert tuple(state[key].shape) == tuple(map(int, shape)), key
    blocks = [key for key in state if key.endswith("conv1.weight")]
    assert len([k for k in blocks if k.startswith("encoder.down")]) == 18
    assert len([k for k in blocks if k.startswith("decoder.up")]) == 18
    assert sorted(k for k in state if k.endswith("nin_shortcut.weight")) == [
        "decoder.up.1.block.0.nin_shortcut.weight",
        "decoder.up.3.block.0.nin_shortcut.weight",
        "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.down.3.block.0.nin_shortcut.weight",
    ]
    assert not {"decoder.up.0.upsample.conv.weight", "encoder.down.4.downsample.conv.weight"} & set(state)
    # 40 residual blocks of 8, 4 shortcuts and 8 resamplings of 2, 2 attentions of 10, 8 other layers of 2, 2 buffers
    assert len(state) == 40 * 8 + (4 + 8) * 2 + 2 * 10 + 8 * 2 + 2
    assert (MagvitConfig().patch, MagvitConfig().codebook_size) == (16, 8192)


def test_channel_0_is_the_most_significant_bit() -> None:
    quantizer = Quantizer(13)
    assert quantizer.power_vals.tolist() == [2**i for i in range(12, -1, -1)]
    z = -torch.ones(1, 13, 1, 1)
    z[0, 0] = 0.1
    assert quantizer.codes(z).tolist() == [[4096]]
    z[0, 12] = 5.0
    assert quantizer.codes(z).tolist() == [[4097]]
    assert quantizer.codes(torch.zeros(1, 13, 1, 1)).tolist() == [[0]]  # 0 is not above 0


def test_codes_and_signs_are_one_to_one() -> None:
    quantizer = Quantizer(6)
    codes = torch.arange(64).reshape(4, 16)
    signs = quantizer.vectors(codes, (4, 4))
    assert signs.shape == (4, 6, 4, 4)
    assert torch.equal(quantizer.codes(signs), codes)
    for b in range(4):
        for n in range(16):
            code = int(codes[b, n])
            expected = [1.0 if code >> (5 - k) & 1 else -1.0 for k in range(6)]
            assert signs[b, :, n // 4, n % 4].tolist() == expected == quantizer.embedding[code].tolist()


def test_encode_and_decode(vq: Magvit) -> None:
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8))
    codes = vq.encode(images)
    assert codes.shape == (3, 16)
    assert codes.dtype == torch.int64
    assert len(codes.unique()) > 2
    decoded = vq.decode(codes)
    assert all(p.shape == (8, 8, 3) and p.dtype == np.uint8 for p in decoded)
    assert len(decoded) == 3
    assert len(np.unique(decoded)) > 2
    for i in range(3):
        assert torch.equal(vq.encode(images[i : i + 1])[0], codes[i])
        assert np.abs(vq.decode(codes[i : i + 1])[0].astype(int) - decoded[i]).max() <= 1


def test_pixels_are_scaled_to_minus_one_and_one(vq: Magvit, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[torch.Tensor] = []
    monkeypatch.setattr(vq.encoder, "forward", lambda x: read.append(x) or -torch.ones(1, 4, 4, 4))  # type: ignore[func-returns-value]
    image = np.zeros((8, 8, 3), np.uint8)
    image[1, 2] = (255, 51, 0)
    vq.encode([image])
    assert read[0].shape == (1, 3, 8, 8)
    assert read[0][0, :, 1, 2].tolist() == pytest.approx([1.0, -0.6, -1.0])
    monkeypatch.setattr(
        vq.decoder, "forward", lambda z: torch.tensor([-2.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    )
    assert vq.decode(torch.zeros(1, 16, dtype=torch.long))[0][3, 3].tolist() == [0, 128, 255]


def test_downsampling_pads_right_and_below() -> None:
    layer = Resample(1, up=False)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    layer.conv.bias = None
    for i, j in ((0, 0), (1, 2), (2, 2)):
        layer.conv.weight.data.zero_()[0, 0, i, j] = 1.0
        assert torch.equal(layer(x), functional.pad(x, (0, 2, 0, 2))[:, :, i : i + 4 : 2, j : j + 4 : 2])


def test_upsampling_repeats_pixels() -> None:
    layer = Resample(1, up=True)
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    layer.conv.bias = None
    layer.conv.weight.data.zero_()[0, 0, 1, 1] = 1.0
    assert torch.equal(layer(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


def normed(x: torch.Tensor, norm: torch.nn.GroupNorm) -> torch.Tensor:
    parts = x.reshape(len(x), norm.num_groups, -1)
    parts = (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    return parts.reshape(x.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]


@pytest.mark.parametrize("outside", [8, 12])
def test_a_residual_block_against_its_formula(outside: int) -> None:
    torch.manual_seed(0)
    block, x = ResidualBlock(8, outside, 4), 1e-2 * torch.randn(2, 8, 5, 5)  # small: the norm's eps shows
    y = block.conv2(swish(normed(block.conv1(swish(normed(x, block.norm1))), block.norm2)))
    shortcut = block.nin_shortcut(x) if outside != 8 else x
    torch.testing.assert_close(block(x), shortcut + y, atol=1e-5, rtol=0)


def test_attention_against_a_naive_one() -> None:
    torch.manual_seed(0)
    block, x = AttentionBlock(8, 4), torch.randn(2, 8, 3, 3)
    y = normed(x, block.norm)
    q, k, v = (conv(y).reshape(2, 8, 9) for conv in (block.q, block.k, block.v))
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / 8**0.5, -1)
    mixed = torch.einsum("bij,bcj->bci", weights, v).reshape(2, 8, 3, 3)
    torch.testing.assert_close(block(x), x + block.proj_out(mixed), atol=1e-5, rtol=0)


def test_save_and_load(vq: Magvit, tmp_path: Path) -> None:
    vq.save(tmp_path)
    again = Magvit.load(tmp_path)
    assert again.config == vq.config
    assert not any(p.requires_grad for p in again.parameters())
    assert all(torch.equal(a, b) for a, b in zip(vq.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_public_config_keeps_the_public_shape(vq: Magvit, tmp_path: Path) -> None:
    vq.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "MAGViTv2", "_diffusers_version": "0.30.1"}))
    with torch.device("meta"):
        missing = sorted(Magvit(MagvitConfig()).state_dict().keys() - vq.state_dict().keys())
        with pytest.raises(SettingsError, match=rf"lacks {', '.join(missing[:3])} and {len(missing) - 3} more"):
            Magvit.load(tmp_path)

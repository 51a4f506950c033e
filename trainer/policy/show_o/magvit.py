"""MAGVIT-v2's image tokenizer (Yu et al. 2024), with the public state-dict keys.

A code of K bits stands for a vector of K signs; bit 0 of the vector (channel 0) is the most significant one. Suffixes:
B images, C channels, H W pixels, h w positions of the token grid, N = h w, K bits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from synod.contracts import Pixels
from trainer.policy.weights import parameters_on_meta, parse_config, read_config, read_weights, write_weights


@dataclass(frozen=True)
class MagvitConfig:
    """The shape of the tokenizer, by default showlab/magvitv2's. Each further level halves the grid."""

    channels: int = 128
    bits: int = 13
    encoder_multipliers: tuple[int, ...] = (1, 2, 2, 4, 4)
    encoder_blocks: tuple[int, ...] = (4, 3, 4, 3, 4)
    decoder_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_blocks: tuple[int, ...] = (4, 4, 3, 4, 3)
    norm_groups: int = 32

    @property
    def patch(self) -> int:
        """The side of a token in pixels."""
        return int(2 ** (len(self.encoder_multipliers) - 1))

    @property
    def codebook_size(self) -> int:
        return int(2**self.bits)


class ResidualBlock(nn.Module):
    def __init__(self, inside: int, outside: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inside, eps=1e-6)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outside, eps=1e-6)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        if inside != outside:
            self.nin_shortcut = nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        shortcut: Tensor = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        return shortcut + y


class AttentionBlock(nn.Module):
    """Single-head attention over all positions of the grid."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        shape, y = x.shape, self.norm(x)
        q, k, v = (conv(y).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj_out(mixed.transpose(1, 2).reshape(shape))
        return x + out


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, groups)
        self.attn_1 = AttentionBlock(channels, groups)
        self.block_2 = ResidualBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Resample(nn.Module):
    """Resampling to half the size (zero padding right and below) or twice the size (nearest)."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.interpolate(x, scale_factor=2.0) if self.up else functional.pad(x, (0, 1, 0, 1))
        out: Tensor = self.conv(x)
        return out


class Level(nn.Module):
    """Residual blocks of one resolution, and the resampling to the next."""

    def __init__(self, widths: Sequence[tuple[int, int]], groups: int, resample: str | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(a, b, groups) for a, b in widths)
        self.resample = resample
        if resample is not None:
            self.add_module(resample, Resample(widths[-1][1], up=resample == "upsample"))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.resample is None else self.get_submodule(self.resample)(x)


class Encoder(nn.Module):
    """[B 3 H W] in [-1, 1] -> [B K h w]."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.encoder_multipliers]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        before, last = [config.channels, *widths], len(widths) - 1
        self.down = nn.ModuleList(
            Level(
                _widths(before[i], width, config.encoder_blocks[i]),
                config.norm_groups,
                "downsample" if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1], config.norm_groups)
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.bits, config.bits, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        out: Tensor = self.quant_conv(self.conv_out(functional.silu(self.norm_out(self.mid(x)))))
        return out


class Decoder(nn.Module):
    """[B K h w] -> [B 3 H W], about [-1, 1]. `up.0` is the full resolution."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.decoder_multipliers]
        self.post_quant_conv = nn.Conv2d(config.bits, config.bits, 1)
        self.conv_in = nn.Conv2d(config.bits, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.norm_groups)
        before = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            Level(
                _widths(before[i], width, config.decoder_blocks[i]), config.norm_groups, "upsample" if i > 0 else None
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.conv_out(self.features(z))
        return out

    def features(self, z: Tensor) -> Tensor:
        """Return the input of the last convolution: [B K h w] -> [B C H W]."""
        x = self.mid(self.conv_in(self.post_quant_conv(z)))
        for level in reversed(self.up):
            x = level(x)
        return functional.silu(self.norm_out(x))


class Quantizer(nn.Module):
    """Conversion between signs and codes. The buffers are those of the public state dict."""

    embedding: Tensor
    power_vals: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        power = 2 ** torch.arange(bits - 1, -1, -1)
        self.register_buffer("power_vals", power)
        self.register_buffer("embedding", ((torch.arange(2**bits)[:, None] & power) > 0).float() * 2 - 1)

    def codes(self, z: Tensor) -> Tensor:
        """Return codes: [B K h w] -> int64 [B N]; bit i is 1 where channel i is above 0."""
        bits = (z > 0).flatten(2).transpose(1, 2).long()
        return (bits * self.power_vals.long()).sum(-1)

    def vectors(self, codes_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the signs of codes: int64 [B N] -> +-1 [B K h w]."""
        bits = (codes_BN[..., None] & self.power_vals.long()) > 0
        return (bits.float() * 2 - 1).transpose(1, 2).reshape(len(codes_BN), -1, *grid)


class Magvit(nn.Module):
    """The tokenizer of square images."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = Quantizer(config.bits)

    @torch.no_grad()
    def encode(self, images: Sequence[Pixels]) -> Tensor:
        """Encode images uint8 [H W 3], of one size that `patch` divides, to codes int64 [B N]."""
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(self._like) / 127.5 - 1.0
        return self.quantize.codes(self.encoder(pixels))

    @torch.no_grad()
    def decode(self, codes_BN: Tensor) -> list[Pixels]:
        """Decode codes int64 [B N] to B images uint8 [H W 3]."""
        side = round(codes_BN.shape[1] ** 0.5)
        decoded = self.decoder(self.quantize.vectors(codes_BN, (side, side)).to(self._like))
        pixels = ((decoded.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return list(pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy())

    @property
    def _like(self) -> Tensor:
        return self.encoder.conv_in.weight

    @classmethod
    def load(cls, directory: Path) -> Magvit:
        """Read a model directory. Raises SettingsError for missing files, and missing or unknown keys.

        The public config.json has none of our fields, which then keep their defaults, the public shape.
        """
        config = parse_config(MagvitConfig, read_config(directory), f"image tokenizer {directory}: config.json")
        with parameters_on_meta():
            model = cls(config)
        read_weights(model, directory)
        return model.eval().requires_grad_(False)

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        write_weights(self.state_dict(), directory)


def _widths(first: int, width: int, blocks: int) -> list[tuple[int, int]]:
    return [(first, width), *[(width, width)] * (blocks - 1)]

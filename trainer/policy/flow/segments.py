"""What a flow-matching policy samples: latents on their way from noise to an image, with their log-probabilities.

`Sampler` has all maths between a policy's velocities and the loss: the policy supplies one velocity for the current
latents, computed by the same function when it samples, learns, and is the reference.

Suffixes: B rollouts, T sampling steps, S those taken, R those ahead, C H W latent channels and size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from trainer.policy.base import Terms
from trainer.policy.flow import sde
from trainer.types import Condition, Modality, Seed


@dataclass(frozen=True, slots=True, eq=False)
class LatentSegment:
    """A latent after S sampling steps, with all that continuing and scoring it need.

    latent_SCHW  float32 [S + 1 C H W], the latent before the first step and after each
    logp_S       float32, the log-probability of each step under the policy that sampled it (`sde.log_density`); 0 for
                 Euler steps, which decide nothing
    clean_CHW    float32, the prediction of the image at the last step, which is the preview or in the end the image;
                 the noise itself before the first step
    noise_RCHW   float32, standard normal noise of the steps ahead, drawn in advance
    source_CHW   float32, the noised latent of the source of an edit; None: no edit
    num_cut      how many tokens of the prompt the policy does not read
    """

    kind: ClassVar[Modality] = "image"
    text: ClassVar[str] = ""
    condition: Condition
    latent_SCHW: Tensor
    logp_S: Tensor
    clean_CHW: Tensor
    noise_RCHW: Tensor
    source_CHW: Tensor | None = None
    num_cut: int = 0

    @property
    def step(self) -> int:
        return len(self.logp_S)

    @property
    def prompt(self) -> str:
        return self.condition.text


@dataclass(frozen=True, slots=True)
class Sampler:
    """The T sampling steps: their times, T + 1 numbers from 1 to 0, and eta of each step, 0 for Euler steps."""

    times: tuple[float, ...]
    etas: tuple[float, ...]

    @classmethod
    def of(
        cls,
        steps: int,
        shift: float,
        eta: float,
        *,
        schedule: sde.Schedule = "once",
        window: tuple[int, int] | None = None,
    ) -> Sampler:
        """Return a sampler whose SDE steps are those of the window, all but the last by default; eta 0: the ODE.

        Raises ValueError for what `sde.sigmas` and `sde.decisions` refuse.
        """
        chosen = sde.decisions(steps, window) if eta else range(0)
        return cls(sde.sigmas(steps, shift, schedule), tuple(eta if k in chosen else 0.0 for k in range(steps)))

    @property
    def steps(self) -> int:
        """T, the number of sampling steps."""
        return len(self.etas)

    @property
    def decisions(self) -> tuple[int, ...]:
        """The steps that are decisions, K of them, in order."""
        return tuple(k for k in range(self.steps) if sde.coefficients(*self._at(k)).std > 0)

    def start(self, conditions: Sequence[Condition], noise_BTCHW: Tensor) -> list[LatentSegment]:
        """Return a latent before its first step for each condition, from standard normal noise [B T + 1 C H W].

        The first of the T + 1 is the latent at t = 1, the others are those of the steps (`normals`).
        """
        if len(conditions) != len(noise_BTCHW) or noise_BTCHW.dim() != 5 or noise_BTCHW.shape[1] != self.steps + 1:
            raise ValueError(
                f"the noise is {list(noise_BTCHW.shape)} for {len(conditions)} conditions; give "
                f"[{len(conditions)}, {self.steps + 1}, C, H, W] for {self.steps} sampling steps"
            )
        return [
            LatentSegment(condition, noise[:1], noise.new_zeros(0), noise[0], noise[1:])
            for condition, noise in zip(conditions, noise_BTCHW, strict=True)
        ]

    def time(self, step: int) -> float:
        """Return t, at which the velocity of a step (from 0) is evaluated."""
        return self.times[step]

    def latents(self, segments: Sequence[LatentSegment], step: int) -> Tensor:
        """Return the latents [B C H W] that a step starts from."""
        return torch.stack([segment.latent_SCHW[step] for segment in segments])

    def advance(self, segments: Sequence[LatentSegment], velocity_BCHW: Tensor) -> list[LatentSegment]:
        """Take one step of segments that are all at the same step, with the velocity of their current latents."""
        step = segments[0].step
        assert all(segment.step == step for segment in segments), "latents at different steps"
        x, noise = self.latents(segments, step), torch.stack([segment.noise_RCHW[0] for segment in segments])
        taken = sde.step(x, velocity_BCHW, *self._at(step), noise)
        clean = sde.clean(x, velocity_BCHW, self.time(step))
        logp = clean.new_zeros(len(x)) if taken.logp is None else taken.logp
        return [
            replace(
                segment,
                latent_SCHW=torch.cat((segment.latent_SCHW, taken.x[i : i + 1])),
                logp_S=torch.cat((segment.logp_S, logp[i : i + 1])),
                clean_CHW=clean[i],
                noise_RCHW=segment.noise_RCHW[1:],
            )
            for i, segment in enumerate(segments)
        ]

    def terms(
        self,
        segments: Sequence[LatentSegment],
        step: int,
        velocity_BCHW: Tensor,
        reference_BCHW: Tensor | None = None,
    ) -> Terms:
        """Return the terms of a sampling step that is a decision, D = 1.

        velocity, reference  of the latents that the step starts from, by the policy and by its reference; with a
                             reference `kl_BD` is the KL of the two Gaussians

        Raises ValueError for an Euler step.
        """
        x, t = self.latents(segments, step), self._at(step)
        mean, std = sde.transition(x, velocity_BCHW, *t)
        sensitivity = sde.sensitivity(*t)
        new = sde.log_density(self.latents(segments, step + 1), mean, std)
        old = torch.stack([segment.logp_S[step] for segment in segments])
        kl = None
        if reference_BCHW is not None:
            kl = sde.gaussian_kl(mean, sde.transition(x, reference_BCHW, *t).mean, std)[:, None]
        mask = torch.ones_like(old, dtype=torch.bool)
        return Terms(new[:, None], old[:, None], mask[:, None], kl_BD=kl, sensitivity=sensitivity)

    def _at(self, step: int) -> tuple[float, float, float]:
        """Return (t, t_next, eta) of a step."""
        return self.times[step], self.times[step + 1], self.etas[step]


def normals(seeds: Sequence[Seed], stream: int, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal float32 [len(seeds) *shape]; row i follows from (seeds[i], stream) alone.

    Rollouts have different seeds, so no two rollouts of a group share any noise: neither the first latent nor that of a
    step.
    """
    rows = [np.random.default_rng([*seed, stream]).standard_normal(shape, np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows))

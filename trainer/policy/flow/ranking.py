"""How likely a flow-matching policy finds an image for a prompt: what `synod verify` ranks prompts by."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from synod.contracts import Pixels
from trainer.policy.flow.policy import FlowPolicy
from trainer.policy.flow.segments import normals

TIMES: Final = (0.1, 0.3, 0.5, 0.7, 0.9)
_STREAM: Final = 2  # of random numbers


@torch.no_grad()
def mean_logp(policy: FlowPolicy, image: Pixels, prompt: str) -> float:
    """Return minus the flow-matching loss of the image, mean over fixed times and noise, without guidance.

    It is a bound on the log-likelihood up to weights of the times, as in classifiers made of diffusion models (Li et
    al. 2023). It compares prompts of one image.
    """
    clean = policy.encode(image)
    noise = normals([(number,) for number in range(len(TIMES))], _STREAM, clean.shape).to(clean.device)
    errors = []
    for t, one in zip(TIMES, noise, strict=True):
        found = policy.velocity([prompt], ((1 - t) * clean + t * one)[None], t, 1.0)
        errors.append(float((found[0] - (one - clean)).square().mean()))
    return -float(np.mean(errors))

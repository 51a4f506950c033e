"""How likely a policy finds an image for a prompt: what `synod verify` ranks prompts by."""

from __future__ import annotations

import torch

from synod.contracts import Pixels
from trainer.policy.show_o.policy import ShowO, fit_to_square


@torch.no_grad()
def mean_logp(policy: ShowO, image: Pixels, prompt: str) -> float:
    """Return the mean log-probability of the image's codes when all of them are masked, without guidance.

    It compares prompts of one image. Between images it mostly says which has less detail.
    """
    codes = policy.vq.encode([fit_to_square(image, policy.image_side)])
    return float(policy.masked_logp([prompt], codes, torch.ones_like(codes, dtype=torch.bool)).mean())

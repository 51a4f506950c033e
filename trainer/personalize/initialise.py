"""Where concept tokens start: centres of the codes of images, faces, class words, and regions of drawn images.

UniCTokens starts s and g at k-means centres of the embeddings of the training images' codes (a person's g at a face
vector), and u, "generation as perception", at those of the regions that change late while an image is drawn.

Suffixes: R rows, D width, C images, N positions, T denoising steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from synod.contracts import Pixels
from synod.errors import SettingsError
from trainer.personalize.tokens import Rows
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.segments import ImageSegment
from trainer.settings.personalize import Regions

IMAGES, BATCH = 20, 5  # drawn before stage 3, and at a time
EARLY, LATE = 0.2, 0.7  # shares of the denoising steps whose draws are compared
WHITE: Final = 255
REGION_PROMPTS: Final = {"person": "A photo of {}'s face in detail."}
REGION_PROMPT: Final = "A photo of {} in the middle of the photo."


def region_prompt(given: str | None, kind: str, name: str) -> str:
    """Return the prompt of the images that stage 3 draws: the given one, else the public one of the concept's kind."""
    return (given or REGION_PROMPTS.get(kind, REGION_PROMPT)).format(name)


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """The positions of a drawn image that start the tokens of stage 3.

    codes_N    the finished image
    late_N     the draw of the late step
    chosen_N   bool, the positions
    topped_up  whether too few positions were found, and others were added
    """

    codes_N: Tensor
    late_N: Tensor
    chosen_N: Tensor
    topped_up: bool = False


def kmeans(points_RD: Tensor, count: int) -> Tensor:
    """Return `count` centres [count D] of the points, sorted by the number of their points, largest first.

    With fewer different points than centres, the points repeat. The result depends on the points alone (seed 0).
    """
    from sklearn.cluster import KMeans  # imported here: it takes a second
    from threadpoolctl import threadpool_limits

    points = points_RD.detach().float().cpu().numpy()
    different = np.unique(points, axis=0)
    if not count or len(different) <= count:
        return torch.from_numpy(different[np.arange(count) % max(1, len(different))])
    with threadpool_limits(1):  # the sums of several threads would depend on their number
        fitted = KMeans(count, n_init=1, random_state=0).fit(points)
    order = np.argsort(-np.bincount(fitted.labels_, minlength=count), kind="stable")
    return torch.from_numpy(fitted.cluster_centers_[order])


def code_rows(policy: ShowO, codes_CN: Tensor) -> Tensor:
    """Return the embeddings [C N D] of image codes."""
    return policy.phi.model.embed_tokens.weight.detach()[codes_CN + policy.vocab.image_offset]


def name_row(policy: ShowO, class_word: str) -> Rows:
    """Return the first row of a concept: the mean of its class word's tokens, in all three tables."""
    ids = policy.vocab.encode(class_word)
    if not ids:
        raise SettingsError(f"the class '{class_word}' has no tokens; give a word such as dog in info.json")
    head = policy.phi.lm_head
    tables = (policy.phi.model.embed_tokens.weight, head.weight, head.bias)
    return Rows(*(table.detach()[ids].mean(0, keepdim=True) for table in tables))


def public_rows(policy: ShowO, count: int) -> Rows:
    """Return the rows of image codes 0 to `count` - 1.

    The public code grows the tables at the end and overwrites the moved range alone, so what it does not initialise
    keeps these rows: every head row, and the tokens of stage 2 of a concept that is not a person.
    """
    ids, head = slice(policy.vocab.image_offset, policy.vocab.image_offset + count), policy.phi.lm_head
    tables = (policy.phi.model.embed_tokens.weight, head.weight, head.bias)
    return Rows(*(table.detach()[ids].clone() for table in tables))


def face_rows(path: Path, count: int, width: int) -> Tensor:
    """Return [count width] from face vectors: their mean, cut into `count` parts, each interpolated to `width`.

    Raises SettingsError for a file that is not [faces, size] with `size` divisible by `count`.
    """
    try:
        with path.open("rb") as file:
            faces: NDArray[np.float32] = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{path} cannot be read ({error}); write it by `python -m services faces CONFIG FOLDER OUT.npy`"
        ) from None
    if faces.ndim != 2 or not len(faces) or faces.dtype.kind != "f":
        raise SettingsError(
            f"{path} has shape {list(faces.shape)} and dtype {faces.dtype}, expected [faces, size] of floating point, "
            "at least one face; give images with a face"
        )
    if not np.isfinite(faces).all():
        raise SettingsError(f"{path} has NaN or infinity; write it again by `python -m services faces`")
    if not count or faces.shape[1] % count:
        raise SettingsError(
            f"{path}: vectors of {faces.shape[1]} numbers cannot be cut into {count} equal tokens; give "
            "[personalize.tokens] generation a divisor of it"
        )
    parts = torch.from_numpy(faces.astype(np.float32).mean(0)).view(1, count, -1)
    return functional.interpolate(parts, size=width, mode="linear", align_corners=False)[0]


@torch.no_grad()
def find_regions(policy: ShowO, prompt: str, mode: Regions, needed: int, seed: Sequence[int]) -> list[Region]:
    """Draw IMAGES images and return their regions; [] for mode "none".

    "paper" and "public": positions whose draw at the late step differs from that at the early one (eq. 5), or from the
    finished codes. "random_patch": as many positions as "paper", at random. "full_image": all. An image with fewer than
    `needed` positions has its `needed` least confident ones added.
    """
    if mode == "none":
        return []
    steps = policy.image_steps
    early, late = (max(1, round(share * steps)) for share in (EARLY, LATE))
    seeds = [(*seed, i) for i in range(IMAGES)]
    parts = [seeds[first : first + BATCH] for first in range(0, IMAGES, BATCH)]
    drawn = [one for part in parts for one in policy.denoise(policy.start([prompt] * len(part), part), steps)]
    return [_region(image, mode, early, late, needed, one) for image, one in zip(drawn, seeds, strict=True)]


def _region(image: ImageSegment, mode: Regions, early: int, late: int, needed: int, seed: Sequence[int]) -> Region:
    codes, before, after = image.codes_TN[-1], image.codes_TN[early - 1], image.codes_TN[late - 1]
    chosen = after != (codes if mode == "public" else before)
    if mode == "full_image":
        chosen = torch.ones_like(chosen)
    elif mode == "random_patch":
        places = np.random.default_rng([*seed, 1]).permutation(len(codes))[: int(chosen.sum())]
        chosen = torch.zeros_like(chosen).index_fill(0, torch.from_numpy(places).to(chosen.device), True)
    few = int(chosen.sum()) < needed
    if few:
        sure = _confidence(image).masked_fill(chosen, -torch.inf)
        chosen = chosen.index_fill(0, sure.argsort(stable=True)[:needed], True)
    return Region(codes, after, chosen, few)


def _confidence(image: ImageSegment) -> Tensor:
    """Return the log-probability [N] of each code when it was drawn last."""
    last = torch.arange(len(image.masked_TN), device=image.masked_TN.device)[:, None] * image.masked_TN
    return image.logp_TN.gather(0, last.amax(0, keepdim=True))[0]


def region_rows(policy: ShowO, regions: Sequence[Region], mode: Regions, count: int) -> Tensor:
    """Return `count` rows [count D] for the tokens of stage 3, from regions.

    They are centres of the finished codes at the chosen positions; for "public" of all codes of the late draw, decoded,
    painted white at the chosen positions and encoded again; for no regions the mean of all rows of text.
    """
    if not regions:
        text = policy.phi.model.embed_tokens.weight.detach()[: policy.vocab.image_offset]
        return text.mean(0, keepdim=True).expand(count, -1).clone()
    if mode == "public":
        painted = region_images(policy, regions)
        return kmeans(code_rows(policy, policy.vq.encode(painted)).flatten(0, 1), count)
    rows = [code_rows(policy, one.codes_N)[one.chosen_N] for one in regions]
    return kmeans(torch.cat(rows), count)


def region_images(policy: ShowO, regions: Sequence[Region]) -> list[Pixels]:
    """Return the draws of the late step, uint8 [H W 3], white at the chosen positions."""
    found = []
    for image, one in zip(policy.vq.decode(torch.stack([r.late_N for r in regions])), regions, strict=True):
        side = round(len(one.chosen_N) ** 0.5)
        patch = len(image) // side
        chosen = one.chosen_N.view(side, side).cpu().numpy().repeat(patch, 0).repeat(patch, 1)
        found.append(np.where(chosen[..., None], np.uint8(WHITE), image))
    return found

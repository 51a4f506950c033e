"""Helpers on batches of images (uint8 [H W 3]) that several families share; torch is imported for a batch only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from services.models.types import Box
from synod.contracts import Pixels
from synod.errors import NonFinite

PIXELS_AT_ONCE: Final = 2**22  # that a processor prepares together: 48 MiB in float32


def by_shape(images: Sequence[Pixels]) -> list[list[int]]:
    """Indices of the images grouped by size, for models that keep an image's own size."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape, []).append(i)
    return list(groups.values())


def check_finite(*outputs: Any) -> None:
    """Raise NonFinite unless every number of a detector's output tensors is finite.

    Comparisons with NaN are false: a detector that overflowed would find no object, and that would count as a score.
    """
    for output in outputs:
        if not output.isfinite().all():
            raise NonFinite(
                f"the detector's output in {str(output.dtype).removeprefix('torch.')} is not finite; serve it with "
                "dtype = 'float32', or check its weights"
            )


def pixel_values(processor: Any, images: Sequence[Pixels], model: Any) -> Any:
    """Return the [N 3 h w] batch that the model's own processor makes, on the model's device and in its dtype.

    Images are prepared a few at a time, since a processor copies them all, some in float32. Images that came off a wire
    are read-only, which torch warns of: those are copied.
    """
    from torch import cat

    batches = []
    for part in _parts(images):
        writable = [np.require(image, requirements=("C", "W")) for image in part]
        prepared = processor(writable, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        batches.append(prepared.to(model.device, model.dtype))
    return batches[0] if len(batches) == 1 else cat(batches)


def _parts(images: Sequence[Pixels]) -> list[list[Pixels]]:
    """Return the images in order, in parts of at most PIXELS_AT_ONCE pixels or one image."""
    parts: list[list[Pixels]] = []
    left = 0
    for image in images:
        pixels = image.shape[0] * image.shape[1]
        if not parts or pixels > left:
            parts.append([])
            left = PIXELS_AT_ONCE
        parts[-1].append(image)
        left -= pixels
    return parts


def area(box: Box) -> float:
    """Square pixels."""
    return (box[2] - box[0]) * (box[3] - box[1])

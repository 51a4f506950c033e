"""Helpers on batches of images (uint8 [H W 3]) that several families share; torch is imported for a batch only."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from types import FunctionType
from typing import Any, Final

import numpy as np

from services.models.image_memo import MEMO
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
    are read-only, which torch warns of: those are copied. Where images are remembered (`services.models.image_memo`),
    processors that prepare alike prepare an image once.
    """
    from torch import cat

    key = preparation(processor) if MEMO.enabled else None
    found = [MEMO.of(image, key) for image in images]
    rows = {i: known["row"].to(model.device, model.dtype) for i, known in enumerate(found) if known}
    new = [i for i in range(len(images)) if i not in rows]
    places = iter(new)
    for part in _parts([images[i] for i in new]):
        writable = [np.require(image, requirements=("C", "W")) for image in part]
        prepared = processor(writable, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        batch = prepared.to(model.device, model.dtype)
        for row, own, i in zip(batch.split(1), prepared.split(1), places, strict=False):
            rows[i] = row
            if own.is_floating_point() and own.nbytes <= images[i].nbytes:  # a copy, no larger than what it is kept for
                found[i]["row"] = own
        if len(part) == len(images):
            return batch
    return cat([rows[i] for i in range(len(images))])


def preparation(processor: Any) -> Hashable:
    """Return a value that is equal for processors that make the same of every image."""
    kinds = type(processor).__mro__
    backend = next((i for i, kind in enumerate(kinds) if kind.__name__ == "TorchvisionBackend"), 0)
    own = any(isinstance(value, FunctionType) for kind in kinds[:backend] for value in vars(kind).values())
    settings = {name: value for name, value in processor.to_dict().items() if value is not None and value is not False}
    del settings["image_processor_type"]
    if "do_center_crop" not in settings:
        settings.pop("crop_size", None)
    return kinds[0 if own else backend], repr(sorted(settings.items()))


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

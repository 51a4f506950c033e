"""What trainers hold -> items of the contract. Pure; torch's tensors are told by their methods, torch is not imported.

| a picture that is | travels as |
|---|---|
| bytes, or {"bytes": ..} as `datasets` has it | they are |
| PIL, mode RGB | raw uint8 [H W 3] |
| PIL, another mode | PNG, so that the plane's rules for palettes and alpha hold |
| numpy uint8 [H W 3], torch uint8 [3 H W] | raw uint8 [H W 3] |
| numpy float [H W 3], torch float [3 H W], in 0..1 | raw, round(255 x) |
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synod.contracts import Content, Pixels, ScoreItem, is_raw
from synod.errors import BadImage, InvalidRequest
from synod.reader import Node
from synod.tree import read_item

FIELDS: Final[tuple[str, ...]] = ("reasoning", "geneval", "concept", "source_prompt")  # besides prompt and pictures
_SLACK: Final = 0.01  # beyond 0..1, as half precision leaves it


def item_of(image: object, prompt: str | None, columns: Mapping[str, Any]) -> ScoreItem:
    """An item with the FIELDS and `references` that `columns` has, as docs/wire.md spells them; None is absent.

    Raises BadImage for a picture that is none, InvalidRequest with the path of another field that is wrong.
    """
    fields = {name: plain(columns[name]) for name in FIELDS if columns.get(name) is not None}
    item = read_item(Node(fields), _no_bytes)
    references = columns.get("references")
    return replace(
        item,
        image=None if image is None else content_of(image),
        prompt=prompt,
        references=() if references is None else tuple(map(content_of, references)),
    )


def contents_of(pictures: Iterable[object]) -> list[Content]:
    """A batch (a list, torch [N 3 H W] or numpy [N H W 3]) -> its pictures. Raises BadImage, with its place."""
    found = []
    for i, picture in enumerate(pictures):
        try:
            found.append(content_of(picture))
        except BadImage as error:
            raise BadImage(f"images[{i}]: {error}") from None
    return found


def content_of(picture: object) -> Content:
    """One picture as it travels, by the table above. Raises BadImage."""
    if isinstance(picture, Mapping) and isinstance(picture.get("bytes"), bytes):
        picture = picture["bytes"]
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Image.Image):
        return np.asarray(picture) if picture.mode == "RGB" else _png(picture)
    if is_tensor(picture):
        return _pixels(_array(picture), "torch [3, H, W]", channels_first=True)
    if isinstance(picture, np.ndarray):
        return _pixels(picture, "numpy [H, W, 3]", channels_first=False)
    raise BadImage(f"a {type(picture).__name__} is no picture; give bytes, a PIL image, a tensor or an array")


def is_picture(value: object) -> bool:
    """Whether `content_of` would look at it."""
    return isinstance(value, bytes | Image.Image | np.ndarray) or is_tensor(value)


def is_tensor(value: object) -> bool:
    """Whether it is torch's, told without torch."""
    return all(hasattr(value, name) for name in ("detach", "cpu", "is_floating_point"))


def plain(value: Any) -> Any:
    """numpy's arrays and scalars, as data frames hold them, as lists and numbers; all else as it is."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def _array(tensor: Any) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    array: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array


def _pixels(array: NDArray[Any], wanted: str, *, channels_first: bool) -> Pixels:
    if array.ndim == 3 and channels_first:
        array = array.transpose(1, 2, 0)
    if np.issubdtype(array.dtype, np.floating) and array.size:
        array = _bytes_of_unit(array)
    if not is_raw(array):
        shape = list(array.shape)
        raise BadImage(f"{array.dtype} of shape {shape} (channels last); give {wanted}, uint8 or float in 0..1")
    return np.ascontiguousarray(array)


def _bytes_of_unit(array: NDArray[Any]) -> NDArray[Any]:
    low, high = float(array.min()), float(array.max())
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # NaN is refused too
        raise BadImage(f"floats in {low:g}..{high:g}; a float picture is in 0..1: rescale it")
    found: Pixels = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return found


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    try:
        picture.save(buffer, "PNG")
    except OSError as error:
        raise BadImage(f"a PIL image of mode {picture.mode}: {error}; convert it to RGB") from None
    return buffer.getvalue()


def _no_bytes(node: Node) -> bytes:
    raise InvalidRequest(f"{node.path}: no picture belongs here")

"""Convert what trainers hold to items. Pure; torch is not imported.

| image | travels as |
|---|---|
| bytes, or {"bytes": ..} as in `datasets` | these bytes |
| PIL | raw pixels, as its file would decode to: `synod.images.pixels_of` |
| numpy uint8 [H W 3], torch uint8 [3 H W] | raw uint8 [H W 3] |
| numpy float [H W 3], torch float [3 H W], in 0..1 | raw, round(255 x) |
| a batch of one of these, [1 ..], also numpy [1 3 H W] | that image |
| a `data:` URL | its bytes |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synod.contracts import ImageData, Pixels, ScoreItem, is_raw
from synod.errors import BadImage, InvalidRequest
from synod.formats import load_json, strict_base64
from synod.images import pixels_of
from synod.reader import Node, quote
from synod.records import Field, fields_of, read_item
from synod.scoring import geneval

FIELDS: Final = {f.key: f for f in fields_of(ScoreItem) if f.name not in ("image", "prompt", "references")}
_TOLERANCE: Final = 0.01  # beyond 0..1, for half precision


def item_of(image: object, prompt: str | None, columns: Mapping[str, Any]) -> ScoreItem:
    """Build an item from an image, a prompt, and the FIELDS and `references` in `columns` (docs/wire.md).

    A None equals an absent column. Raises BadImage for an invalid image, InvalidRequest with the path of another
    invalid field.
    """
    fields = {key: _column(field, columns[key]) for key, field in FIELDS.items() if columns.get(key) is not None}
    if isinstance(fields.get("geneval"), Mapping):
        fields["geneval"] = geneval.with_counts(fields["geneval"])
    item = read_item(Node(fields), _refuse_image)
    references = columns.get("references")
    return replace(
        item,
        image=None if image is None else image_data_of(image),
        prompt=prompt,
        references=() if references is None else tuple(map(image_data_of, references)),
    )


def image_of(columns: Mapping[str, Any]) -> Any:
    """Return the column `image`, or else the only one of `images`. Raises InvalidRequest for several."""
    image, images = columns.get("image"), columns.get("images")
    if image is not None or images is None or is_image(images):
        return images if image is None else image
    if len(images) > 1:
        raise InvalidRequest(
            f"images: the column holds {len(images)} images, but an item has one; put it in 'image' and the others in "
            "'references'"
        )
    return images[0] if len(images) else None


def prompt_of(value: Any, path: str = "prompt") -> str | None:
    """Return the prompt: text, or a conversation's last message of role user; None if empty.

    A conversation is a list or array of messages; if none has a role, its last message is the prompt. Raises
    InvalidRequest for anything else.
    """
    if value is None or isinstance(value, str):
        return value or None
    turns = messages(value, path)
    user_turns = [turn for turn in turns if turn.get("role") == "user"]
    if not user_turns and any(turn.get("role") is not None for turn in turns):
        raise InvalidRequest(
            f"{path}: none of the {len(turns)} messages has the role 'user'; add the one that asks for the image"
        )
    return text_of((user_turns or turns)[-1:], path) or None


def text_of(value: Any, path: str = "completion") -> str:
    """Return a text, or a conversation's last message as text; "" for an image.

    Messages of role tool, and those without content, are skipped. Raises InvalidRequest for anything else.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if is_image(value):
        return ""
    with_content = [
        turn for turn in messages(value, path) if turn.get("role") != "tool" and turn.get("content") is not None
    ]
    if not with_content:
        return ""
    content = with_content[-1]["content"]
    return (
        content if isinstance(content, str) else "".join(_part_text(part) for part in parts_of(with_content[-1], path))
    )


def messages(value: Any, path: str) -> list[Mapping[str, Any]]:
    """Return a conversation's messages: a list, tuple or array of objects, or one object.

    Raises InvalidRequest for anything else.
    """
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, list | tuple | np.ndarray) or not all(isinstance(turn, Mapping) for turn in turns):
        raise InvalidRequest(f"{path}: a {type(value).__name__} is not a prompt or completion; give text or messages")
    return list(turns)


def parts_of(message: Mapping[str, Any], path: str) -> Sequence[Any]:
    """Return the parts of a message's content; none for text or None. Raises InvalidRequest."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return ()
    if not isinstance(content, list | tuple | np.ndarray):
        raise InvalidRequest(
            f"{path}: the content of a message is a {type(content).__name__}; give text or a list of parts"
        )
    return list(content)


def image_in(value: Any, path: str = "completion") -> Any:
    """Return the value if it is an image, else the last image part of its messages, or None."""
    if is_image(value):
        return value
    if value is None or isinstance(value, str):
        return None
    parts = [part for turn in messages(value, path) for part in parts_of(turn, path) if isinstance(part, Mapping)]
    found = [image for part in parts if (image := _part_image(part)) is not None]
    return found[-1] if found else None


def parse_json_object(value: Any, path: str) -> Any:
    """Parse text that starts like a JSON object; return other values unchanged.

    Datasets keep nested columns as text. Raises InvalidRequest.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        return load_json(value.encode(errors="surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"{path}: the text starts with {{ but is not a JSON object ({error}); correct it"
        ) from None


def image_data_list(images: Iterable[object]) -> list[ImageData]:
    """Convert a batch: a list, torch [N 3 H W] or numpy [N H W 3]. Raises BadImage with the index."""
    found = []
    for i, image in enumerate(images):
        try:
            found.append(image_data_of(image))
        except BadImage as error:
            raise BadImage(f"images[{i}]: {error}") from None
    return found


def image_data_of(image: object) -> ImageData:
    """Convert one image by the table above. Raises BadImage."""
    if isinstance(image, Mapping) and isinstance(image.get("bytes"), bytes):
        image = image["bytes"]
    if isinstance(image, bytes):
        return image
    if isinstance(image, str) and image.startswith("data:"):
        return _data_url(image)
    if isinstance(image, Image.Image):
        return pixels_of(image)
    if is_tensor(image):
        return _pixels(_array(image), "torch [3, H, W]", channels_first=True)
    if isinstance(image, np.ndarray):
        return _pixels(image, "numpy [H, W, 3]", channels_first=False)
    raise BadImage(f"a {type(image).__name__} is not an image; give bytes, a PIL image, a tensor or an array")


def is_image(value: object) -> bool:
    """Return whether a value is one image, not text or a list. An array of objects is a list."""
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes)
    return isinstance(value, bytes | Image.Image) or is_tensor(value)


def is_tensor(value: object) -> bool:
    """Return whether a value is a torch tensor, without importing torch."""
    return all(hasattr(value, name) for name in ("detach", "cpu", "is_floating_point"))


def to_builtin(value: Any) -> Any:
    """Convert numpy arrays and scalars, also nested ones, to lists and numbers."""
    if isinstance(value, np.ndarray | np.generic):
        return to_builtin(value.tolist())
    if isinstance(value, Mapping):
        return {key: to_builtin(one) for key, one in value.items()}
    return [to_builtin(one) for one in value] if isinstance(value, list | tuple) else value


def _array(tensor: Any) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    array: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array


def _pixels(array: NDArray[Any], wanted: str, *, channels_first: bool) -> Pixels:
    if array.ndim == 4 and array.shape[0] == 1:  # a batch of one image
        array = array[0]
        channels_first = channels_first or (array.shape[0] == 3 and array.shape[2] != 3)
    if array.ndim == 3 and channels_first:
        array = array.transpose(1, 2, 0)
    if np.issubdtype(array.dtype, np.floating) and array.size:
        array = _unit_to_uint8(array)
    if not is_raw(array):
        shape = list(array.shape)
        raise BadImage(
            f"the array is {array.dtype} of shape {shape} (channels last); give {wanted}, uint8 or float in 0..1"
        )
    return np.ascontiguousarray(array)


def _unit_to_uint8(array: NDArray[Any]) -> NDArray[Any]:
    low, high = float(array.min()), float(array.max())
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # NaN is refused too
        raise BadImage(f"the floats are in {low:g}..{high:g}; rescale them to 0..1")
    found: Pixels = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return found


def _part_text(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    return text if isinstance(text, str) else ""


def _part_image(part: Mapping[str, Any]) -> Any:
    """Return the image of an `image` or `image_url` part; None for another part or an empty placeholder."""
    image = part.get("image")
    url = part.get("image_url")
    if image is None and url is not None:
        image = url.get("url") if isinstance(url, Mapping) else url
        if not isinstance(image, str) or not image.startswith("data:"):
            raise BadImage(f"image_url {quote(image)} is not fetched; give a data: URL or the image itself")
    return image


def _data_url(url: str) -> bytes:
    head, _, body = url.partition(",")
    try:
        if head.endswith(";base64"):
            return strict_base64(body)
    except ValueError:
        pass
    raise BadImage(
        f"{quote(url)} is not a base64 data: URL; give 'data:image/png;base64,' followed by the bytes in base64"
    )


def _column(field: Field, value: Any) -> Any:
    """Convert a column's value for a field; the text of a column may be JSON unless the field is text itself."""
    value = to_builtin(value)
    return value if field.kind.type is str else parse_json_object(value, field.key)


def _refuse_image(node: Node) -> bytes:
    raise InvalidRequest(f"{node.path}: this field cannot hold an image; remove it")

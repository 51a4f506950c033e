"""What trainers hold -> items of the contract. Pure; torch's tensors are told by their methods, torch is not imported.

| an image that is | travels as |
|---|---|
| bytes, or {"bytes": ..} as `datasets` has it | they are |
| PIL | raw, what its file's bytes would decode to: `synod.images.pixels_of` |
| numpy uint8 [H W 3], torch uint8 [3 H W] | raw uint8 [H W 3] |
| numpy float [H W 3], torch float [3 H W], in 0..1 | raw, round(255 x) |
| a batch of one of these, [1 ..], numpy's also [1 3 H W] | that image |
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
from synod.records import read_item
from synod.scoring import geneval

FIELDS: Final[tuple[str, ...]] = ("reasoning", "geneval", "concept", "source_prompt")  # besides prompt and images
_SLACK: Final = 0.01  # beyond 0..1, as half precision leaves it


def item_of(image: object, prompt: str | None, columns: Mapping[str, Any]) -> ScoreItem:
    """An item with the FIELDS and `references` that `columns` has, as docs/wire.md spells them; None is absent.

    Raises BadImage for an image that is none, InvalidRequest with the path of another field that is wrong.
    """
    fields = {name: plain(columns[name]) for name in FIELDS if columns.get(name) is not None}
    fields = {name: value if name == "source_prompt" else of_json(value, name) for name, value in fields.items()}
    if isinstance(fields.get("geneval"), Mapping):
        fields["geneval"] = geneval.with_counts(fields["geneval"])
    item = read_item(Node(fields), _no_bytes)
    references = columns.get("references")
    return replace(
        item,
        image=None if image is None else content_of(image),
        prompt=prompt,
        references=() if references is None else tuple(map(content_of, references)),
    )


def image_of(columns: Mapping[str, Any]) -> Any:
    """The column `image`, or else the only one of `images`. Raises InvalidRequest for several."""
    image, images = columns.get("image"), columns.get("images")
    if image is not None or images is None or is_image(images):
        return images if image is None else image
    if len(images) > 1:
        raise InvalidRequest(f"images: {len(images)} images, one is scored; put it in 'image', others in 'references'")
    return images[0] if len(images) else None


def prompt_of(value: Any, path: str = "prompt") -> str | None:
    """Text as it is; of a conversation (a list or array of messages) the last message of role user, or the last one
    where no message has a role. Empty is None. Raises InvalidRequest for anything else."""
    if value is None or isinstance(value, str):
        return value or None
    turns = messages(value, path)
    asking = [turn for turn in turns if turn.get("role") == "user"]
    if not asking and any(turn.get("role") is not None for turn in turns):
        raise InvalidRequest(f"{path}: {len(turns)} messages, none of role 'user'; add the one that asks for the image")
    return text_of((asking or turns)[-1:], path) or None


def text_of(value: Any, path: str = "completion") -> str:
    """A string as it is; of a conversation the last message's text, passing over tool turns and those without content;
    of an image nothing. Raises InvalidRequest for anything else."""
    if value is None or isinstance(value, str):
        return value or ""
    if is_image(value):
        return ""
    spoken = [turn for turn in messages(value, path) if turn.get("role") != "tool" and turn.get("content") is not None]
    if not spoken:
        return ""
    content = spoken[-1]["content"]
    return content if isinstance(content, str) else "".join(_text(part) for part in parts_of(spoken[-1], path))


def messages(value: Any, path: str) -> list[Mapping[str, Any]]:
    """The messages of a conversation: a list, tuple or numpy array of objects, or one object. Raises InvalidRequest."""
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, list | tuple | np.ndarray) or not all(isinstance(turn, Mapping) for turn in turns):
        raise InvalidRequest(f"{path}: a {type(value).__name__} where text or a list of messages belongs")
    return list(turns)


def parts_of(message: Mapping[str, Any], path: str) -> Sequence[Any]:
    """The parts of a message's content; none of text or of None. Raises InvalidRequest."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return ()
    if not isinstance(content, list | tuple | np.ndarray):
        raise InvalidRequest(f"{path}: a message's content is a {type(content).__name__}; give text or a list of parts")
    return list(content)


def image_in(value: Any, path: str = "completion") -> Any:
    """The value itself, if it is an image, or the last one in its messages (`image` or `image_url` parts), or None."""
    if is_image(value):
        return value
    if value is None or isinstance(value, str):
        return None
    parts = [part for turn in messages(value, path) for part in parts_of(turn, path) if isinstance(part, Mapping)]
    found = [image for part in parts if (image := _image(part)) is not None]
    return found[-1] if found else None


def of_json(value: Any, path: str) -> Any:
    """Read text that starts as a JSON object, as data sets keep nested columns; return all else as it is. Raises
    InvalidRequest."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        return load_json(value.encode(errors="surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path}: text that starts as a JSON object and is none ({error})") from None


def contents_of(images: Iterable[object]) -> list[ImageData]:
    """A batch (a list, torch [N 3 H W] or numpy [N H W 3]) -> its images. Raises BadImage, with its place."""
    found = []
    for i, image in enumerate(images):
        try:
            found.append(content_of(image))
        except BadImage as error:
            raise BadImage(f"images[{i}]: {error}") from None
    return found


def content_of(image: object) -> ImageData:
    """One image as it travels, by the table above. Raises BadImage."""
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
    raise BadImage(f"a {type(image).__name__} is no image; give bytes, a PIL image, a tensor or an array")


def is_image(value: object) -> bool:
    """Whether it is one image, rather than text or a list: an array of objects is a list."""
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes)
    return isinstance(value, bytes | Image.Image) or is_tensor(value)


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
    if array.ndim == 4 and array.shape[0] == 1:  # a batch of one image
        array = array[0]
        channels_first = channels_first or (array.shape[0] == 3 and array.shape[2] != 3)
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
        raise BadImage(f"floats in {low:g}..{high:g}; a float image is in 0..1: rescale it")
    found: Pixels = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return found


def _text(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    return text if isinstance(text, str) else ""


def _image(part: Mapping[str, Any]) -> Any:
    """What an `image` or `image_url` part holds; None for another part, or one that only marks a place."""
    image = part.get("image")
    url = part.get("image_url")
    if image is None and url is not None:
        image = url.get("url") if isinstance(url, Mapping) else url
        if not isinstance(image, str) or not image.startswith("data:"):
            raise BadImage(f"an image_url part of {quote(image)}: no URL is fetched; give a data: URL or the image")
    return image


def _data_url(url: str) -> bytes:
    head, _, body = url.partition(",")
    try:
        if head.endswith(";base64"):
            return strict_base64(body)
    except ValueError:
        pass
    raise BadImage(f"{quote(url)} is no data: URL of base64; give 'data:image/png;base64,' and the bytes in base64")


def _no_bytes(node: Node) -> bytes:
    raise InvalidRequest(f"{node.path}: no image belongs here")

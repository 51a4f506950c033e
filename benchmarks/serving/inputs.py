"""Create the inputs: items from seeds, and request bodies for every wire.

A set is one client's 32 items. Sets have different images, since scorers embed equal images in a batch only once.
"""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from io import BytesIO
from typing import Any

import msgpack
import numpy as np
from PIL import Image

from benchmarks.serving.jobs import settings_of
from embedded.samples import SAMPLES, load_samples
from services.scorers import registry
from synod.codec import CODECS, PROTOBUF
from synod.contracts import ImageData, ImageRef, ScoreItem, ScoreRequest
from synod.digest import digest_of

SETS = 8
ITEMS = 32
JPEG_SIDE, JPEG_QUALITY, NOISE = 512, 95, 4.0  # noise (std, of 255) makes a synthetic image as large as a photograph
RAW_SIDE = 64
PROMPT = "a cup"
PEER_WIRES: Mapping[str, Callable[[Any], bytes]] = {
    "pickle": pickle.dumps,
    "msgpack": msgpack.packb,
    "json": lambda tree: json.dumps(tree, default=lambda data: base64.b64encode(data).decode()).encode(),
}
TYPES = {"pickle": "application/octet-stream", "msgpack": "application/msgpack", "json": "application/json"}


@cache
def ensemble_items(number: int) -> tuple[ScoreItem, ...]:
    """Create set `number`: 512x512 JPEGs of persons, with all inputs that the scorers need."""
    samples = [sample.item for sample in load_samples(SAMPLES)]
    persons = [item for item in samples if item.concept is not None and item.concept.kind == "person"]
    tasks = [item.geneval for item in samples if item.geneval is not None]
    rng = np.random.default_rng([7, number])
    return tuple(
        replace(persons[i % len(persons)], image=_jpeg(persons[i % len(persons)], rng), geneval=tasks[i % len(tasks)])
        for i in range(ITEMS)
    )


@cache
def raw_items(number: int) -> tuple[ScoreItem, ...]:
    """Create set `number`: raw 64x64 images of noise."""
    rng = np.random.default_rng([8, number])
    images = rng.integers(0, 256, (ITEMS, RAW_SIDE, RAW_SIDE, 3), np.uint8)
    return tuple(ScoreItem(image=image, prompt=PROMPT) for image in images)


def references(items: Sequence[ScoreItem]) -> tuple[ImageData, ...]:
    """List the distinct references of the items."""
    return tuple(dict.fromkeys(r for item in items for r in item.references if isinstance(r, bytes)))


def synod_body(items: Sequence[ScoreItem], scorers: Sequence[str], wire: str) -> bytes:
    """Encode a request to Synod in `wire` (json, msgpack, grpc), with references by digest."""
    codec = PROTOBUF if wire == "grpc" else CODECS[TYPES[wire]]
    named = tuple(replace(item, references=tuple(map(_by_digest, item.references))) for item in items)
    return codec.encode_request(ScoreRequest(named, scorers=tuple(scorers), timeout_ms=300_000))


def peer_body(items: Sequence[ScoreItem], scorers: Sequence[str], wire: str) -> bytes:
    """Encode a request to another server: only the concept of each item and the fields that `scorers` need."""
    needs = {"concept"} | {need for name in scorers for need in registry.spec(name, settings_of(name)).needs}
    return PEER_WIRES[wire]({"items": [_tree(item, needs) for item in items]})


def _tree(item: ScoreItem, needs: set[Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "image": _image(item.image),
        "prompt": item.prompt,
        "references": list(item.references),
        "reasoning": asdict(item.reasoning) if item.reasoning else None,
        "geneval": asdict(item.geneval) if item.geneval else None,
        "concept": asdict(item.concept) if item.concept else None,
        "source_prompt": item.source_prompt,
    }
    return {key: value for key, value in fields.items() if key in needs and value is not None}


def _image(image: Any) -> Any:
    return {"data": image.tobytes(), "shape": image.shape} if isinstance(image, np.ndarray) else image


def _by_digest(image: Any) -> ImageRef:
    return ImageRef(digest_of(image))


def _jpeg(item: ScoreItem, rng: np.random.Generator) -> bytes:
    assert isinstance(item.image, bytes)
    original = Image.open(BytesIO(item.image)).convert("RGB").resize((JPEG_SIDE, JPEG_SIDE), Image.Resampling.BICUBIC)
    noisy = np.asarray(original, np.float32) + rng.normal(0, NOISE, (JPEG_SIDE, JPEG_SIDE, 3)).astype(np.float32)
    buffer = BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()

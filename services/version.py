"""What a scorer's values depend on besides the item, as one digest: its settings, its models' files, our own release.

Two scorers of one version give equal values for equal items, so a score may be reused. How a scorer is deployed
(`serving`) and how closely it is checked (`golden_tolerance`) do not count. A hub id counts by its name, since what the
hub answers is not known before a replica has it; pin a revision by naming a directory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import synod
from services.settings import ScorerSettings

LIBRARIES = ("torch", "torchvision", "transformers", "open_clip_torch", "facenet-pytorch", "pillow")
_CHUNK_BYTES = 2**20


def version(settings: ScorerSettings) -> str:
    """BLAKE2b-256 (hex). Reads every file of the models once: seconds for gigabytes."""
    tree = settings.model_dump(mode="json", exclude={"serving", "golden_tolerance"})
    about = [synod.__version__, *(f"{name} {_installed(name)}" for name in LIBRARIES)]
    models = {text: _content(Path(text)) for text in _texts(tree) if text.startswith("/")}
    told = json.dumps([tree | {"device": settings.serving.device}, about, sorted(models.values())], sort_keys=True)
    return hashlib.blake2b(_without_places(told, models).encode(), digest_size=32).hexdigest()


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _texts(value)
    elif isinstance(tree, str):
        yield tree


def _without_places(told: str, models: dict[str, str]) -> str:
    """A model is its content, wherever it lies."""
    for place, content in models.items():
        told = told.replace(json.dumps(place), json.dumps(content))
    return told


def _content(path: Path) -> str:
    """Digest of a file, or of all files directly in a directory, by name."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    total = hashlib.blake2b(digest_size=32)
    for file in files:
        total.update(f"{'' if path.is_file() else file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                total.update(chunk)
    return total.hexdigest()


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"

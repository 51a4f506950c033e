"""The origin of a scorer's values: model files, settings, this release and libraries.

Scorers of equal kind and origin give equal values for equal items, so that scores may be reused. Of `serving`, only
device, dtype and compile are part of the origin; `golden_tolerance` is not. A hub id counts by its name, because its
files are unknown before a replica downloads them: pin it as 'id@REVISION', or name a directory. A custom scorer's
package counts by its Python sources, a scorer's own environment (`serving.python`) by its Python and all its packages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import synod
from services import environment_probe, environments
from services.environments import Placement
from services.scorers.custom import CustomSettings
from services.settings_types import ScorerSettings
from synod.contracts import Origin
from synod.errors import SettingsError

LIBRARIES = (
    *("torch", "torchvision", "transformers", "open_clip_torch", "pillow"),
    *("facenet-pytorch", "dlib-bin", "face-recognition-models"),
    *("rapidocr", "onnxruntime", "opencv-python-headless"),
)
# the rule set is a field of its own; `limits` and keys do not change a judge's answers
_IRRELEVANT = {"serving", "golden_tolerance", "rule_set", "limits", "key_env", "key_file"}
_FREE_TEXT = {"options", "source", "summary"}  # free text of a custom scorer, never a path
_CHUNK_BYTES = 2**20


def origin(settings: ScorerSettings) -> Origin | None:
    """Return the origin of the scorer's values, with BLAKE2b-128 digests (hex).

    Every model file is read once: seconds for gigabytes. Returns None for a scorer on dedicated nodes
    (`serving.resource`), whose packages are unknown.
    """
    if settings.serving.resource is not None:
        return None
    placement = environments.placement_of(settings)
    own = isinstance(settings, CustomSettings)
    tree = settings.model_dump(mode="json", exclude=_IRRELEVANT | (_FREE_TEXT if own else set()))
    models = {text: _content(Path(text)) for text in _texts(tree) if text.startswith("/")}
    tree = _replace_paths(tree, models)
    if isinstance(settings, CustomSettings):
        tree |= {"options": settings.model_dump(mode="json")["options"], "code": _code(settings, placement)}
    serving = settings.serving
    libraries = [f"{name} {_installed(name)}" for name in LIBRARIES] if placement is None else _distributions(placement)
    about = [synod.__version__, serving.device, serving.dtype, serving.compile, *libraries]
    rules = getattr(settings, "rule_set", None)
    return Origin(
        _digest(sorted(models.values()) or tree),
        f"{synod.__version__}+{_digest([tree, about])}",
        None if rules is None else f"{rules} {synod.__version__}",
    )


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _texts(value)
    elif isinstance(tree, str):
        yield tree


def _replace_paths(tree: Any, models: dict[str, str]) -> Any:
    """Replace the paths of models by the digests of their content."""
    if isinstance(tree, dict):
        return {key: _replace_paths(value, models) for key, value in tree.items()}
    return models.get(tree, tree) if isinstance(tree, str) else tree


def _digest(tree: Any) -> str:
    return hashlib.blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=16).hexdigest()


def _content(path: Path) -> str:
    """Return the digest of a file, or of all files directly in a directory, by name."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    total = hashlib.blake2b(digest_size=32)
    for file in files:
        total.update(f"{'' if path.is_file() else file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                total.update(chunk)
    return total.hexdigest()


def _code(settings: CustomSettings, placement: Placement | None) -> str:
    """Return the digest of the Python sources of a custom scorer's package. Raises SettingsError."""
    package = environments.package_of(settings)
    places = (
        environment_probe.module_locations(package) if placement is None else placement.environment.modules[package]
    )
    if not places:
        raise SettingsError(
            f"load = '{settings.load}': the package '{package}' was not found; install it, or put its folder on "
            "PYTHONPATH, on every node"
        )
    files = [file for place in map(Path, places) for file in (sorted(place.rglob("*.py")) or [place])]
    return _digest([[file.name, _content(file)] for file in files])


def _distributions(placement: Placement) -> list[str]:
    """List the Python and all distributions of an environment, since a scorer may use any of them."""
    environment = placement.environment
    version = ".".join(map(str, environment.version))
    return [f"python {version}", *(f"{name} {at}" for name, at in sorted(environment.packages.items()))]


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"

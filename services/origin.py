"""What a scorer's values depend on besides the item: its models' files, its settings, our own release and libraries.

Scorers of equal kind and origin give equal values for equal items, so a score may be reused. Of how a scorer is
deployed (`serving`) only device, dtype and compile count; how closely it is checked (`golden_tolerance`) does not. A
hub id counts by its name, since what the hub answers is not known before a replica has it; pin one as
'id@REVISION', or name a directory. A custom scorer's own package counts by its Python sources, an environment of a
scorer's own (`serving.python`) by its Python and all its packages.
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
# besides the rule set, which is told apart; `limits` and keys are how a judge is asked, not who it is
_NO_MATTER = {"serving", "golden_tolerance", "rule_set", "limits", "key_env", "key_file"}
_FREE = {"options", "source", "summary"}  # of a custom scorer: any text, so none is taken for a path
_CHUNK_BYTES = 2**20


def origin(settings: ScorerSettings) -> Origin | None:
    """The origin of the scorer's values; its digests are BLAKE2b-128 (hex). Reads every file of the models once:
    seconds for gigabytes. None for a scorer on nodes of its own (`serving.resource`), whose packages are not known."""
    if settings.serving.resource is not None:
        return None
    placement = environments.place(settings)
    own = isinstance(settings, CustomSettings)
    tree = settings.model_dump(mode="json", exclude=_NO_MATTER | (_FREE if own else set()))
    models = {text: _content(Path(text)) for text in _texts(tree) if text.startswith("/")}
    tree = _without_places(tree, models)
    if isinstance(settings, CustomSettings):
        tree |= {"options": settings.model_dump(mode="json")["options"], "code": _code(settings, placement)}
    serving = settings.serving
    libraries = [f"{name} {_installed(name)}" for name in LIBRARIES] if placement is None else _all(placement)
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


def _without_places(tree: Any, models: dict[str, str]) -> Any:
    """A model is its content, wherever it lies."""
    if isinstance(tree, dict):
        return {key: _without_places(value, models) for key, value in tree.items()}
    return models.get(tree, tree) if isinstance(tree, str) else tree


def _digest(tree: Any) -> str:
    return hashlib.blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=16).hexdigest()


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


def _code(settings: CustomSettings, placement: Placement | None) -> str:
    """Digest of the Python sources of the package that a custom scorer's `load` names. Raises SettingsError."""
    package = environments.package_of(settings)
    places = environment_probe.places(package) if placement is None else placement.environment.modules[package]
    if not places:
        raise SettingsError(
            f"load = '{settings.load}': no package '{package}'. Install it, or put its folder on PYTHONPATH, on every "
            "node"
        )
    files = [file for place in map(Path, places) for file in (sorted(place.rglob("*.py")) or [place])]
    return _digest([[file.name, _content(file)] for file in files])


def _all(placement: Placement) -> list[str]:
    """Python and every distribution of an environment: any may be what a scorer computes with."""
    environment = placement.environment
    version = ".".join(map(str, environment.version))
    return [f"python {version}", *(f"{name} {at}" for name, at in sorted(environment.packages.items()))]


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"

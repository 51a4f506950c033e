"""Fetching and proving every model that a service's settings name, before a service needs them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.settings_types import Node, ScorerSettings, is_source

CONFIGS_ONLY: Final = ("base", "processor", "tokenizer")  # settings that name files beside the weights


@dataclass(frozen=True, slots=True)
class Model:
    """A model that settings name: `where` is its key, `pretrained` the tag of an open_clip model's weights.

    `configs_only`: the scorer reads the configuration, processor or tokenizer there, and no weights.
    """

    where: str
    source: str
    pretrained: str | None = None
    configs_only: bool = False


@dataclass(frozen=True, slots=True)
class Warmed:
    """A model with what was found of it, or why it cannot be used (`error`, and then nothing was)."""

    model: Model
    revision: str = ""
    size_bytes: int = 0
    digest: str = ""
    seconds: float = 0.0
    error: str | None = None


def models(scorers: Mapping[str, ScorerSettings]) -> list[Model]:
    """Every model of the scorers' settings, those of equal source once, in the order of the settings."""
    found: dict[tuple[str, str | None], Model] = {}
    for name, one in scorers.items():
        for model in _models(one, name):
            found.setdefault((model.source, model.pretrained), model)
    return list(found.values())


def warm(model: Model) -> Warmed:
    """Fetch a model, with the hub's own progress bars, and read its files. Raises nothing for the model's sake."""
    began_s = time.monotonic()
    try:
        from services.models import cache

        path, revision = _fetched(model)
        files = cache.files(path)
        if not (model.configs_only or any(file.suffix in cache.WEIGHTS for file in files)):
            return Warmed(model, error=f"{path}: no weights there ({', '.join(cache.WEIGHTS)})")
        for file in files:
            _prove(file)
        size = sum(file.stat().st_size for file in files)
        return Warmed(model, revision, size, cache.digest(str(path)), time.monotonic() - began_s)
    except Exception as error:  # a rim: the hub's and the file formats' errors are of many libraries
        return Warmed(model, error=f"{type(error).__name__}: {error}{_way_out(error)}")


def _models(node: Node, where: str) -> Iterator[Model]:
    for name, field in type(node).model_fields.items():
        value = getattr(node, name)
        if isinstance(value, Node):
            yield from _models(value, f"{where}.{name}")
        elif is_source(field):
            tag = getattr(node, name.replace("model", "pretrained"), None) if "model" in name else None
            if isinstance(value, Mapping):
                yield from (Model(f"{where}.{name}.{key}", source) for key, source in value.items())
            elif name == "architecture" and not Path(value).exists():
                continue  # a name that open_clip knows; the weights are a source of their own
            elif value is not None:
                yield Model(f"{where}.{name}", value, tag, name in CONFIGS_ONLY)


def _fetched(model: Model) -> tuple[Path, str]:
    """Where a model's files are now, and which revision of it: a commit, a tag of open_clip, "local"."""
    from services.models import cache

    if Path(model.source).exists():
        return cache.resolve(model.source), "local"
    if model.pretrained is not None:
        import open_clip

        from services.models.open_clip import check

        check(model.source, model.pretrained)
        if Path(model.pretrained).is_file():
            return Path(model.pretrained), "local"
        known = open_clip.get_pretrained_cfg(model.source, model.pretrained)
        if not known:
            raise ValueError(f"open_clip has no weights '{model.pretrained}' of '{model.source}'")
        return Path(open_clip.download_pretrained(known)), model.pretrained
    path = cache.resolve(model.source.removeprefix("hf-hub:"), model.configs_only)
    return path, path.name


def _prove(file: Path) -> None:
    """Read a file as its loader will. Raises what that raises."""
    import torch
    from safetensors import safe_open

    if file.name.endswith(".index.json"):
        from services.models.pretrained import shards

        shards(file)
    elif file.suffix == ".json":
        json.loads(file.read_text())
    elif file.suffix == ".safetensors":
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (it is no dict)
                tensors.get_slice(name)
    elif file.suffix in (".bin", ".pt", ".pth"):
        torch.load(file, "cpu", weights_only=True)


def _way_out(error: Exception) -> str:
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}:
        return ". HF_HUB_OFFLINE is set or the hub is out of reach: run this where it is reached, and share its cache"
    if names & {"RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError"}:
        return ". Correct the id or its @REVISION; a gated model needs HF_TOKEN"
    return ""


def row(one: Warmed) -> list[str]:
    """A line of the table: model, source, revision, size, digest, seconds."""
    source = one.model.source if one.model.pretrained is None else f"{one.model.source} ({one.model.pretrained})"
    if one.error is not None:
        return [one.model.where, source, "failed", "", "", ""]
    size = f"{one.size_bytes / 2**20:.1f} MiB"
    return [one.model.where, source, one.revision[:12], size, one.digest[:16], f"{one.seconds:.1f}"]

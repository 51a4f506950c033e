"""Download every model of a service's settings and check its files, before a service needs them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.settings_types import Node, ScorerSettings, is_source
from synod import hub

CONFIGS_ONLY: Final = ("base", "processor", "tokenizer")  # settings that name files other than weights


@dataclass(frozen=True, slots=True)
class Model:
    """A model in the settings: `setting` is its key, `pretrained` the tag of an open_clip model's weights.

    `configs_only`: the scorer reads its configuration, processor or tokenizer, but no weights.
    """

    setting: str
    source: str
    pretrained: str | None = None
    configs_only: bool = False


@dataclass(frozen=True, slots=True)
class WarmResult:
    """A downloaded model's revision, size and digest, or the `error` that prevents its use."""

    model: Model
    revision: str = ""
    size_bytes: int = 0
    digest: str = ""
    seconds: float = 0.0
    error: str | None = None


def models_of(scorers: Mapping[str, ScorerSettings]) -> list[Model]:
    """List the models of the scorers' settings, in order, each source once."""
    found: dict[tuple[str, str | None], Model] = {}
    for name, one in scorers.items():
        for model in _models(one, name):
            found.setdefault((model.source, model.pretrained), model)
    return list(found.values())


def warm(model: Model) -> WarmResult:
    """Download a model, with the hub's progress bars, and read its files. Errors are returned, not raised."""
    began_s = time.monotonic()
    try:
        path, revision = _fetched(model)
        files = hub.files(path)
        if not (model.configs_only or any(file.suffix in hub.WEIGHTS for file in files)):
            return WarmResult(model, error=f"{path} holds no weights (files of type {', '.join(hub.WEIGHTS)})")
        for file in files:
            _validate(file)
        size = sum(file.stat().st_size for file in files)
        return WarmResult(model, revision, size, hub.digest(str(path)), time.monotonic() - began_s)
    except Exception as error:  # error boundary: many libraries raise here
        return WarmResult(model, error=f"{type(error).__name__}: {error}{hub.remedy(error)}")


def _models(node: Node, setting: str) -> Iterator[Model]:
    for name, field in type(node).model_fields.items():
        value = getattr(node, name)
        if isinstance(value, Node):
            yield from _models(value, f"{setting}.{name}")
        elif is_source(field):
            tag = getattr(node, "pretrained", None)
            if isinstance(value, Mapping):
                yield from (Model(f"{setting}.{name}.{key}", source) for key, source in value.items())
            elif name == "architecture" and not Path(value).exists():
                continue  # a name known to open_clip; its weights are another source
            elif value is not None:
                yield Model(f"{setting}.{name}", value, tag, name in CONFIGS_ONLY)


def _fetched(model: Model) -> tuple[Path, str]:
    """Return where a model's files are, and its revision: a commit, a tag of open_clip, or "local"."""
    if Path(model.source).exists():
        return hub.resolve(model.source), "local"
    if model.pretrained is not None:
        import open_clip

        from services.models.open_clip import check

        check(model.source, model.pretrained)
        if Path(model.pretrained).is_file():
            return Path(model.pretrained), "local"
        known = open_clip.get_pretrained_cfg(model.source, model.pretrained)
        if not known:
            raise ValueError(
                f"open_clip has no weights '{model.pretrained}' of '{model.source}'; see open_clip.list_pretrained()"
            )
        return Path(open_clip.download_pretrained(known)), model.pretrained
    path = hub.resolve(model.source.removeprefix("hf-hub:"), model.configs_only)
    return path, path.name


def _validate(file: Path) -> None:
    """Read a file as its loader will. Raises the loader's errors."""
    import torch
    from safetensors import safe_open

    if file.name.endswith(".index.json"):
        from services.models.pretrained import shards

        shards(file)
    elif file.suffix == ".json":
        json.loads(file.read_text())
    elif file.suffix == ".safetensors":
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (it is not a dict)
                tensors.get_slice(name)
    elif file.suffix in (".bin", ".pt", ".pth"):
        torch.load(file, "cpu", weights_only=True)


def table_row(one: WarmResult) -> list[str]:
    """Return a row of the table: model, source, revision, size, digest, seconds."""
    source = one.model.source if one.model.pretrained is None else f"{one.model.source} ({one.model.pretrained})"
    if one.error is not None:
        return [one.model.setting, source, "failed", "", "", ""]
    size = f"{one.size_bytes / 2**20:.1f} MiB"
    return [one.model.setting, source, one.revision[:12], size, one.digest[:16], f"{one.seconds:.1f}"]

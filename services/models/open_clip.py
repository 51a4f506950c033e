"""CLIP features through open_clip: a model directory ('local-dir:'), a hub id ('hf-hub:..'), or a built-in name.

N images or texts, D width.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip import factory
from PIL import Image
from torch.nn.functional import normalize

from services.models import tokens, weights
from services.models.cache import Device, as_device, frozen, like, shared
from synod.contracts import Pixels
from synod.errors import SettingsError

CONFIG: Final = "open_clip_config.json"
_QUICK: Final = "-quickgelu"
_OPENAI_KEYS: Final = frozenset({"input_resolution", "context_length", "vocab_size"})  # in what OpenAI published


class OpenClip:
    """Both towers with the model's own transform and tokenizer; rows have norm 1."""

    def __init__(
        self, name: str, pretrained: str | None, device: Device | str, weights_file: Path | None = None
    ) -> None:
        model, self._transform = _loaded(name, pretrained, device, weights_file)
        self._model: Any = frozen(model, device, "visual", "text" if hasattr(model, "text") else "transformer")
        self._tokenize: Callable[[list[str]], torch.Tensor] = tokens.of_open_clip(open_clip.get_tokenizer(name))

    @torch.inference_mode()
    def image_features(self, images: Iterable[Pixels]) -> NDArray[np.float32]:
        """Return [N D]; the images may differ in size, and none is held once it has the model's size."""
        pixels = torch.stack([self._transform(Image.fromarray(image)) for image in images])
        return _rows(self._model.encode_image(like(self._model, pixels)))

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return [N D]."""
        return _rows(self._model.encode_text(self._tokenize(list(texts)).to(next(self._model.parameters()).device)))


def _loaded(name: str, pretrained: str | None, device: Device | str, weights_file: Path | None) -> tuple[Any, Any]:
    """Return the model and its transform, with the weights of `weights_file` if given, else those of `name`."""
    file = weights_file or _checkpoint(name, pretrained)
    with weights.parameters_on_meta(), _without_its_warning():
        model, _, transform = open_clip.create_model_and_transforms(
            name, pretrained=pretrained, load_weights=False, device=None
        )
    state = weights.read(file)
    if weights_file is None and state.keys() != model.state_dict().keys():
        # Another layout than open_clip's own (SigLIP, MobileCLIP): it converts by copying into a whole model.
        try:
            model, _, transform = open_clip.create_model_and_transforms(name, pretrained=pretrained, weights_only=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise SettingsError(f"{file}: not weights of {name} ({reason}); give the model's own weights") from None
    else:
        weights.load_into(model, state, file, getattr(torch, as_device(device).dtype))
    return model, transform


@contextmanager
def _without_its_warning() -> Iterator[None]:
    """open_clip warns of random weights for a model that it builds and does not fill itself."""
    root = logging.getLogger()

    def kept(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No pretrained weights loaded")

    root.addFilter(kept)
    try:
        yield
    finally:
        root.removeFilter(kept)


def _checkpoint(name: str, pretrained: str | None) -> Path:
    """Return the weights file that open_clip resolves, fetched where it is not local.

    Raises SettingsError where there is none: open_clip only logs that, and goes on with random weights.
    """
    scheme, place = factory.parse_model_name(name)
    found: str | None
    if scheme == "local-dir":
        found = factory._find_checkpoint_in_dir(Path(place))
    elif scheme == "hf-hub":
        found = open_clip.download_pretrained_from_hf(place)
    elif pretrained is None or Path(pretrained).is_file():
        found = pretrained
    else:
        tag = open_clip.get_pretrained_cfg(place.replace("/", "-"), pretrained)
        if not tag:
            known = ", ".join(open_clip.list_pretrained_tags_by_model(place.replace("/", "-"))) or "none"
            raise SettingsError(f"{name}: no weights '{pretrained}'; open_clip has {known}")
        found = open_clip.download_pretrained(tag)
    if found is None:
        raise SettingsError(f"{name}: no weights; give a directory that holds some, or the tag of open_clip's")
    return Path(found)


def _rows(features: torch.Tensor) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = normalize(features.float(), dim=-1).cpu().numpy()
    return rows


def load(source: str, pretrained: str | None, device: Device | str) -> OpenClip:
    """Load the model. Raises SettingsError as `check` does.

    A directory is shared per process by content; open_clip resolves and caches names and hub ids itself.
    """
    check(source, pretrained)
    if Path(source).is_dir():
        return shared("open_clip", source, device, lambda folder: OpenClip(f"local-dir:{folder}", None, device))
    return OpenClip(source, pretrained, device)


def load_file(architecture: str, source: str, device: Device | str) -> OpenClip:
    """Load an architecture (a built-in name or a directory) with a file's weights, shared per process by content.

    Raises SettingsError if the file is missing, unsafe, or of another architecture or activation.
    """
    name = f"local-dir:{architecture}" if Path(architecture).is_dir() else architecture
    place = weights.file(source)
    if name == architecture:
        _check_file(architecture.replace("/", "-"), place)
    return shared(f"open_clip {architecture}", str(place), device, lambda file: OpenClip(name, None, device, file))


def check(source: str, pretrained: str | None) -> None:
    """Raise SettingsError where open_clip only warns: no weights, ignored weights, or weights of another activation.

    OpenAI's CLIP and some later weights were trained with QuickGELU, which open_clip has under names of their own
    ("ViT-L-14-quickgelu"); with GELU the same weights give other features. For a file there is evidence in the archive,
    in the configuration next to it, and in its name and hub repository; else the architecture name decides.
    """
    if Path(source).is_dir() or source.startswith("hf-hub:"):
        if pretrained is not None:
            raise SettingsError(f"pretrained = '{pretrained}': '{source}' has weights of its own; remove 'pretrained'")
        return
    architecture = source.replace("/", "-")  # open_clip takes OpenAI's spelling too: ViT-L/14
    if pretrained is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise SettingsError(
            f"'{source}' without 'pretrained' would have random weights: give a directory, or one of its tags ({tags})"
        )
    if open_clip.get_pretrained_cfg(architecture, pretrained).get("quick_gelu"):
        _refuse_gelu(architecture, f"the weights '{pretrained}'")
    elif Path(pretrained).is_file():
        _check_file(architecture, Path(pretrained))


def _check_file(architecture: str, file: Path) -> None:
    """Raise SettingsError for a file that is OpenAI's own, and for one that needs QuickGELU where `architecture` has
    GELU."""
    if _by_openai(file):
        raise SettingsError(
            f"{file}: the file that OpenAI published, which holds code or settings besides the weights. "
            f"Give the name '{architecture.removesuffix(_QUICK)}{_QUICK}' with pretrained = 'openai'"
        )
    config = file.parent / CONFIG
    if config.is_file():
        if json.loads(config.read_text()).get("model_cfg", {}).get("quick_gelu"):
            _refuse_gelu(architecture, f"the weights of {file}, by the {CONFIG} next to it,")
        return
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    named = [tag for tag in tags if _is_named(file, tag, open_clip.get_pretrained_cfg(architecture, tag))]
    tag = max(named, key=len, default="")
    if open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu"):
        _refuse_gelu(architecture, f"the weights of {file}, by its name open_clip's '{tag}',")


def _refuse_gelu(architecture: str, what: str) -> None:
    """Raise SettingsError when the architecture's activation is not the QuickGELU that `what` was trained with."""
    if not (open_clip.get_model_config(architecture) or {}).get("quick_gelu"):
        raise SettingsError(
            f"'{architecture}' has the activation GELU, but {what} need QuickGELU: the features would be wrong. "
            f"Give the name '{architecture}{_QUICK}'"
        )


def _by_openai(file: Path) -> bool:
    """Return whether a file is a TorchScript archive, as OpenAI's are, or the state dict of one."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            return True
    state = torch.load(file, "cpu", weights_only=True, mmap=True)
    return isinstance(state, dict) and state.keys() >= _OPENAI_KEYS


def _is_named(file: Path, tag: str, known: dict[str, Any]) -> bool:
    """Return whether the file's name holds the tag, or its folder in the hub's cache is the tag's repository."""
    repository = known.get("hf_hub", "").strip("/").replace("/", "--")
    return tag in file.name.lower() or f"models--{repository}" in file.parts

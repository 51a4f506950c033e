"""ImageReward from its published files: `ImageReward.pt` and `med_config.json` in one directory, on transformers' BLIP.

A BLIP ViT-L/16 (224 px) encodes the image. BLIP's text encoder reads the prompt and attends to the image in every layer
("MED": multimodal mixture of encoder and decoder). A head of five linear layers without activations
(768-1024-128-64-16-1) reads its first output token. The reward is (head - MEAN) / STD.

Xu et al. 2023, section 3; constants, preparation and file names of the repository THUDM/ImageReward (Apache-2.0).
Shapes: N images and prompts, L tokens, P patches and the class token, W image width, D text width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchvision import transforms
from transformers import AutoTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from services.models import weights
from services.models.cache import Device, frozen, like, shared
from synod import hub
from synod.contracts import Pixels
from synod.errors import SettingsError
from synod.formats import load_json

WEIGHTS_FILE: Final = "ImageReward.pt"
CONFIG_FILE: Final = "med_config.json"
MEAN: Final = 0.16717362830052426
STD: Final = 1.0333394966054072
MAX_TOKENS: Final = 35
HEAD_WIDTHS: Final = (1024, 128, 64, 16, 1)
_HEAD_PLACES: Final = (0, 2, 4, 6, 7)  # of `mlp.layers`; dropouts are between
_HEAD_DIM: Final = 64  # of every published BLIP image encoder: 12 x 64 (base), 16 x 64 (large)
_CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
_UNUSED: Final = re.compile(r"blip\.(vision_proj|text_proj)\.|\.position_ids$")  # of BLIP's pre-training; never run
_NAMES: Final = (  # published -> ours, in this order; each pair is one-to-one
    ("blip.visual_encoder.cls_token", "vision.embeddings.class_embedding"),
    ("blip.visual_encoder.pos_embed", "vision.embeddings.position_embedding"),
    ("blip.visual_encoder.patch_embed.proj.", "vision.embeddings.patch_embedding."),
    ("blip.visual_encoder.blocks.", "vision.encoder.layers."),
    ("blip.visual_encoder.norm.", "vision.post_layernorm."),
    ("blip.text_encoder.", "text."),
    ("mlp.layers.", "head."),
)
_IN_LAYER: Final = (
    *((".attn.qkv.", ".self_attn.qkv."), (".attn.proj.", ".self_attn.projection.")),
    *((".norm1.", ".layer_norm1."), (".norm2.", ".layer_norm2.")),
)


class ImageReward:
    """Both towers in the device's dtype; the head in float32, as published."""

    def __init__(self, folder: Path, tokenizer: str, device: Device) -> None:
        state = _read(folder / WEIGHTS_FILE)
        modules = nn.ModuleDict(build(state, _config(folder / CONFIG_FILE), folder / WEIGHTS_FILE))
        weights.load_into(modules, state, folder / WEIGHTS_FILE)
        self._vision: Any = frozen(modules["vision"], device)
        self._text: Any = frozen(modules["text"], device)
        self._head: Any = [frozen(layer, device.name) for layer in modules["head"].children()]
        words = hub.resolve(tokenizer, configs_only=True)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(words, padding_side="right")
        self._prepare = _preparation(self._vision.config.image_size)

    @torch.inference_mode()
    def rewards(self, images: Sequence[Pixels], texts: Sequence[str]) -> NDArray[np.float32]:
        """Return [N]: the normalised reward of image i for text i. Texts are cut at 35 tokens, special included."""
        pixels = torch.stack([self._prepare(Image.fromarray(image)) for image in images])
        patches = self._vision(pixel_values=like(self._vision, pixels)).last_hidden_state  # [N P W]
        tokens = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
            split_special_tokens=True,  # '[SEP]' in a prompt is text
        ).to(patches.device)
        hidden = self._text(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:-1], dtype=torch.long, device=patches.device),
        ).last_hidden_state  # [N L D]
        rows = hidden[:, 0].float()
        for layer in self._head:
            rows = layer(rows)
        rewards: NDArray[np.float32] = ((rows[:, 0] - MEAN) / STD).cpu().numpy()
        return rewards


def our_name(published: str) -> str:
    """Return the name in our modules of a tensor of `ImageReward.pt`. Raises KeyError for one of another model."""
    for theirs, ours in _NAMES:
        if published.startswith(theirs):
            name = ours + published.removeprefix(theirs)
            break
    else:
        raise KeyError(published)
    if name.startswith("vision.encoder.layers."):
        for theirs, ours in _IN_LAYER:
            name = name.replace(theirs, ours)
    return name


def build(state: Mapping[str, torch.Tensor], config: Mapping[str, Any], where: Path) -> dict[str, nn.Module]:
    """Build the modules `vision`, `text` and `head` with the sizes of `state` (in our names) and `med_config.json`.

    Raises SettingsError if the sizes cannot be read.
    """
    try:
        patches = state["vision.embeddings.patch_embedding.weight"]  # [W 3 size size]
        positions = state["vision.embeddings.position_embedding"].shape[1] - 1
        width, _, _, patch = patches.shape
        depth = 1 + max(int(name.split(".")[3]) for name in state if name.startswith("vision.encoder.layers."))
        text = BlipTextConfig(
            **{name: config[name] for name in _TEXT_SIZES},
            encoder_hidden_size=width,
            is_decoder=True,
            **_NOT_GENERATING,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise SettingsError(
            f"{where}: the sizes of ImageReward cannot be read ({error}); give the published {WEIGHTS_FILE}"
        ) from None
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=max(1, width // _HEAD_DIM),
        image_size=round(positions**0.5) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,  # BLIP's image encoder; transformers' default is another
    )
    widths = pairwise((text.hidden_size, *HEAD_WIDTHS))
    head = {str(place): nn.Linear(*pair) for place, pair in zip(_HEAD_PLACES, widths, strict=True)}
    return {
        "vision": BlipVisionModel(vision),
        "text": BlipTextModel(text, add_pooling_layer=False),
        "head": nn.ModuleDict(head),
    }


_NOT_GENERATING: Final = {"use_cache": False, "bos_token_id": None, "eos_token_id": None, "sep_token_id": None}
_TEXT_SIZES: Final = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id"),
)


def _read(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors in our names, without those of BLIP's pre-training. Raises SettingsError."""
    state = weights.read(weights.file(str(file)))
    kept = {name: tensor for name, tensor in state.items() if not _UNUSED.search(name)}
    try:
        return {our_name(name): tensor for name, tensor in kept.items()}
    except KeyError as error:
        raise SettingsError(f"{file}: tensor {error} is not one of ImageReward; give the published file") from None


def _config(file: Path) -> Mapping[str, Any]:
    try:
        tree = load_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: {error}; give the published {CONFIG_FILE} next to {WEIGHTS_FILE}") from None
    return tree if isinstance(tree, Mapping) else {}


def _preparation(side: int) -> Any:
    """ImageReward's: short side to `side` (bicubic), centre crop, CLIP's mean and deviation."""
    resize = transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC)
    normalise = transforms.Normalize(_CLIP_MEAN, _CLIP_STD)
    return transforms.Compose([resize, transforms.CenterCrop(side), transforms.ToTensor(), normalise])


def load(source: str, tokenizer: str, device: Device) -> ImageReward:
    """Return the model of a directory or hub id, shared per process; `tokenizer` is another (BERT's, uncased). Raises
    SettingsError for files that are missing or of another model."""
    family = f"image_reward {tokenizer}"
    return shared(family, source, device, lambda folder: ImageReward(folder, tokenizer, device))

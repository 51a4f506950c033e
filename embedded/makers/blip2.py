"""blip2-world: a small BLIP-2 retrieval model, trained image-text contrastive (ITC) for BER.

Captions are prompts as BER reads them, and their resolved forms. Negatives are texts known to be false of the image:
its own prompts with one wrong word, wrong prompts, and captions of the batch that mention something it does not show.
The vision tower also learns to classify each patch, only during training. The ITM head stays untrained.

Suffixes give shapes: b images, u distinct texts, q queries, d projection width.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2Processor, BlipImageProcessor

from embedded import world
from embedded.makers.base import MEAN_STD, degraded
from embedded.makers.dataset import COLOR_NAMES, FINE_LABELS, Sizes, scenes
from embedded.makers.loop import Recipe
from embedded.makers.texts import corpus, tokenizer

RECIPE = Recipe(seed=1, steps=2400, batch=96, lr=1.2e-3)
CONTEXT = 32
NEGATIVES = 3
_PLURALS = {"people": "person", "fish": "fish", **{f"{noun}s": noun for noun in world.CLASSES}}
_VISIBLE = (*world.CLASSES, *COLOR_NAMES, *world.ACCESSORIES, *world.PLACES)
_BIT = {word: 1 << index for index, word in enumerate(_VISIBLE)}
_ALL_COLORS = sum(_BIT[name] for name in COLOR_NAMES)
_ALL_ACCESSORIES = sum(_BIT[name] for name in world.ACCESSORIES)


class Blip2Maker:
    """A batch has `batch` scenes, each with one caption and NEGATIVES false texts."""

    def __init__(self, recipe: Recipe, folder: Path, sizes: Sizes) -> None:
        self.recipe = recipe
        self.data = scenes(folder, sizes)
        self.usable = np.flatnonzero([bool(captions) for captions in self.data["texts"]])
        self.tokenizer = tokenizer(corpus(), CONTEXT)
        self.model = Blip2ForImageTextRetrieval(_config(len(self.tokenizer) + 1))  # the processor adds <image>
        nn.init.normal_(self.model.query_tokens, std=0.5)
        width = self.model.config.vision_config.hidden_size
        heads = {"patch": nn.Linear(width, len(FINE_LABELS)), "tint": nn.Linear(width, 1 + len(COLOR_NAMES))}
        self.heads = nn.ModuleDict(heads)
        self.log_scale = nn.Parameter(torch.tensor(2.5))
        self.module: nn.Module = nn.ModuleDict({"model": self.model, "heads": self.heads})
        self.module.register_parameter("log_scale", self.log_scale)

    def loss(self, rng: np.random.Generator) -> Tensor:
        rows = rng.choice(self.usable, size=self.recipe.batch)
        chosen = [_one(self.data["texts"][row], rng) for row in rows]
        texts = list(dict.fromkeys(text for true, off in chosen for text in (true, *off)))
        place = {text: index for index, text in enumerate(texts)}
        own_b = torch.tensor([place[true] for true, _ in chosen])
        false_bu = torch.from_numpy(_false([self.data["texts"][row] for row in rows], texts))
        for index, (_, off) in enumerate(chosen):
            false_bu[index, [place[text] for text in off]] = True
        patches = self.model.vision_model(pixel_values=degraded(self.data["image"][rows], rng)).last_hidden_state
        cosine_bu = self._cosines(patches, texts)
        logits_bu = self.log_scale.exp().clamp(max=60.0) * cosine_bu
        return _contrastive(logits_bu, own_b, false_bu) + self._naming(patches, rows)

    def _cosines(self, patches: Tensor, texts: list[str]) -> Tensor:
        queries = self.model.qformer(
            query_embeds=self.model.query_tokens.expand(len(patches), -1, -1), encoder_hidden_states=patches
        ).last_hidden_state
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        words = self.model.qformer(
            query_embeds=self.model.embeddings(input_ids=tokens["input_ids"]),
            query_length=0,
            attention_mask=tokens["attention_mask"],
        ).last_hidden_state
        image_bqd = functional.normalize(self.model.vision_projection(queries), dim=-1)
        text_ud = functional.normalize(self.model.text_projection(words[:, 0]), dim=-1)
        return (image_bqd @ text_ud.T).amax(1)

    def _naming(self, patches: Tensor, rows: NDArray[np.int64]) -> Tensor:
        total = torch.zeros(())
        for name, head in self.heads.items():
            target = torch.from_numpy(self.data[name][rows]).long().flatten()
            total = total + functional.cross_entropy(head(patches[:, 1:]).flatten(0, 1), target)
        return total

    def save(self, directory: Path) -> None:
        self.model.save_pretrained(directory)
        size = {"height": world.SIZE, "width": world.SIZE}
        images = BlipImageProcessor(do_resize=True, size=size, resample=3, **MEAN_STD)
        Blip2Processor(images, self.tokenizer).save_pretrained(directory)


def _config(vocabulary: int) -> Blip2Config:
    """Return the configuration; its language model is minimal, since the retrieval class never builds it."""
    return Blip2Config(
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": world.SIZE,
            "patch_size": 8,
            "initializer_range": 0.02,
        },
        qformer_config={
            "vocab_size": vocabulary,
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "intermediate_size": 192,
            "max_position_embeddings": CONTEXT,
            "use_qformer_text_input": True,
            "cross_attention_frequency": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        text_config={
            "model_type": "opt",
            "vocab_size": 8,
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "ffn_dim": 8,
            "num_attention_heads": 1,
            "word_embed_proj_dim": 8,
        },
        num_query_tokens=8,
        image_text_hidden_size=96,
    )


def _one(captions: list[dict[str, Any]], rng: np.random.Generator) -> tuple[str, list[str]]:
    """Return one caption of a scene and up to NEGATIVES texts that are false of it."""
    caption = captions[rng.integers(len(captions))]
    off = caption["off"]
    return caption["true"], [off[i] for i in rng.permutation(len(off))[:NEGATIVES]]


def _false(captions: list[list[dict[str, Any]]], texts: list[str]) -> NDArray[np.bool_]:
    """Return bool [B U]: the text names something that no caption of the scene names.

    A colour is counted as false only if the captions name the colour of everything in the scene.
    """
    named = np.array([_mentions(text) for text in texts], np.int64)
    shown = np.array([_mentions(" ".join(c["true"] for c in forms)) for forms in captions], np.int64)
    complete = (shown & _ALL_COLORS != 0) & (shown & _ALL_ACCESSORIES == 0)
    shown |= np.where(complete, 0, _ALL_COLORS)
    false: NDArray[np.bool_] = (named[None, :] & ~shown[:, None]) != 0
    return false


def _mentions(text: str) -> int:
    words = {_PLURALS.get(word, word) for word in re.findall(r"\w+", text)}
    return sum(_BIT[word] for word in words if word in _BIT)


def _contrastive(logits_bu: Tensor, own_b: Tensor, false_bu: Tensor) -> Tensor:
    """InfoNCE from images to texts and back; negatives are only pairs known to be false."""
    true_bu = functional.one_hot(own_b, logits_bu.shape[1]).bool()
    by_text = logits_bu.masked_fill(~(true_bu | false_bu), -1e4)
    to_text = functional.cross_entropy(by_text, own_b)
    rest_bb = logits_bu[:, own_b].T.masked_fill(~false_bu[:, own_b].T, -1e4)  # [caption, image]
    own_score = logits_bu.gather(1, own_b[:, None])
    to_image = -(torch.cat([own_score, rest_bb], 1).log_softmax(1)[:, 0]).mean()
    return to_text + 0.5 * to_image

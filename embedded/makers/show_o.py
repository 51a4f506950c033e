"""show-o-world: supervised pre-training of a small Show-o that draws scenes and answers queries.

It sees no held-out prompt and no held-out fact. The colour of an accessory is random in every sample, so that a fact
can only be read from the query. Reinforcement learning needs room for improvement: training is short, and in a share
of the textual queries the target is another of the facts, so that the policy stays uncertain. The share is small while
the policy learns to read (LEARNING_MIX) and large in a short second part (UNCERTAIN_MIX). During training, the
embedding of an image code includes the sum of its bits' vectors (`BitEmbedding`).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from tqdm import tqdm

from embedded import world
from embedded.makers.dataset import Sizes, episodes
from embedded.makers.loop import Recipe
from embedded.makers.prompts import fact
from embedded.makers.texts import corpus, tokenizer
from embedded.world.prompts import ATTRIBUTE, attribute_prompt, dense_prompt
from trainer.policy.show_o.config import ShowOConfig
from trainer.policy.show_o.magvit import Magvit
from trainer.policy.show_o.policy import Sampling, ShowO
from trainer.policy.show_o.segments import TextSegment
from trainer.policy.show_o.vocabulary import END, Vocabulary
from trainer.policy.weights import read_weights
from trainer.scenarios import textual_query
from trainer.types import Query

RECIPE = Recipe(seed=7, steps=3400, batch=42, lr=2e-3, weight_decay=0.02)
UNCERTAIN_RECIPE = Recipe(seed=9, steps=300, batch=34, lr=4e-4, weight_decay=0.02)
FRONT = 4.0  # weight of tokens that show an object: the background is most of an image
MAX_TEXT, POSITIONS = 47, 64
DROPPED, BARE = 0.1, 0.3  # shares of images trained without text, and with the prompt but no answer
DENSE = 0.25  # share of textual queries whose prompt states the colour itself
TEXT_WEIGHT = 0.3
SHAPE = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6}


@dataclass(frozen=True)
class BatchMix:
    """The proportions of a batch: images, textual and visual queries.

    A share `wrong_share` of the textual queries has another of the facts as its target.
    """

    images: int
    textual: int
    visual: int
    wrong_share: float

    def counts(self, batch: int) -> tuple[int, int, int]:
        """Return the counts for a batch of about that size, at least one of each."""
        parts = (self.images, self.textual, self.visual)
        images, textual, visual = (max(1, round(batch * part / sum(parts))) for part in parts)
        return images, textual, visual


LEARNING_MIX, UNCERTAIN_MIX = BatchMix(32, 8, 2, wrong_share=0.25), BatchMix(16, 16, 2, wrong_share=0.5)


class ShowOMaker:
    """Train as Show-o: masked prediction of image codes and next-token loss of answers.

    The mask ratio is cos(pi u / 2). `start` is a model directory to continue from, without `BitEmbedding`.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        sizes: Sizes,
        vq: Path,
        mix: BatchMix = LEARNING_MIX,
        start: Path | None = None,
    ) -> None:
        self.recipe, self.mix = recipe, mix
        tokens = Magvit.load(vq)
        vocab = _vocabulary(tokens.config.codebook_size)
        concepts = tuple(profile.name for profile in world.CONCEPTS)
        config = ShowOConfig(vocab.size, tokens.config.codebook_size, POSITIONS, MAX_TEXT, "", False, concepts, SHAPE)
        self.policy = ShowO(config, vocab, tokens, Sampling(guidance_scale=0.0))
        self.module: nn.Module = self.policy.module
        self.tables: tuple[nn.Module, ...] = ()
        if start is None:
            self.module.apply(_initialise)
            self.tables = (self.policy.phi.model.embed_tokens, self.policy.phi.lm_head)
        else:
            read_weights(self.module, start)
        for table in self.tables:
            bits = BitEmbedding(tokens, vocab.image_offset, config.phi.hidden_size)
            parametrize.register_parametrization(table, "weight", bits)
        self.data = episodes(folder, sizes)
        self.codes = _encoded(tokens, self.data["image"], folder / f"episodes-{sizes.episodes}-codes.npy")
        self.renders = {c.name: [r.image for r in world.training_renders(c)] for c in world.CONCEPTS}

    def loss(self, rng: np.random.Generator) -> Tensor:
        # the backward pass of fused attention is slow on a CPU
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH), parametrize.cached():
            images, textual, visual = self.mix.counts(self.recipe.batch)
            examples = [_textual(rng, self.mix.wrong_share) for _ in range(textual)] + [
                self._visual(rng) for _ in range(visual)
            ]
            return self._drawing(rng, images) + TEXT_WEIGHT * self._answering(examples)

    def _drawing(self, rng: np.random.Generator, count: int) -> Tensor:
        rows = rng.integers(len(self.codes), size=count)
        prompts = [_prompt(self.data["texts"][row], rng) for row in rows]
        codes = torch.from_numpy(self.codes[rows]).long()
        ratio = np.cos(0.5 * math.pi * rng.random(count))
        order = torch.from_numpy(rng.random(codes.shape)).argsort(-1).argsort(-1)
        masked = order < torch.from_numpy(np.maximum(1, np.round(ratio * POSITIONS)))[:, None]
        weight = masked * (1.0 + (FRONT - 1.0) * torch.from_numpy(self.data["front"][rows]).flatten(1))
        loss: Tensor = -(self.policy.masked_logp(prompts, codes, masked) * weight[masked]).sum() / weight.sum()
        return loss

    def _answering(self, examples: list[tuple[Query, str]]) -> Tensor:
        vocab = self.policy.vocab
        segments = []
        for query, answer in examples:
            ids = torch.tensor([*vocab.encode(answer), vocab.id(END)])
            segments.append(TextSegment(query, ids, torch.zeros(len(ids)), answer))
        new, _, mask = self.policy.logprobs(segments, 0)
        return -(new * mask).sum() / mask.sum()

    def _visual(self, rng: np.random.Generator) -> tuple[Query, str]:
        profile = world.CONCEPTS[rng.integers(len(world.CONCEPTS))]
        known = world.conversations(profile)
        query, answer = known[rng.integers(len(known))]
        images = self.renders[profile.name]
        return Query(query, images[rng.integers(len(images))]), answer

    def save(self, directory: Path) -> None:
        """Write the policy in bfloat16. `load` casts it to float32, as measured in QUALITY.md."""
        for table in self.tables:
            parametrize.remove_parametrizations(table, "weight")
        self.module.bfloat16()
        self.policy.save(directory, with_vq=False)


class BitEmbedding(nn.Module):
    """Add the signs of a code's bits times one vector per bit [K D] to the image rows of a table [V D].

    Codes that share bits look alike when decoded, so that training one code also trains its neighbours. Saving folds
    the sum into the table.
    """

    signs: Tensor

    def __init__(self, tokens: Magvit, first: int, width: int) -> None:
        super().__init__()
        self.register_buffer("signs", tokens.quantize.embedding.clone(), persistent=False)
        self.first = first
        self.vectors = nn.Parameter(0.02 * torch.randn(tokens.config.bits, width))

    def forward(self, table: Tensor) -> Tensor:
        after = self.first + len(self.signs)
        return torch.cat((table[: self.first], table[self.first : after] + self.signs @ self.vectors, table[after:]))


def _prompt(texts: list[str], rng: np.random.Generator) -> str:
    if rng.random() < DROPPED:
        return ""
    return texts[0] if rng.random() < BARE else texts[-1]


def _textual(rng: np.random.Generator, wrong_share: float) -> tuple[Query, str]:
    """Return a query with four facts of random colours and a prompt for one of them, and its target."""
    profile = world.CONCEPTS[rng.integers(len(world.CONCEPTS))]
    held = {(f.accessory, f.color) for f in profile.attributes if f.heldout}
    while True:
        names = [world.ACCESSORIES[i] for i in rng.choice(len(world.ACCESSORIES), 4, replace=False)]
        colors = [tuple(world.COLORS)[i] for i in rng.choice(len(world.COLORS), 4, replace=False)]
        if not held & set(zip(names, colors, strict=True)):
            break
    facts = [fact(profile, *pair) for pair in zip(names, colors, strict=True)]
    worn = (names[0], colors[0])
    if rng.random() < DENSE:
        noun = world.COLORED[rng.integers(len(world.COLORED))]
        companion = (tuple(world.COLORS)[rng.integers(len(world.COLORS))], noun)
        prompt = dense_prompt(profile, worn, companion, world.PLACES[rng.integers(len(world.PLACES))], "train")
    else:
        prompt = attribute_prompt(ATTRIBUTE[rng.integers(len(ATTRIBUTE))], profile, worn, "train")
    target = facts[int(rng.integers(1, 4)) if rng.random() < wrong_share else 0]
    return Query(textual_query([facts[i] for i in rng.permutation(4)], prompt.text)), target


def _vocabulary(codes: int) -> Vocabulary:
    conversation_texts = [text for profile in world.CONCEPTS for pair in world.conversations(profile) for text in pair]
    words = tokenizer([*corpus(), *conversation_texts, "USER: ASSISTANT:"], MAX_TEXT)
    words.clean_up_tokenization_spaces = True
    words.add_special_tokens({"eos_token": END, "bos_token": END})
    with TemporaryDirectory() as folder:
        words.save_pretrained(folder)
        return Vocabulary.read(folder, [profile.name for profile in world.CONCEPTS], codes, MAX_TEXT)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def _encoded(vq: Magvit, images: NDArray[np.uint8], path: Path) -> NDArray[np.int16]:
    """Return the codes of all images, int16 [N 64], cached for this encoder."""
    key = hashlib.blake2b(vq.encoder.conv_out.weight.numpy().tobytes()).hexdigest()[:16]
    path = path.with_name(f"{path.stem}-{key}.npy")
    if not path.exists():
        parts = tqdm(range(0, len(images), 256), desc="tokenizing", mininterval=5.0)
        with torch.autocast("cpu", torch.bfloat16):
            np.save(path, np.concatenate([vq.encode(list(images[i : i + 256])).short().numpy() for i in parts]))
    codes: NDArray[np.int16] = np.load(path)
    return codes

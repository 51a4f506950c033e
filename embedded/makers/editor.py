"""sana-editor: sana-world, taught with supervision to read a source image, from which reinforcement learning starts.

As in UniRL-Zero's appendices A.3 and A.4: an edit is drawn from its instruction and the source, a redrawn image from
the prompt, words on where everything is, and a source that shows another prompt on the same backdrop. For guidance the
text, the source, or both are dropped, each in a twentieth of these. The rest are images without source, as sana-world
draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor
from transformers import Gemma2Model

from embedded import world
from embedded.makers.dataset import Arrays, Sizes, cached
from embedded.makers.flow import SanaMaker, latents_of, mixed, text_of
from embedded.makers.loop import Recipe
from embedded.makers.prompts import training_prompt
from embedded.makers.texts import HELD_OUT
from trainer.policy.flow import edits
from trainer.scenarios import compound

RECIPE: Final = Recipe(seed=24, steps=2500, batch=32, lr=8e-4, weight_decay=0.0)
PLAIN: Final = 0.25  # share of images without source
KEPT: Final = 0.15  # share of the rest whose source shows the prompt already: it stays
DROPPED: Final = 0.05


class Example(NamedTuple):
    """What an image is drawn from: rows of the target and of its source (None: without), and the text."""

    target: int
    source: int | None
    text: str


class EditorMaker(SanaMaker):
    """Continue the training of a finished transformer and its text encoder, with the layers that read a source."""

    def __init__(self, recipe: Recipe, folder: Path, sizes: Sizes, pipeline: Path) -> None:
        self.prepare(recipe, pipeline)
        for module, found in (
            (self.encoder, Gemma2Model.from_pretrained(pipeline / "text_encoder")),
            (self.transformer, SanaTransformer2DModel.from_pretrained(pipeline / "transformer")),
        ):
            module.load_state_dict(found.float().state_dict())
        edits.attach(self.transformer)
        self.data = pairs(folder, sizes)
        self.texts = self.data["texts"]
        shown = self.data["image"].reshape(-1, *self.data["image"].shape[2:])  # row 2 i and 2 i + 1 are a pair
        self.latents = latents_of(self.codec, shown, folder / f"pairs-{sizes.pairs}-latents.npy")

    def loss(self, rng: np.random.Generator) -> Tensor:
        drawn = [self.example(rng) for _ in range(self.recipe.batch)]
        x_0 = torch.from_numpy(self.latents[[one.target for one in drawn]]).float()
        t = torch.from_numpy(1 / (1 + np.exp(-rng.standard_normal(len(drawn), np.float32))))
        noise, own = torch.from_numpy(rng.standard_normal((2, *x_0.shape), np.float32))
        with torch.autocast("cpu", torch.bfloat16), self._sources(drawn, own):
            v = self.velocity(mixed(x_0, noise, t), [one.text for one in drawn], t)
        error: Tensor = (v.float() - (noise - x_0)).square().mean()
        return error

    def _sources(self, drawn: list[Example], noise: Tensor) -> Any:
        """Return the context in which the transformer reads the sources of these examples, zeros without one."""
        z = torch.from_numpy(self.latents[[one.source or 0 for one in drawn]]).float()
        there = torch.tensor([one.source is not None for one in drawn])[:, None, None, None]
        references = edits.references_of(self.transformer)
        assert references is not None
        return references.given(torch.where(there, edits.noised(z, noise), 0.0))

    def example(self, rng: np.random.Generator) -> Example:
        """Draw an example: without source, unchanged, or one image of a pair from the other."""
        target = int(rng.integers(len(self.latents)))
        record = self.texts[target // 2][target % 2]
        if rng.random() < PLAIN:
            return Example(target, None, text_of(record, rng))
        kept = rng.random() < KEPT
        source = target if kept else target ^ 1
        text = record["prompt"] if kept else record["asked"]
        dropped = rng.random() / DROPPED  # in [0, 1) the text, in [1, 2) the source, in [2, 3) both
        without_text, without_source = dropped < 1 or 2 <= dropped < 3, 1 <= dropped < 3
        return Example(target, None if without_source else source, "" if without_text else text)

    def save(self, directory: Path) -> None:
        """Write the pipeline, and the layers that read a source in its directory `edits`."""
        _, added = edits.split(self.transformer.bfloat16().state_dict())
        edits.save(added, directory / edits.EDITS)
        plain = SanaTransformer2DModel.from_config(self.transformer.config)
        own, _ = edits.split(self.transformer.state_dict())
        plain.load_state_dict(own)
        self.write(directory, plain)


def pairs(folder: Path, sizes: Sizes) -> Arrays:
    """Return image [N 2 64 64 3] and texts, N pairs of records: `prompt` and `words` as in `drawings`, and `asked`.

    `asked` is the text that the image is drawn from, given the other one: half of the pairs are edits and have
    instructions, in the other half two prompts are drawn on one backdrop, and it is the prompt with the words.
    """
    return cached(folder / f"pairs-{sizes.pairs}", _chunk, seed=17, total=sizes.pairs)


def _chunk(rng: np.random.Generator, _start: int, count: int) -> Arrays:
    found = [_edited(rng) if rng.random() < 0.5 else _redrawn(rng) for _ in range(count)]
    return {"image": np.stack([images for images, _ in found]), "texts": [records for _, records in found]}


def _edited(rng: np.random.Generator) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Return an edit of training prompts, on both sides."""
    while True:
        task = world.EDITED_TASKS[int(rng.integers(len(world.EDITED_TASKS)))]
        edit = world.edit_of(training_prompt(task, rng), rng)
        if edit.target_caption not in HELD_OUT:
            break
    both = (edit.source, edit.caption, edit.reverse_prompt), (edit.edited, edit.target_caption, edit.prompt)
    return _pair([(render, _record(render, prompt, asked)) for render, prompt, asked in both])


def _redrawn(rng: np.random.Generator) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Return two prompts of one task that are drawn on one backdrop."""
    task = world.GENEVAL_TASKS[int(rng.integers(len(world.GENEVAL_TASKS)))]
    prompts = [training_prompt(task, rng) for _ in range(2)]
    scenes = [world.scene_for(one, rng) for one in prompts]
    renders = [world.render(world.Scene(one.placed, scenes[0].backdrop), rng) for one in scenes]
    return _pair([(render, _record(render, prompt.text)) for render, prompt in zip(renders, prompts, strict=True)])


def _record(render: world.Render, prompt: str, asked: str | None = None) -> dict[str, str]:
    words = world.arrangement(render)
    return {"prompt": prompt, "words": words, "asked": asked or compound(prompt, words)}


def _pair(both: list[tuple[world.Render, dict[str, str]]]) -> tuple[np.ndarray, list[dict[str, str]]]:
    return np.stack([render.image for render, _ in both]), [record for _, record in both]

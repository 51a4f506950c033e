"""The three stages of UniCTokens (arXiv 2505.14671, sec. 3): supervised training of a few rows, for any policy.

A stage shows questions about the concept with their answers (mmu), and images of it whose codes are masked (t2i). Only
rows of concept tokens are trained. An epoch is one pass over the longer of the two; the shorter one begins again.
Deviations from the authors' code are listed in docs/personalization.md.

Suffixes: B rows of a batch, N image positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from synod.contracts import Pixels
from trainer import checkpoint
from trainer.errors import NonFinite
from trainer.personalize import examples
from trainer.personalize.examples import Item, ItemKind, Photos
from trainer.personalize.records import ConceptRecord
from trainer.policy.base import TextSegment
from trainer.policy.show_o.policy import ShowO, fit_to_square
from trainer.policy.show_o.vocabulary import END
from trainer.report.metrics import Metrics
from trainer.settings.personalize import PersonalizeSettings
from trainer.stop import Stop
from trainer.types import Query

CHECKPOINT_EPOCHS: Final = 5
IMAGE_WEIGHT, TEXT_WEIGHT = 0.8, 0.2  # of the two losses; stage 1 has the text's alone
Part = Literal["name", "shared", "generation", "understanding"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a stage trains, on what, and with which AdamW (betas 0.9 and 0.999). Learning rates are settings.

    images  "cropped" to the concept, with random crop and mirror; "whole" images, without; None: draws nothing
    """

    parts: tuple[Part, ...]
    kinds: frozenset[ItemKind]
    images: Literal["cropped", "whole"] | None
    weight_decay: float
    eps: float


_RECOGNITION: Final[frozenset[ItemKind]] = frozenset({"positive", "random", "hard"})
_ALL: Final[frozenset[ItemKind]] = _RECOGNITION | {"conversation", "text_only"}
RECIPES: Final = {
    1: Recipe(("name", "shared"), _ALL, None, 1e-4, 1e-6),
    2: Recipe(("name", "shared", "generation"), _ALL, "cropped", 1e-3, 1e-8),
    3: Recipe(("name", "understanding"), _RECOGNITION, "whole", 1e-3, 1e-8),
}


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one update reads: questions, and prompts with image codes [B N] and masks [B N]."""

    questions: Sequence[Item]
    prompts: Sequence[str]
    codes_BN: Tensor
    masked_BN: Tensor


def trained_ids(policy: ShowO, name: str, parts: Sequence[Part]) -> list[int]:
    """Return the ids of these parts of a concept's tokens."""
    concept = next(one for one in policy.vocab.personal if one.name == name)
    counts = {
        "name": 1,
        "shared": concept.shared,
        "generation": concept.generation,
        "understanding": concept.understanding,
    }
    ids = iter(policy.vocab.rows_of(name))
    own = {part: [next(ids) for _ in range(count)] for part, count in counts.items()}
    return [place for part in counts if part in parts for place in own[part]]


def epoch_batches(
    policy: ShowO, concept: ConceptRecord, photos: Photos, settings: PersonalizeSettings, number: int, epoch: int
) -> Iterator[Batch]:
    """Yield the batches of one epoch of stage `number`; all of it follows from (seed, stage, epoch)."""
    recipe, sizes = RECIPES[number], settings.stage(number)
    rng = np.random.default_rng([settings.seed, number, epoch])
    asked = _passes(lambda: _questions(concept, settings, number, rng))
    shown = examples.cycled(_files(concept, recipe), rng)
    for _ in range(num_batches(concept, settings, number)):
        pixels = [] if recipe.images is None else [photos[next(shown)] for _ in range(sizes.images)]
        questions = [next(asked) for _ in range(sizes.questions)]
        yield Batch(questions, *_drawn(policy, concept, pixels, settings, recipe, rng))


def num_batches(concept: ConceptRecord, settings: PersonalizeSettings, number: int) -> int:
    """Return the updates of one epoch."""
    recipe, sizes = RECIPES[number], settings.stage(number)
    asked = math.ceil(len(_questions(concept, settings, number, np.random.default_rng(0))) / sizes.questions)
    return max(asked, 0 if recipe.images is None else math.ceil(len(_files(concept, recipe)) / sizes.images))


def _questions(
    concept: ConceptRecord, settings: PersonalizeSettings, number: int, rng: np.random.Generator
) -> list[Item]:
    return examples.questions(concept, RECIPES[number].kinds, rng, settings.text_repeats)


def _files(concept: ConceptRecord, recipe: Recipe) -> tuple[Path, ...]:
    return concept.cropped or concept.train if recipe.images == "cropped" else concept.train


def _passes(draw: Callable[[], list[Item]]) -> Iterator[Item]:
    while True:
        yield from draw()


def _drawn(
    policy: ShowO,
    concept: ConceptRecord,
    pixels: Sequence[Pixels],
    settings: PersonalizeSettings,
    recipe: Recipe,
    rng: np.random.Generator,
) -> tuple[list[str], Tensor, Tensor]:
    """Return the prompts, codes and masks of a batch of images."""
    positions, side = policy.config.num_vq_tokens, policy.image_side
    if recipe.images == "cropped":
        pixels = [examples.cropped(one, side, rng) for one in pixels]
    squares = [fit_to_square(one, side) for one in pixels]
    codes = policy.vq.encode(squares) if squares else torch.zeros(0, positions, dtype=torch.long, device=policy.device)
    masked = torch.from_numpy(examples.masks(len(squares), positions, rng)).to(policy.device)
    return examples.prompts(settings.prompt.format(concept.name), len(squares), rng), codes, masked


def mmu_loss(policy: ShowO, questions: Sequence[Item], photos: Photos) -> Tensor:
    """Return the mean cross-entropy of all answer tokens of a batch.

    Layout and distribution are those of `ShowO.answer`, so a question is trained exactly as it is asked.
    """
    segments = []
    for item in questions:
        ids = torch.tensor([*policy.vocab.encode(item.answer), policy.vocab.id(END)], device=policy.device)
        query = Query(item.query, None if item.image is None else photos[item.image])
        segments.append(TextSegment(query, ids, torch.zeros(len(ids), device=policy.device), item.answer))
    logp, _, mask = policy.logprobs(segments, 0)
    return -logp[mask].mean()


def t2i_loss(policy: ShowO, batch: Batch, kind: Literal["codes", "public"]) -> Tensor:
    """Return the mean cross-entropy of masked codes over all codes, or Show-o's own over the whole vocabulary."""
    if kind == "public":
        return policy.whole_vocabulary_loss(batch.prompts, batch.codes_BN, batch.masked_BN)
    return -policy.masked_logp(batch.prompts, batch.codes_BN, batch.masked_BN).mean()


def update(
    policy: ShowO,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    photos: Photos,
    kind: Literal["codes", "public"],
    pull: float = 0.0,
) -> dict[str, float]:
    """Make one update and return its losses; `pull` weighs the distance of the name's rows from the stage's start.

    Raises NonFinite, with the weights unchanged.
    """
    optimizer.zero_grad(set_to_none=True)
    losses = {"text": mmu_loss(policy, batch.questions, photos)}
    weights = {"text": 1.0}
    if batch.prompts:
        losses["image"] = t2i_loss(policy, batch, kind)
        weights = {"text": TEXT_WEIGHT, "image": IMAGE_WEIGHT}
    if pull:
        losses["name"], weights["name"] = policy.row_distance(0), pull  # the name is the first of its concept's tokens
    total = sum((weights[name] * loss for name, loss in losses.items()), torch.zeros((), device=policy.device))
    if not bool(total.isfinite()):
        raise NonFinite(f"the loss is {float(total.detach())}; give the stage's table a lower lr", None)
    total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return {"loss": float(total.detach()), **{f"loss_{name}": float(loss.detach()) for name, loss in losses.items()}}


def train_stage(
    policy: ShowO,
    concept: ConceptRecord,
    photos: Photos,
    settings: PersonalizeSettings,
    number: int,
    directory: Path,
    conditions: Mapping[str, Any],
    stop: Stop,
) -> bool:
    """Train the rows of stage `number`, which the policy has, and leave them in its tables; False: stopped before.

    Resumes from the newest checkpoint in `directory`, bit for bit. `conditions` is what a checkpoint must agree with.
    Raises CheckpointMismatch, CheckpointNotWritten and NonFinite.
    """
    recipe, wanted = RECIPES[number], settings.stage(number)
    policy.train_rows(trained_ids(policy, concept.name, recipe.parts))
    trained = {name: p for name, p in policy.module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), wanted.lr, weight_decay=recipe.weight_decay, eps=recipe.eps)
    epoch = _resume(directory / "checkpoints", conditions, trained, optimizer)
    steps, stopped = num_batches(concept, settings, number), stop.is_set()
    bar = tqdm(total=wanted.epochs * steps, initial=epoch * steps, desc=f"stage {number}", unit="step", mininterval=1.0)
    with Metrics(directory, epoch * steps) as metrics, bar, attention(policy):
        while epoch < wanted.epochs and not stopped:
            for place, batch in enumerate(epoch_batches(policy, concept, photos, settings, number, epoch)):
                record = update(policy, optimizer, batch, photos, settings.t2i_loss, settings.name_pull)
                metrics.log(epoch * steps + place, {"epoch": epoch, **record})
                bar.set_postfix_str(f"loss {record['loss']:.3f}", refresh=False)
                bar.update()
            epoch, stopped = epoch + 1, stop.is_set()
            if epoch % CHECKPOINT_EPOCHS == 0 or epoch == wanted.epochs or stopped:
                state = {"rows": trained, "optimizer": optimizer.state_dict()}
                checkpoint.save(directory / "checkpoints", epoch, state, conditions)
    if epoch < wanted.epochs:
        return False
    policy.keep_rows()
    return True


def _resume(
    directory: Path,
    conditions: Mapping[str, Any],
    trained: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> int:
    """Restore the newest checkpoint, if there is one, and return the epochs that are done."""
    last = checkpoint.latest(directory)
    if last is None:
        return 0
    epoch, state = checkpoint.load(last, conditions)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state["rows"][name])
    optimizer.load_state_dict(state["optimizer"])
    return epoch


def attention(policy: ShowO) -> AbstractContextManager[None]:
    """Return the context of training: plain attention on a CPU, where the backward pass of the fused one is slow."""
    return sdpa_kernel(SDPBackend.MATH) if policy.device.type == "cpu" else nullcontext()

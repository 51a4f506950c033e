"""Show-o v1 (Xie et al. 2025): one Phi answers in text and draws images by masked prediction.

An image token is predicted at its own masked position, over the image codes only. The policy is the guided
distribution softmax((1 + g) cond - g uncond), which is what is sampled. Answers are sampled over the text tokens. A
text block does not attend to the image, so its keys and values are computed once for all denoising steps.

Suffixes: B rollouts, T steps, N image positions, S answer tokens, L positions, V image codes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from synod.contracts import Pixels
from synod.errors import SettingsError
from trainer.policy.base import ParameterGroup, Terms, TextSegment, TokenLogp
from trainer.policy.lora import Lora
from trainer.policy.show_o import maskgit, vocabulary
from trainer.policy.show_o.config import ShowOConfig
from trainer.policy.show_o.magvit import Magvit
from trainer.policy.show_o.memory import Dtype, activation_bytes
from trainer.policy.show_o.phi import Cache, Phi, PhiConfig
from trainer.policy.show_o.rows import ConceptRows, folded
from trainer.policy.show_o.segments import ImageSegment
from trainer.policy.show_o.vocabulary import END, PAD, Vocabulary
from trainer.policy.weights import state_of, write_weights
from trainer.types import Modality, Query, Seed, Segment

CACHED_IMAGES = 1024
ADAPTER = "adapter"  # in a saved directory
# Layers that cannot have an adapter, and why.
BYPASSED = {
    "lm_head": "rows of its weights are read for text or for image codes, without calling the layer",
    "embed_tokens": "it is a table of embeddings",
}
_TEXT, _IMAGE = 0, 1  # streams of random numbers
S = TypeVar("S", TextSegment, ImageSegment)


@dataclass(frozen=True)
class Sampling:
    """How answers and images are sampled.

    `guidance_scale` is g, `temperature` the initial scale of the noise that is added to a position's `confidence`.
    `schedule` is the share of positions that is still masked after each step.
    `positions` "masked" scores sampled positions, "committed" those of them whose code stays, and "all" every position
    of every step, as Sync-R1's eq. 1 does.
    """

    denoising_steps: int = 50
    guidance_scale: float = 5.0
    temperature: float = 1.0
    max_new_tokens: int = 100
    confidence: maskgit.Confidence = "drawn"
    schedule: maskgit.Schedule = "cosine"
    positions: Literal["masked", "committed", "all"] = "masked"


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """What image rows attend to: U different prompts, with guidance the empty one among them.

    rows     the row of each prompt in the other fields
    seen_UP  bool, False at padding
    cache    U sequences
    """

    rows: dict[str, int]
    seen_UP: Tensor
    cache: Cache

    def leaves(self) -> Texts:
        """Return equal texts whose cache is leaves of the graph: a backward pass ends there."""
        return replace(self, cache=self.cache.leaves())

    def tensors(self) -> list[Tensor]:
        """Return all keys and values, in a fixed order."""
        return [tensor for layer in self.cache.layers for tensor in layer]

    def of(self, prompts: Sequence[str], image_rows: int) -> tuple[Tensor | None, Cache]:
        """Return the mask of image rows (None: no prompt is padded) and the cache for B of the prompts."""
        index = [self.rows[prompt] for prompt in prompts]
        seen = self.seen_UP[index]
        mask = None if bool(seen.all()) else vocabulary.image_mask(seen, image_rows)
        return mask, self.cache.rows(index)


@dataclass(eq=False)
class SharedTexts:
    """What all denoising steps of an update read: the prompts' texts, by the policy and by its reference."""

    prompts: Sequence[str]
    policy: Texts
    reference: Texts | None = None


class Wrapped(nn.Module):
    """The language model under the public prefix `showo.`."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.showo = Phi(config)


class ShowO:
    """The policy: a language model over text and image codes, its vocabulary and its image tokenizer.

    `checkpointing` trades a second forward pass of each block for the memory of its activations. `dtype` is that of
    matrix products and attention, in sampling and update alike; weights, the residual stream, logits and gradients stay
    in the weights' own.
    """

    def __init__(
        self,
        config: ShowOConfig,
        vocab: Vocabulary,
        vq: Magvit,
        sampling: Sampling,
        *,
        checkpointing: bool = False,
        dtype: Dtype = "float32",
    ) -> None:
        if vocab.size != config.vocab_size:
            raise SettingsError(
                f"the vocabulary does not fit: tokenizer {vocab.image_offset} + codes {vocab.codebook_size} + mask 1 "
                f"= {vocab.size}, but config.json says vocab_size {config.vocab_size}; give the model's own tokenizer"
            )
        if vq.config.codebook_size != config.codebook_size:
            raise SettingsError(
                f"the image tokenizer has {vq.config.codebook_size} codes, the policy {config.codebook_size}; "
                "give the one it was trained with"
            )
        self.config, self.vocab, self.vq, self.sampling = config, vocab, vq, sampling
        self.module: nn.Module = Wrapped(config.phi)
        self._reference: nn.Module | None = None
        self._lora: Lora | None = None
        self._rows: ConceptRows | None = None
        self.log: Callable[[str], None] = tqdm.write
        self._has_warned = False
        self.phi.checkpointing = checkpointing
        self.dtype = dtype
        self._shared: SharedTexts | None = None
        self._in_reference = False
        self._image_codes: dict[bytes, Tensor] = {}

    @property
    def phi(self) -> Phi:
        return _phi_of(self.module)

    @property
    def device(self) -> torch.device:
        return self.phi.lm_head.weight.device

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

    @property
    def image_steps(self) -> int:
        return self.sampling.denoising_steps

    def decisions(self, kind: Modality) -> int:
        if kind == "text":
            return self.sampling.max_new_tokens
        times = 1 if self.sampling.positions == "committed" else self.sampling.denoising_steps
        return times * self.config.num_vq_tokens

    def to(self, device: torch.device) -> None:
        self.vq.to(device)
        for module in (self.module, self._reference):
            if module is not None:
                module.to(device)

    # -- answers ------------------------------------------------------------------------------------------------------

    def answer(self, queries: Sequence[Query], seeds: Sequence[Seed]) -> list[TextSegment]:
        """Sample one answer for each query; equal queries are sampled in one batch."""
        drawn = _uniforms(seeds, _TEXT, (self.sampling.max_new_tokens,))
        found: dict[int, TextSegment] = {}
        for query in dict.fromkeys(queries):
            places = [place for place, one in enumerate(queries) if one is query]
            found |= zip(places, self.reason(query, drawn[places]), strict=True)
        return [found[place] for place in range(len(queries))]

    @torch.no_grad()
    def reason(self, query: Query, uniform_BS: Tensor) -> list[TextSegment]:
        """Sample B answers of at most S tokens at temperature 1."""
        batch, limit = uniform_BS.shape
        question = self._question(query)
        with self._autocast():
            mask = vocabulary.question_mask(len(question), self._end_of_image, self.device)
            read, past = self.phi.encode(question[None], mask)
            hidden, past = read[:, -1].expand(batch, -1), past.expand(batch)
            ended = torch.zeros(batch, dtype=torch.bool, device=self.device)
            ids, logps = [], []
            for step in range(limit):
                logp_BV = self._text_logp(hidden)
                drawn = maskgit.draw(logp_BV, uniform_BS[:, step].to(self.device))
                ids.append(drawn)
                logps.append(logp_BV.gather(-1, drawn[:, None]).squeeze(1))
                ended |= drawn == self.vocab.id(END)
                if ended.all() or step == limit - 1:
                    break
                read, fresh = self.phi.encode(drawn[:, None], None, past, start=len(question) + step)
                hidden, past = read[:, 0], past.followed_by(fresh)
        return [self._answer(query, i, p) for i, p in zip(torch.stack(ids, 1), torch.stack(logps, 1), strict=True)]

    def _answer(self, query: Query, ids_S: Tensor, logp_S: Tensor) -> TextSegment:
        ends = (ids_S == self.vocab.id(END)).nonzero()
        length = int(ends[0]) + 1 if len(ends) else len(ids_S)
        return TextSegment(query, ids_S[:length], logp_S[:length], self.vocab.decode(ids_S[:length].tolist()))

    @torch.no_grad()
    def token_logps(self, queries: Sequence[Query], answers: Sequence[str]) -> list[TokenLogp]:
        """Return how likely each token of given answers is, all of them in one pass.

        Images are tokenised from their pixels. Probabilities are those of the text tokens that may be said.
        """
        ids = [torch.tensor(self.vocab.encode(answer), dtype=torch.long, device=self.device) for answer in answers]
        given = [
            TextSegment(query, own, torch.zeros_like(own, dtype=torch.float32), answer)
            for query, own, answer in zip(queries, ids, answers, strict=True)
        ]
        logp_BS, _, mask_BS = self._text_logprobs(given)
        spelt = [tuple(self.vocab.tokenizer.convert_ids_to_tokens(own.tolist())) for own in ids]
        rows = zip(spelt, logp_BS.cpu(), mask_BS.cpu(), strict=True)
        return [TokenLogp(tokens, tuple(logp[mask].tolist())) for tokens, logp, mask in rows]

    @property
    def _end_of_image(self) -> int:
        return 2 + self.config.num_vq_tokens

    @property
    def image_side(self) -> int:
        """Return the width and height of its images in px."""
        side: int = round(self.config.num_vq_tokens**0.5) * self.vq.config.patch
        return side

    def _question(self, query: Query) -> Tensor:
        side = self.image_side
        image = fit_to_square(query.image, side) if query.image is not None else np.zeros((side, side, 3), np.uint8)
        return self.vocab.question(query.text, self._codes(image)).to(self.device)

    def _codes(self, image: Pixels) -> Tensor:
        """Return the image's codes [N], from a cache: queries show few different images."""
        key = hashlib.blake2b(image.tobytes()).digest()
        if key not in self._image_codes:
            if len(self._image_codes) >= CACHED_IMAGES:
                self._image_codes.clear()
            self._image_codes[key] = self.vq.encode([image])[0]
        return self._image_codes[key]

    def _text_logp(self, hidden: Tensor) -> Tensor:
        logits = self.phi.logits(hidden, 0, self.vocab.image_offset)
        if self.vocab.unsaid:
            logits = logits.index_fill(-1, torch.tensor(self.vocab.unsaid, device=logits.device), -math.inf)
        return logits.log_softmax(-1)

    # -- generation ---------------------------------------------------------------------------------------------------

    def start(self, prompts: Sequence[str], seeds: Sequence[Seed]) -> list[ImageSegment]:
        shape = (self.sampling.denoising_steps, 2, self.config.num_vq_tokens)
        return self.begin(prompts, _uniforms(seeds, _IMAGE, shape))

    def begin(self, prompts: Sequence[str], uniform_BT2N: Tensor) -> list[ImageSegment]:
        """Return a fully masked image for each prompt, to be sampled with the given uniforms."""
        cuts = [self.vocab.num_cut(prompt) for prompt in prompts]
        if any(cuts) and not self._has_warned:
            self._has_warned = True
            prompt, cut = max(zip(prompts, cuts, strict=True), key=lambda pair: pair[1])
            self.log(
                f"the last {cut} tokens of the prompt {prompt!r} do not fit a text block of "
                f"{self.vocab.max_text_length + 1} and are not read; `text_cut` counts such images from here on"
            )
        return _split(prompts, maskgit.begin(uniform_BT2N.to(self.device)), cuts)

    @torch.no_grad()
    def denoise(self, segments: Sequence[Segment], until: int) -> list[ImageSegment]:
        found = _of(ImageSegment, segments)
        prompts = [s.prompt for s in found]
        with self._autocast():
            texts = self._texts(prompts)
            state = maskgit.denoise(
                _join(found),
                lambda c, m, s: self._guided(texts, prompts, c, m, s),
                until,
                self.sampling.temperature,
                everywhere=self.sampling.positions == "all",
                confidence=self.sampling.confidence,
                schedule=self.sampling.schedule,
            )
        return _split(prompts, state, [s.num_cut for s in found])

    def images(self, segments: Sequence[Segment]) -> list[Pixels]:
        return self.vq.decode(torch.stack([s.codes_TN[-1] for s in _of(ImageSegment, segments)]))

    def evaluating(self) -> AbstractContextManager[None]:
        return nullcontext()  # as training draws

    def _texts(self, prompts: Sequence[str]) -> Texts:
        """Encode the different ones of the prompts, and with guidance the empty prompt."""
        empty = [""] if self.sampling.guidance_scale else []
        rows = {prompt: row for row, prompt in enumerate(dict.fromkeys([*prompts, *empty]))}
        ids, cache = self._text(list(rows))
        return Texts(rows, ids != self.vocab.id(PAD), cache)

    def _text(self, prompts: Sequence[str]) -> tuple[Tensor, Cache]:
        ids, start = self.vocab.text_block(prompts)
        ids = ids.to(self.device)
        return ids, self.phi.encode(ids, vocabulary.text_mask(ids, self.vocab.id(PAD)), start=start)[1]

    def _guided(
        self, texts: Texts, prompts: Sequence[str], codes_BN: Tensor, masked_BN: Tensor, scored_BN: Tensor
    ) -> Tensor:
        """Return guided log-probabilities [K V] of the next draw at the K scored positions, in row-major order.

        They are log softmax((1 + g) cond - g uncond). The head is linear and biased, so that is one product with
        (1 + g) h_cond - g h_uncond.
        """
        image = self._image_ids(codes_BN, masked_BN)
        if not masked_BN.all():
            return self._image_logits(self._mixed(texts, prompts, image, image)[scored_BN]).log_softmax(-1)
        different = list(dict.fromkeys(prompts))  # all images are equal, so what follows from equal prompts is equal
        logp_UNV = self._image_logits(self._mixed(texts, different, image[: len(different)], image[:1])).log_softmax(-1)
        return logp_UNV[[different.index(prompt) for prompt in prompts]][scored_BN]

    def _mixed(self, texts: Texts, prompts: Sequence[str], image: Tensor, unprompted: Tensor) -> Tensor:
        """Return (1 + g) h_cond - g h_uncond [B N D]; one image `unprompted` stands for all if they are equal."""
        scale = self.sampling.guidance_scale
        if not scale:
            return self._read_image(image, *texts.of(prompts, image.shape[1]))
        # One batch: a weight that meets two has its gradient twice for a while.
        read = texts.of([*prompts, *[""] * len(unprompted)], image.shape[1])
        hidden = self._read_image(torch.cat((image, unprompted)), *read)
        return (1 + scale) * hidden[: len(image)] - scale * hidden[len(image) :]

    def _image_ids(self, codes_BN: Tensor, masked_BN: Tensor) -> Tensor:
        """Return the ids `<|soi|> codes or masks <|eoi|>`, [B N + 2]."""
        image = torch.where(masked_BN, self.vocab.mask_id, codes_BN + self.vocab.image_offset)
        soi, eoi = (image.new_full((len(image), 1), self.vocab.id(t)) for t in ("<|soi|>", "<|eoi|>"))
        return torch.cat((soi, image, eoi), 1)

    def _read_image(self, image: Tensor, mask: Tensor | None, text: Cache) -> Tensor:
        """Return hidden states [B N D] of the image positions."""
        hidden: Tensor = self.phi(image, mask, text, self.vocab.max_text_length + 1)
        return hidden[:, 1:-1]

    def _image_logits(self, hidden: Tensor) -> Tensor:
        return self.phi.logits(hidden, self.vocab.image_offset, self.vocab.mask_id)

    # -- log-probabilities --------------------------------------------------------------------------------------------

    def steps(self, segments: Sequence[Segment]) -> int:
        return segments[0].step

    def terms(self, segments: Sequence[Segment], step: int, *, reference: bool = False) -> Terms:
        new, old, mask = self.logprobs(segments, step)
        if not reference:
            return Terms(new, old, mask)
        with torch.no_grad(), self.reference():
            return Terms(new, old, mask, reference_BD=self.logprobs(segments, step)[0])

    def logprobs(self, segments: Sequence[Segment], step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (new_BD, old_BD, mask_BD) of `Terms`; an image's are those of the guided distribution."""
        if segments[0].kind == "image":
            return self._image_logprobs(_of(ImageSegment, segments), step)
        return self._text_logprobs(_of(TextSegment, segments))

    def add_adapters(self, *, rank: int, alpha: int, targets: Sequence[str], seed: int, base: str) -> None:
        """Train low-rank adapters instead of the weights (see `Lora`); `base` is where these weights come from.

        In bfloat16 the linear layers of the blocks are stored in it: half of the memory, and the same results.

        Raises SettingsError for a target that is not a linear layer, or would have no effect.
        """
        if self.dtype == "bfloat16":  # as autocast would cast these frozen weights in every product
            for layer in self.phi.model.layers.modules():
                if isinstance(layer, nn.Linear):
                    layer.bfloat16()
        self._lora = Lora(self.module, rank=rank, alpha=alpha, targets=targets, seed=seed, base=base, bypassed=BYPASSED)

    def train_norms(self) -> None:
        """Train the gains of the layer norms alone; every other weight is frozen."""
        self.module.requires_grad_(False)
        for module in self.module.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.requires_grad_(True)

    def train_rows(self, ids: Sequence[int]) -> None:
        """Train the rows of these ids in the embeddings and in the head alone; every other weight is frozen.

        The tables keep the rows as they are now: `reference` reads those, without a second model.
        """
        assert self._lora is None, "adapters are trained already"
        self._rows = ConceptRows(self.phi, ids)

    def row_distance(self, row: int) -> Tensor:
        """Return how far the row of number `row` in `train_rows` has moved since then (`ConceptRows.distance`)."""
        assert self._rows is not None, "train_rows was not called"
        return self._rows.distance(row)

    def keep_rows(self) -> None:
        """Write the trained rows into the tables and end the training of `train_rows`."""
        assert self._rows is not None, "train_rows was not called"
        self._rows.fold()
        self._rows = None

    def keep_reference(self) -> None:
        if self._lora is not None or self._rows is not None:
            return  # it is the policy without its adapters, or with the rows that its tables keep
        self._reference = copy.deepcopy(self.module).requires_grad_(False)

    @contextmanager
    def reference(self) -> Iterator[None]:
        self._in_reference = True
        try:
            with self._other_weights():
                yield
        finally:
            self._in_reference = False

    def _other_weights(self) -> AbstractContextManager[None]:
        if self._lora is not None:
            return self._lora.disabled()
        return self._frozen_copy() if self._rows is None else self._rows.stored()

    @contextmanager
    def _frozen_copy(self) -> Iterator[None]:
        assert self._reference is not None, "keep_reference was not called"
        trained, self.module = self.module, self._reference
        try:
            yield
        finally:
            self.module = trained

    @contextmanager
    def sharing(self, segments: Sequence[Segment]) -> Iterator[None]:
        """Encode the images' prompts once for all steps: no text attends to an image.

        Each step's backward pass ends at the texts' keys and values, whose gradients add up. One more pass takes the
        sums through the texts' own graph. Of that only the blocks' inputs are kept for so long (see `checkpointing`).
        """
        prompts = [segment.prompt for segment in segments if segment.kind == "image"]
        if not prompts:
            yield
            return
        before, self.phi.checkpointing = self.phi.checkpointing, True
        try:
            with self._autocast():
                texts = self._texts(prompts)
        finally:
            self.phi.checkpointing = before
        self._shared = SharedTexts(prompts, texts.leaves())
        try:
            yield
            pairs = zip(texts.tensors(), self._shared.policy.tensors(), strict=True)
            given = [(tensor, leaf.grad) for tensor, leaf in pairs if tensor.requires_grad and leaf.grad is not None]
        finally:
            self._shared = None
        if given:
            ends, gradients = zip(*given, strict=True)
            torch.autograd.backward(ends, [g.to(e.dtype) for e, g in zip(ends, gradients, strict=True)])

    def _step_texts(self, prompts: Sequence[str]) -> Texts:
        if self._shared is None:
            return self._texts(prompts)
        if not self._in_reference:
            return self._shared.policy
        if self._shared.reference is None:
            self._shared.reference = self._texts(self._shared.prompts)
        return self._shared.reference

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(None, tuple(p for p in self.module.parameters() if p.requires_grad))]

    def units(self) -> list[tuple[nn.Module, tuple[nn.Module, ...]]]:
        models = [self.phi] if self._reference is None else [self.phi, _phi_of(self._reference)]
        return [(phi, tuple(phi.model.layers)) for phi in models]

    def blank(self, kind: Modality) -> Segment:
        if kind == "text":
            end = torch.tensor([self.vocab.id(END)], device=self.device)
            return TextSegment(Query(""), end, torch.zeros(1, device=self.device), "")
        (begun,) = self.start([""], [(0,)])
        codes, masked = begun.codes_TN.new_zeros(1, len(begun.remasked_N)), begun.remasked_N[None]
        drawn = replace(begun, codes_TN=codes, masked_TN=masked, remasked_N=~begun.remasked_N)
        return replace(drawn, logp_TN=torch.zeros_like(codes, dtype=torch.float32))

    def image_logp(self, prompts: Sequence[str], codes_BN: Tensor, masked_BN: Tensor, scored_BN: Tensor) -> Tensor:
        """Return guided log-probabilities [K V] of the next draw at the scored positions, given the unmasked codes."""
        with self._autocast():
            return self._guided(self._step_texts(prompts), prompts, codes_BN, masked_BN, scored_BN)

    def masked_logp(self, prompts: Sequence[str], codes_BN: Tensor, masked_BN: Tensor) -> Tensor:
        """Return unguided log-probabilities of the codes at masked positions, in row-major order.

        Show-o's objective is their negative mean, over the codes alone; `whole_vocabulary_loss` is that of its code.
        """
        hidden = self._unguided(prompts, self._image_ids(codes_BN, masked_BN))[:, 1:-1]
        return -functional.cross_entropy(self._image_logits(hidden[masked_BN]), codes_BN[masked_BN], reduction="none")

    def whole_vocabulary_loss(self, prompts: Sequence[str], codes_BN: Tensor, masked_BN: Tensor) -> Tensor:
        """Return Show-o's loss as its public code computes it: the mean cross-entropy over the whole vocabulary.

        The targets are the codes at masked positions, and `<|soi|>` and `<|eoi|>` at their own positions, whose logits
        are not read when an image is drawn.
        """
        wanted = self._image_ids(codes_BN, torch.zeros_like(masked_BN))
        counted = functional.pad(masked_BN, (1, 1), value=True)
        hidden = self._unguided(prompts, self._image_ids(codes_BN, masked_BN))
        return functional.cross_entropy(self.phi.logits(hidden[counted], 0, self.vocab.size), wanted[counted])

    def _unguided(self, prompts: Sequence[str], image_ids: Tensor) -> Tensor:
        """Return hidden states [B N + 2 D] of an image from soi to eoi, without guidance."""
        with self._autocast():
            ids, cache = self._text(prompts)
            mask = vocabulary.image_mask(ids != self.vocab.id(PAD), image_ids.shape[1])
            hidden: Tensor = self.phi(image_ids, mask, cache, self.vocab.max_text_length + 1)
        return hidden

    def _image_logprobs(self, segments: Sequence[ImageSegment], step: int) -> tuple[Tensor, Tensor, Tensor]:
        codes, masked = (torch.stack([getattr(s, name)[step] for s in segments]) for name in ("codes_TN", "masked_TN"))
        scored = self._scored(segments, step, masked)
        logp = self.image_logp([s.prompt for s in segments], codes, masked, scored)
        new = maskgit.at_positions(logp.gather(-1, codes[scored][:, None]).squeeze(-1), scored)
        return new, torch.stack([s.logp_TN[step] for s in segments]), scored

    def _scored(self, segments: Sequence[ImageSegment], step: int, masked_BN: Tensor) -> Tensor:
        if self.sampling.positions == "committed":
            masked_BTN, remasked_BN = (
                torch.stack([getattr(s, n) for s in segments]) for n in ("masked_TN", "remasked_N")
            )
            return maskgit.committed(masked_BTN, remasked_BN, step, self.sampling.denoising_steps)
        return torch.ones_like(masked_BN) if self.sampling.positions == "all" else masked_BN

    def _text_logprobs(self, segments: Sequence[TextSegment]) -> tuple[Tensor, Tensor, Tensor]:
        questions = {id(s.query): self._question(s.query) for s in segments}
        question_lengths = [len(questions[id(s.query)]) for s in segments]
        rows = [torch.cat((questions[id(s.query)], s.ids_S[:-1])) for s in segments]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.vocab.id(PAD))
        with self._autocast():
            hidden = self.phi(ids, vocabulary.question_mask(ids.shape[1], self._end_of_image, self.device))
        answers = nn.utils.rnn.pad_sequence([s.ids_S for s in segments], batch_first=True)
        old = nn.utils.rnn.pad_sequence([s.logp_S for s in segments], batch_first=True)
        lengths = torch.tensor([len(s.ids_S) for s in segments], device=self.device)
        index = torch.arange(answers.shape[1], device=self.device)
        columns = (torch.tensor(question_lengths, device=self.device)[:, None] - 1 + index).clamp(max=ids.shape[1] - 1)
        at_answers = hidden.gather(1, columns[..., None].expand(-1, -1, hidden.shape[-1]))
        new = self._text_logp(at_answers).gather(-1, answers[..., None]).squeeze(-1)
        return new, old, index < lengths[:, None]

    def activation_bytes(self, rollouts: int, *, checkpointing: bool) -> int:
        guided = self.sampling.guidance_scale > 0
        return activation_bytes(
            self.config, rollouts=rollouts, guided=guided, checkpointing=checkpointing, dtype=self.dtype
        )

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, directory: Path, *, with_vq: bool = True) -> None:
        """Write a directory that `load` reads; without its image tokenizer, `load` needs `vq`.

        The weights of adapters are merged into those of the layers, and the directory ADAPTER has them alone.
        """
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        self.vocab.base_tokenizer.save_pretrained(directory)
        write_weights(folded(state_of(self.module)) if self._lora is None else self._lora.merged(), directory)
        if self._lora is not None:
            self._lora.save(directory / ADAPTER)
        if with_vq:
            self.vq.save(directory / "vq")


def _phi_of(module: nn.Module) -> Phi:
    phi = module.showo
    assert isinstance(phi, Phi)
    return phi


def _of(kind: type[S], segments: Sequence[Segment]) -> list[S]:
    found = [segment for segment in segments if isinstance(segment, kind)]
    assert len(found) == len(segments), "segments of one kind at a time"
    return found


def _uniforms(seeds: Sequence[Seed], stream: int, shape: tuple[int, ...]) -> Tensor:
    """Return float32 [len(seeds), *shape] in (0, 1); row i follows from (seeds[i], stream)."""
    rows = [np.random.default_rng([*seed, stream]).random(shape, np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows).clip(2.0**-24, 1.0 - 2.0**-24))


def fit_to_square(image: Pixels, side: int) -> Pixels:
    """Resize and crop the centre, as in Show-o: uint8 [H W 3] -> [side side 3]."""
    height, width = image.shape[:2]
    if height == width == side:
        return image
    short = min(height, width)
    height, width = side * height // short, side * width // short
    top, left = round((height - side) / 2), round((width - side) / 2)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)[top : top + side, left : left + side].copy()


def _join(segments: Sequence[ImageSegment]) -> maskgit.State:
    assert len({s.step for s in segments}) == 1, "images at different steps"
    names = ("codes_TN", "masked_TN", "logp_TN", "remasked_N", "uniform_T2N")
    return maskgit.State(*(torch.stack([getattr(s, name) for s in segments]) for name in names))


def _split(prompts: Sequence[str], state: maskgit.State, cuts: Sequence[int]) -> list[ImageSegment]:
    columns = (state.codes_BTN, state.masked_BTN, state.logp_BTN, state.remasked_BN, state.uniform_BT2N)
    return [ImageSegment(prompt, *row) for prompt, *row in zip(prompts, *columns, cuts, strict=True)]

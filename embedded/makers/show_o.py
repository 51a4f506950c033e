"""show-o-world: supervised pre-training of a small Show-o that draws scenes and answers queries.

It sees no held-out prompt, no held-out fact and no concept of `world.UNSEEN`. The colour of an accessory is random in
every sample, so that a fact can only be read from the query, and a question may name another concept than the image
shows, so that its answer can only be read from the image. Reinforcement learning needs room for improvement: training
is short, and in a share of the textual queries the target is another of the facts, so that the policy stays uncertain.
The share is small while the policy learns to read (LEARNING_MIX) and large in a short second part (UNCERTAIN_MIX).
Neither describes images. An optional third part, which is a model of its own, does (CAPTION_MIX): asked the question of
GvU's reward, it answers with the prompt. The vocabulary lacks two words of that question, which are read as [UNK].
During training, the embedding of an image code includes the sum of its bits' vectors (`BitEmbedding`).
"""

from __future__ import annotations

import hashlib
import math
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from tqdm import tqdm

from embedded import world
from embedded.makers.dataset import Sizes, episodes
from embedded.makers.loop import MuonRecipe, Part, Recipe
from embedded.makers.prompts import fact
from embedded.makers.texts import corpus, tokenizer
from embedded.world import unify
from embedded.world.descriptions import TEMPLATES
from embedded.world.language import NUMBERS, describe, parts, plural
from embedded.world.prompts import ATTRIBUTE, attribute_prompt, dense_prompt
from embedded.world.visual_questions import MORE_WORDS, NO, RECOGNITION, YES
from trainer.policy.show_o.config import ShowOConfig
from trainer.policy.show_o.magvit import Magvit
from trainer.policy.show_o.policy import Sampling, ShowO
from trainer.policy.show_o.vocabulary import END, PAD, Vocabulary, image_mask, question_mask, text_mask
from trainer.policy.weights import read_weights
from trainer.rewards.intrinsic import QUESTION
from trainer.scenarios import textual_query

RECIPE = MuonRecipe(seed=7, steps=4600, batch=48, lr=2e-3, weight_decay=0.0, warmup=100, muon_lr=0.02, decay=1200)
UNCERTAIN_RECIPE = Recipe(seed=9, steps=200, batch=44, lr=3e-4, weight_decay=0.02)
CAPTION_RECIPE = Recipe(seed=12, steps=1500, batch=32, lr=6e-4, weight_decay=0.02)
# Weights of tokens that show an object or an accessory: the background is most of an image.
WEIGHTS = np.array([1.0, 4.0, 8.0], np.float32)
MAX_TEXT, POSITIONS = 63, 64
HEAD = POSITIONS + 3  # `<|mmu|> <|soi|> codes <|eoi|>`
QUESTIONS = 4  # about one image, in one row
DROPPED, BARE = 0.1, 0.25  # shares of images trained without text, and with the prompt but no answer
DENSE = 0.25  # share of textual queries whose prompt states the colour itself
FEW = 4  # questions about an image without an individual
INDIVIDUAL = 0.8  # share of visual questions that are about individuals
GENERIC = 0.3  # share of textual queries about "the dog" instead of a concept
BLACK = 0.08  # share of visual questions about a concept over a black image: its name alone gives the answer
TEXT_WEIGHT = 0.8
WORKERS = 2  # parts of a batch, each computed by a thread of its own
WIDTH = 192
SHAPE = {
    "hidden_size": WIDTH,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "rope_theta": 100.0,  # a sequence has about a hundred positions
}


@dataclass(frozen=True)
class BatchMix:
    """The proportions of a batch: images, textual and visual queries, and images to be described by their prompt.

    A share `wrong_share` of the textual queries has another of the facts as its target.
    """

    images: int
    textual: int
    visual: int
    wrong_share: float
    captions: int = 0

    def counts(self, batch: int) -> tuple[int, int, int, int]:
        """Return the counts for a batch of about that size, at least one of each that has a part."""
        parts = (self.images, self.textual, self.visual, self.captions)
        images, textual, visual, captions = (max(min(1, part), round(batch * part / sum(parts))) for part in parts)
        return images, textual, visual, captions


LEARNING_MIX, UNCERTAIN_MIX = BatchMix(30, 6, 12, wrong_share=0.25), BatchMix(20, 14, 10, wrong_share=0.5)
CAPTION_MIX = BatchMix(6, 2, 2, wrong_share=0.5, captions=22)  # few images, so that a weak policy draws no better


Asked = tuple[Tensor, list[tuple[str, str]]]  # an image's codes [N], and questions about it with their answers


def _row(head: Tensor, talks: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tokens of an image and of the questions about it, and for each 0 or its question's number."""
    parts = [head, *(part for question, answer in talks for part in (question, answer[:-1]))]
    numbers = [0, *(number for number in range(1, len(talks) + 1) for _ in range(2))]
    return parts, [torch.full((len(part),), number) for part, number in zip(parts, numbers, strict=True)]


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
        self.policy = new_policy(vq)
        tokens, vocab = self.policy.vq, self.policy.vocab
        self.module: nn.Module = self.policy.module
        self.tables: tuple[nn.Module, ...] = ()
        if start is None:
            self.module.apply(_initialise)
            self.tables = (self.policy.phi.model.embed_tokens, self.policy.phi.lm_head)
        else:
            read_weights(self.module, start)
        for table in self.tables:
            bits = BitEmbedding(tokens, vocab.image_offset, WIDTH)
            parametrize.register_parametrization(table, "weight", bits)
        self.data = episodes(folder, sizes)
        self.codes = _encoded(tokens, self.data["image"], folder / f"episodes-{sizes.episodes}-codes.npy")
        self.asked = np.flatnonzero([len(text["asked"]) > FEW for text in self.data["texts"]])
        self.black = tokens.encode([np.zeros((world.SIZE, world.SIZE, 3), np.uint8)])[0]

    def loss(self, rng: np.random.Generator) -> list[Part]:
        """Draw a batch and return its loss in WORKERS parts; short prompts are with long questions."""
        images, textual, visual, captions = self.mix.counts(self.recipe.batch)
        asked = [(self.black, [_textual(rng, self.mix.wrong_share)]) for _ in range(textual)]
        asked += [self._visual(rng) for _ in range(visual)]
        asked += [self._caption(rng) for _ in range(captions)]
        drawing = self._drawing(rng, images)
        return [
            partial(self._part, drawn, said) for drawn, said in zip(drawing, self._answering(asked)[::-1], strict=True)
        ]

    def context(self) -> AbstractContextManager[None]:
        """Return the context of training: plain attention, since the backward pass of the fused one is slow on a CPU.

        It is a setting of the process, not of the threads that compute the parts.
        """
        return sdpa_kernel(SDPBackend.MATH)

    def _part(self, drawn: Part, said: Part) -> Tensor:
        # Threads share autocast's cache, so that with it the roundings would depend on their timing.
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return drawn() + TEXT_WEIGHT * said()

    def _drawing(self, rng: np.random.Generator, count: int) -> list[Part]:
        """Draw images, masks and prompts; return the parts of the mean loss of masked codes, short prompts first."""
        vocab = self.policy.vocab
        rows = rng.integers(len(self.codes), size=count)
        prompts = [_prompt(self.data["texts"][row]["prompts"], rng) for row in rows]
        ratio = np.cos(0.5 * math.pi * rng.random(count))
        order = rng.random((count, POSITIONS)).argsort(-1).argsort(-1)
        masked = order < np.maximum(1, np.round(ratio * POSITIONS))[:, None]
        weight = WEIGHTS[self.data["front"][rows]].reshape(count, POSITIONS) * masked
        weight /= weight.sum()
        parts: list[Part] = []
        for half in np.array_split(np.array(sorted(range(count), key=lambda i: len(prompts[i]))), WORKERS):
            text = vocab.text_block([prompts[i] for i in half] or [""])
            codes = torch.from_numpy(self.codes[rows[half]]).long()
            parts.append(partial(self._drawn, text, codes, *map(torch.from_numpy, (masked[half], weight[half]))))
        return parts

    def _drawn(self, text: tuple[Tensor, int], codes: Tensor, masked: Tensor, weight: Tensor) -> Tensor:
        """Return the weighted sum of the losses of masked codes [B N]; `text` is that of `Vocabulary.text_block`."""
        (ids, start), vocab, phi = text, self.policy.vocab, self.policy.phi
        if not len(codes):
            return torch.zeros(())
        seen = ids != vocab.id(PAD)
        _, cache = phi.encode(ids, text_mask(ids, vocab.id(PAD)), start=start)
        image = torch.where(masked, vocab.mask_id, codes + vocab.image_offset)
        soi, eoi = (image.new_full((len(image), 1), vocab.id(token)) for token in ("<|soi|>", "<|eoi|>"))
        hidden = phi(torch.cat((soi, image, eoi), 1), image_mask(seen, POSITIONS + 2), cache, MAX_TEXT + 1)
        logits = phi.logits(hidden[:, 1:-1][masked], vocab.image_offset, vocab.mask_id)
        return (functional.cross_entropy(logits, codes[masked], reduction="none") * weight[masked]).sum()

    def _answering(self, asked: list[Asked]) -> list[Part]:
        """Return the parts of the mean loss of answers, short rows first.

        An answer's loss is the mean over its tokens: "yes." counts as much as a long description.
        """
        vocab = self.policy.vocab
        rows = []
        for codes, talks in asked:
            pairs = [(vocab.question(q, codes), torch.tensor([*vocab.encode(a), vocab.id(END)])) for q, a in talks]
            rows.append((pairs[0][0][:HEAD], [(question[HEAD:], answer) for question, answer in pairs]))
        rows.sort(key=lambda row: sum(len(question) + len(answer) for question, answer in row[1]))
        count = sum(len(talks) for _, talks in rows)
        cuts = np.array_split(np.arange(len(rows)), WORKERS)
        return [partial(self._said, [rows[i] for i in cut], count) for cut in cuts]

    def _said(self, rows: list[tuple[Tensor, list[tuple[Tensor, Tensor]]]], count: int) -> Tensor:
        """Return the sum of the losses of answers, divided by their number in the batch.

        Questions about one image are in one row. Each attends to the image and to itself, as if it was alone.
        """
        phi = self.policy.phi
        if not rows:
            return torch.zeros(())
        ids, talk = (
            nn.utils.rnn.pad_sequence([torch.cat(row) for row in column], batch_first=True)
            for column in zip(*(_row(head, talks) for head, talks in rows), strict=True)
        )
        alone = (talk[:, None, :] == 0) | (talk[:, None, :] == talk[:, :, None])
        hidden = phi(ids, question_mask(ids.shape[1], 2 + POSITIONS, ids.device) & alone[:, None])
        said, wanted, weight = [], [], []
        for states, (head, talks) in zip(hidden, rows, strict=True):
            start = len(head)
            for question, answer in talks:
                start += len(question)
                said.append(states[start - 1 : start - 1 + len(answer)])
                wanted.append(answer)
                weight.append(torch.full((len(answer),), 1 / (len(answer) * count)))
                start += len(answer) - 1
        logits = phi.logits(torch.cat(said), 0, self.policy.vocab.image_offset)
        losses = functional.cross_entropy(logits, torch.cat(wanted), reduction="none")
        return (losses * torch.cat(weight)).sum()

    def _visual(self, rng: np.random.Generator) -> Asked:
        """Draw an image and up to QUESTIONS questions about it."""
        if rng.random() < BLACK:
            profile = world.CONCEPTS[rng.integers(len(world.CONCEPTS))]
            known = world.conversations(profile)
            return self.black, [known[rng.integers(len(known))]]
        about = rng.random() < INDIVIDUAL and len(self.asked) > 0
        row = int(self.asked[rng.integers(len(self.asked))]) if about else int(rng.integers(len(self.codes)))
        asked = self.data["texts"][row]["asked"]
        chosen = rng.permutation(len(asked))[:QUESTIONS]
        return torch.from_numpy(self.codes[row]).long(), [(asked[i][0], asked[i][1]) for i in chosen]

    def _caption(self, rng: np.random.Generator) -> Asked:
        """Draw an image and ask for its description, which is its prompt without an answer."""
        row = int(rng.integers(len(self.codes)))
        return torch.from_numpy(self.codes[row]).long(), [(QUESTION, self.data["texts"][row]["prompts"][0])]

    def save(self, directory: Path) -> None:
        """Write the policy in bfloat16. `load` casts it to float32, as measured in QUALITY.md."""
        for table in self.tables:
            parametrize.remove_parametrizations(table, "weight")
        self.module.bfloat16()
        self.policy.save(directory, with_vq=False)


def new_policy(vq: Path, sampling: Sampling | None = None) -> ShowO:
    """Return a policy of SHAPE with the world's vocabulary and random weights."""
    tokens = Magvit.load(vq)
    vocab = _vocabulary(tokens.config.codebook_size)
    concepts = tuple(profile.name for profile in world.CONCEPTS)
    config = ShowOConfig(vocab.size, tokens.config.codebook_size, POSITIONS, MAX_TEXT, "", False, concepts, SHAPE)
    return ShowO(config, vocab, tokens, sampling or Sampling(guidance_scale=0.0))


def load_checkpoint(policy: ShowO, path: Path) -> int:
    """Read the weights of an unfinished training into `policy`; return the number of its steps."""
    stored = torch.load(path, weights_only=True)
    state: dict[str, Tensor] = stored["module"]
    signs = policy.vq.quantize.embedding
    for name in ("showo.model.embed_tokens", "showo.lm_head"):
        if f"{name}.weight" not in state:
            table = state.pop(f"{name}.parametrizations.weight.original")
            vectors = state.pop(f"{name}.parametrizations.weight.0.vectors")
            table[policy.vocab.image_offset : policy.vocab.mask_id] += signs @ vectors
            state[f"{name}.weight"] = table
    policy.module.load_state_dict(state)
    policy.module.eval()
    return int(stored["step"])


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


def _textual(rng: np.random.Generator, wrong_share: float) -> tuple[str, str]:
    """Return a query with four facts of random colours and a prompt for one of them, and its target."""
    profile = world.CONCEPTS[rng.integers(len(world.CONCEPTS))]
    held = {(f.accessory, f.color) for f in profile.attributes if f.heldout}
    while True:
        names = [world.ACCESSORIES[i] for i in rng.choice(len(world.ACCESSORIES), 4, replace=False)]
        colors = [tuple(world.COLORS)[i] for i in rng.choice(len(world.COLORS), 4, replace=False)]
        if not held & set(zip(names, colors, strict=True)):
            break
    if rng.random() < GENERIC:
        profile = replace(profile, name=f"the {profile.class_word}")
    facts = [fact(profile, *pair) for pair in zip(names, colors, strict=True)]
    worn = (names[0], colors[0])
    if rng.random() < DENSE:
        noun = world.COLORED[rng.integers(len(world.COLORED))]
        companion = (tuple(world.COLORS)[rng.integers(len(world.COLORS))], noun)
        prompt = dense_prompt(profile, worn, companion, world.PLACES[rng.integers(len(world.PLACES))], "train").text
        prompt = world.with_commas(prompt) if rng.random() < 0.5 else prompt
    else:
        prompt = attribute_prompt(ATTRIBUTE[rng.integers(len(ATTRIBUTE))], profile, worn, "train").text
    target = facts[int(rng.integers(1, 4)) if rng.random() < wrong_share else 0]
    return textual_query([facts[i] for i in rng.permutation(4)], prompt), target


def texts() -> list[str]:
    """Return texts with every word that the policy reads or says."""
    texts = [text for profile in world.CONCEPTS for pair in world.conversations(profile) for text in pair]
    texts += [MORE_WORDS, YES, NO, *RECOGNITION, *TEMPLATES, "USER: ASSISTANT:", "what does it wear or hold?"]
    rng = np.random.default_rng(31)
    for profile in world.CONCEPTS * 20:  # random looks have words that no concept needs
        looks = replace(profile, identity=world.random_identity(profile.class_word, rng))
        texts += [describe(looks.identity), *parts(looks.identity)]
    texts += [describe(world.random_identity(name, rng)) for name in world.CLASSES * 40]
    for name in ("dog", "person", "cup"):
        scene = world.individual_scene(
            replace(world.CONCEPTS[0], name="<any>", class_word=name, identity=world.random_identity(name, rng)),
            rng,
            (("hat", "red"),),
        )
        texts += [text for pair in world.questions(world.render(scene, rng), rng) for text in pair]
    names = re.compile("|".join(profile.name for profile in world.UNSEEN))
    texts += [names.sub("it", text) for text in unify.texts()]
    texts += [f"how many {name} are there? {word}" for name in map(plural, world.CLASSES) for word in NUMBERS.values()]
    return texts


def _vocabulary(codes: int) -> Vocabulary:
    words = tokenizer([*corpus(), *texts()], MAX_TEXT)
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

"""language-world: a tiny Qwen2.5-VL that describes images, answers questions, refines prompts and judges images.

Its image encoder learns first what is where, from the world's ground truth. The language learns to read images from
lists of everything in them: short answers alone, of which few words depend on the image, teach it little. A refined
prompt says where everything is, in words that sana-world was trained on; so does the feedback to a wrong image. Both
are in UniRL-Zero's format of replies, so that reinforcement learning starts from it (its appendix A.4). In the end the
words "yes" and "no" count more: among all the words of answers they are too few to be learned.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, processors
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from embedded import world
from embedded.makers.dataset import COLOR_NAMES, FINE_LABELS, Sizes
from embedded.makers.drawings import all_texts, drawings
from embedded.makers.loop import MuonRecipe, Recipe
from embedded.makers.texts import tokenizer
from trainer.rewards.intrinsic import QUESTION
from trainer.settings.data import REFLECT

SIGHT_RECIPE = Recipe(seed=25, steps=1500, batch=48, lr=2e-3)
RECIPE = MuonRecipe(seed=23, steps=2000, batch=32, lr=1e-3, warmup=100, decay=500)
VERDICT_RECIPE = MuonRecipe(seed=27, steps=650, batch=32, lr=5e-4, warmup=50, decay=250)
MAX_TEXT = 256  # tokens, with those of an image
LOCATE: Final = "Where is everything?"
REFINE: Final = 'Say where everything is in "{prompt}".'
YES, NO, REFINED = "<answer>yes</answer>", "<answer>no</answer> {words}", "<answer>{words}</answer>"
BACKGROUND: Final = 0.2  # weight of patches that show no object
DECISIVE: Final = 16.0  # weight of "yes" and "no" in the end
WRONG: Final = 0.5  # share of judged images that show another prompt
TAGS = ("<answer>", "</answer>")
END, PAD = "<|im_end|>", "<|endoftext|>"
SPECIAL = (PAD, "<|im_start|>", END, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }} {% for part in message['content'] %}\
{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"""
WIDTH, LAYERS, PATCH, MERGED = 160, 6, 8, 2
Talk = tuple[int | None, str, str]  # an image's row, a question about it, and its answer


class SightMaker:
    """Train the image encoder alone: from each token the main class and the colour of its 2 x 2 patches are read."""

    def __init__(self, recipe: Recipe, folder: Path, sizes: Sizes) -> None:
        self.recipe = recipe
        self.data = drawings(folder, sizes)
        self.processor = new_processor()
        self.model = Qwen2_5_VLForConditionalGeneration(_config(self.processor.tokenizer))
        self.reader = nn.Linear(WIDTH, MERGED * MERGED * (len(FINE_LABELS) + 1 + len(COLOR_NAMES)))
        self.module: nn.Module = nn.ModuleDict({"visual": self.model.model.visual, "reader": self.reader})

    def loss(self, rng: np.random.Generator) -> Tensor:
        rows = rng.integers(len(self.data["image"]), size=self.recipe.batch)
        images = [Image.fromarray(self.data["image"][row]) for row in rows]
        inputs = self.processor.image_processor(images, return_tensors="pt")
        seen = self.model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        read = self.reader(seen).unflatten(-1, (MERGED * MERGED, -1)).flatten(0, 1)
        kind, color = read.split((len(FINE_LABELS), 1 + len(COLOR_NAMES)), -1)
        patch, tint = (torch.from_numpy(by_token(self.data[name][rows])).flatten() for name in ("patch", "tint"))
        return weighted(kind, patch.long()) + weighted(color, tint.long())

    def save(self, directory: Path) -> None:
        """Write the model, whose language part is untrained, and its processor."""
        self.model.save_pretrained(directory)
        self.processor.save_pretrained(directory)


def weighted(logits_nc: Tensor, target_n: Tensor) -> Tensor:
    """Return the cross-entropy, in which the background, class 0, counts less."""
    weight_c = torch.ones(logits_nc.shape[-1])
    weight_c[0] = BACKGROUND
    return functional.cross_entropy(logits_nc, target_n, weight_c)


def by_token(map_bhw: np.ndarray) -> np.ndarray:
    """Return a map of patches [B 8 8] in the order of the encoder's tokens, [B 16 4]: each has 2 x 2 patches."""
    b, h, w = map_bhw.shape
    blocks = map_bhw.reshape(b, h // MERGED, MERGED, w // MERGED, MERGED).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(blocks).reshape(b, -1, MERGED * MERGED)


class LanguageMaker:
    """Train the next-token loss, the mean over all tokens of a batch's answers; `sight` has the image encoder."""

    def __init__(self, recipe: Recipe, folder: Path, sizes: Sizes, sight: Path) -> None:
        self.recipe = recipe
        self.data = drawings(folder, sizes)
        self.texts: list[dict[str, Any]] = self.data["texts"]
        self.processor = new_processor()
        self.model = Qwen2_5_VLForConditionalGeneration(_config(self.processor.tokenizer))
        trained = Qwen2_5_VLForConditionalGeneration.from_pretrained(sight, torch_dtype=torch.float32)
        self.model.model.visual.load_state_dict(trained.model.visual.state_dict())
        self.module: nn.Module = self.model
        self.weight_v = torch.ones(len(self.processor.tokenizer))
        self.tasks: tuple[Callable[[np.random.Generator], Talk], ...] = (
            *(self.locate, self.ask, self.judge, self.refine),
            *(self.locate, self.ask, self.judge, self.describe),
        )

    def loss(self, rng: np.random.Generator) -> Tensor:
        talks = [self.tasks[i % len(self.tasks)](rng) for i in range(self.recipe.batch)]
        return self.loss_of(talks)

    def loss_of(self, talks: list[Talk]) -> Tensor:
        """Return the mean loss of the answers' tokens by their weights."""
        answers = [self.processor.tokenizer(f"{answer}{END}").input_ids for _, _, answer in talks]
        images = [Image.fromarray(self.data["image"][row]) for row, _, _ in talks if row is not None]
        inputs = self.processor(
            text=[self._asked(row is not None, question) + answer + END for row, question, answer in talks],
            images=images or None,
            padding=True,
            return_tensors="pt",
        )
        logits = self.model(**inputs, use_cache=False).logits
        spans = []
        for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
            end, count = int(mask.sum()), len(answers[row])
            spans.append((logits[row, end - count - 1 : end - 1], ids[end - count : end]))
        predicted, wanted = zip(*spans, strict=True)
        return functional.cross_entropy(torch.cat(predicted), torch.cat(wanted), self.weight_v)

    def _asked(self, with_image: bool, question: str) -> str:
        image = [{"type": "image"}] if with_image else []
        message = {"role": "user", "content": [*image, {"type": "text", "text": question}]}
        return str(self.processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False))

    def describe(self, rng: np.random.Generator) -> Talk:
        """Ask for the prompt of an image, as the intrinsic reward does."""
        row = self._row(rng)
        return row, QUESTION, self.texts[row]["prompt"]

    def locate(self, rng: np.random.Generator) -> Talk:
        """Ask what is where in an image."""
        row = self._row(rng)
        return row, LOCATE, world.in_reading_order(self.texts[row]["words"])

    def ask(self, rng: np.random.Generator) -> Talk:
        """Ask a question about an image."""
        row = self._row(rng)
        asked = self.texts[row]["asked"]
        question, answer = asked[rng.integers(len(asked))]
        return row, question, answer

    def refine(self, rng: np.random.Generator) -> Talk:
        """Ask where the things of a prompt are; no image is shown."""
        record = self.texts[self._row(rng)]
        return None, REFINE.format(prompt=record["prompt"]), REFINED.format(words=record["words"])

    def judge(self, rng: np.random.Generator) -> Talk:
        """Ask whether an image shows a prompt; the feedback to another image is where everything has to be."""
        row, other = self._row(rng), self._row(rng)
        shown, record = self.texts[row], self.texts[other]
        if rng.random() >= WRONG or shown["prompt"] == record["prompt"]:
            return row, REFLECT.format(prompt=shown["prompt"]), YES
        return row, REFLECT.format(prompt=record["prompt"]), NO.format(words=record["words"])

    def _row(self, rng: np.random.Generator) -> int:
        return int(rng.integers(len(self.texts)))

    def save(self, directory: Path) -> None:
        """Write the model in bfloat16, its processor and its generation settings."""
        self.model.bfloat16().save_pretrained(directory)
        GenerationConfig(eos_token_id=self.processor.tokenizer.eos_token_id).save_pretrained(directory)
        self.processor.save_pretrained(directory)


class VerdictMaker(LanguageMaker):
    """Train a whole model, `start`, on more questions, with DECISIVE as the weight of "yes" and "no"."""

    def __init__(self, recipe: Recipe, folder: Path, sizes: Sizes, start: Path) -> None:
        super().__init__(recipe, folder, sizes, start)
        trained = Qwen2_5_VLForConditionalGeneration.from_pretrained(start, torch_dtype=torch.float32)
        self.model.load_state_dict(trained.state_dict())
        self.weight_v[self.processor.tokenizer.convert_tokens_to_ids(["yes", "no"])] = DECISIVE
        self.tasks = (
            *(self.ask, self.judge, self.locate, self.ask),
            *(self.judge, self.refine, self.ask, self.describe),
        )


def new_processor() -> Qwen2_5_VLProcessor:
    """Return a processor of 64 px images, which are 16 tokens, and of every word of a question or an answer."""
    words = _tokenizer()
    sizes: dict[str, Any] = {
        "patch_size": PATCH,
        "merge_size": MERGED,
        "size": {"shortest_edge": 4096, "longest_edge": 4096},
    }
    images, videos = Qwen2VLImageProcessor(**sizes), Qwen2VLVideoProcessor(**sizes)
    return Qwen2_5_VLProcessor(images, words, videos, chat_template=TEMPLATE)


def _tokenizer() -> PreTrainedTokenizerFast:
    questions = [
        text.format(prompt="a photo") for text in (QUESTION, LOCATE, REFINE, REFLECT, YES, NO.format(words=""))
    ]
    words = tokenizer([*all_texts(), *questions, "user assistant"], MAX_TEXT)
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    words.add_special_tokens({"additional_special_tokens": list(SPECIAL), "eos_token": END, "pad_token": PAD})
    words.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])  # they are part of an answer
    words.clean_up_tokenization_spaces = True
    words.padding_side = "right"
    return words


def _config(words: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    ids = {f"{name}_id": words.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": WIDTH,
            "intermediate_size": 3 * WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "max_position_embeddings": MAX_TEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": words.eos_token_id,
            "pad_token_id": words.pad_token_id,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 3,
            "patch_size": PATCH,
            "spatial_merge_size": MERGED,
            "out_hidden_size": WIDTH,
            "window_size": 64,
            "fullatt_block_indexes": [2],
        },
        tie_word_embeddings=True,
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=ids["vision_start_id"],
        vision_end_token_id=ids["vision_end_id"],
    )

"""HPSv3 from its published file `HPSv3.safetensors`, on transformers' Qwen2-VL.

Qwen2-VL-7B reads the image and an instruction that quotes the prompt and ends with the special token `<|Reward|>`. A
head (D-1024-16-2, ReLU between) on that token's last hidden state gives mu and the logarithm of sigma; mu is the score.

Ma et al. 2025, "HPSv3: Towards Wide-Spectrum Human Preference Score"; instruction, pooling, file and tensor names of
the repository MizzenAI/HPSv3 (MIT). The published forward pass gives the language model embeddings and no position
ids, so positions count 0, 1, 2, .. over image and text alike: not Qwen2-VL's three-dimensional ones.

Shapes: N images and prompts, T tokens of the longest sequence (padded on the right), D width of the language model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoProcessor, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from services.models import weights
from services.models.cache import Device, frozen, shared
from synod import hub
from synod.contracts import Pixels
from synod.errors import InvalidItem, SettingsError

WEIGHTS_FILE: Final = "HPSv3.safetensors"
REWARD_TOKEN: Final = "<|Reward|>"
IMAGE_TOKENS: Final = 256  # every image is resized to about this many: 256 * 28 * 28 pixels
MAX_RATIO: Final = 200  # of an image's sides, by the published preparation
INSTRUCTION: Final = (  # verbatim, white space included: the model was trained on it
    "\nYou are tasked with evaluating a generated image based on Visual Quality and Text Alignment and give a overall "
    "score to estimate the human preference. Please provide a rating from 0 to 10, with 0 being the worst and 10 being "
    "the best. \n\n**Visual Quality:**  \nEvaluate the overall visual quality of the image. The following "
    "sub-dimensions should be considered:\n- **Reasonableness:** The image should not contain any significant "
    "biological or logical errors, such as abnormal body structures or nonsensical environmental setups.\n- "
    "**Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and easy to interpret, "
    "with no blurring or indistinct areas.\n- **Detail Richness:** Consider the level of detail in textures, "
    "materials, lighting, and other visual elements (e.g., hair, clothing, shadows).\n- **Aesthetic and Creativity:** "
    "Assess the artistic aspects of the image, including the color scheme, composition, atmosphere, depth of field, "
    "and the overall creative appeal. The scene should convey a sense of harmony and balance.\n- **Safety:** The image "
    "should not contain harmful or inappropriate content, such as political, violent, or adult material. If such "
    "content is present, the image quality and satisfaction score should be the lowest possible. \n\n**Text "
    "Alignment:**  \nAssess how well the image matches the textual prompt across the following sub-dimensions:\n- "
    "**Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, animal, object) align "
    "with the textual description. The subject should match the description in terms of number, appearance, and "
    "behavior.\n- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how "
    "well the image adheres to this style.\n- **Contextual Consistency**: Assess whether the background, setting, and "
    "surrounding elements in the image logically fit the scenario described in the prompt. The environment should "
    "support and enhance the subject without contradictions.\n- **Attribute Fidelity**: Check if specific attributes "
    "mentioned in the prompt (e.g., colors, clothing, accessories, expressions, actions) are faithfully represented in "
    "the image. Minor deviations may be acceptable, but critical attributes should be preserved.\n- **Semantic "
    "Coherence**: Evaluate whether the overall meaning and intent of the prompt are captured in the image. The "
    "generated content should not introduce elements that conflict with or distort the original description.\nTextual "
    "prompt - {text_prompt}\n\n\n"
    f"\nPlease provide the overall ratings of this image: {REWARD_TOKEN}\n\nEND\n"
)
_PROMPT_MARK: Final = "{text_prompt}"
_UNUSED: Final = "lm_head.weight"
_HEAD: Final = "rm_head."


class Hpsv3:
    """The language and vision models in the device's dtype; the head in float32, as published."""

    def __init__(self, folder: Path, base: str, device: Device) -> None:
        file, files = folder / WEIGHTS_FILE, hub.resolve(base, configs_only=True)
        state = weights.read(weights.file(str(file)))
        processor: Any = AutoProcessor.from_pretrained(files)
        self._images, self._tokenizer = processor.image_processor, processor.tokenizer
        self._tokenizer.add_special_tokens({"additional_special_tokens": [REWARD_TOKEN]})
        self._reward_id: int = self._tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        tower, head = build(state, files, file, device)
        self._model: Any = frozen(tower, device, "visual", "language_model")
        self._head: Any = frozen(head, device.name)
        self._image_id: int = self._model.config.image_token_id
        self._window: int = self._model.config.text_config.max_position_embeddings
        self._before, self._after = self._form(processor)

    @torch.inference_mode()
    def rewards(self, images: Sequence[Pixels], texts: Sequence[str]) -> NDArray[np.float32]:
        """Return [N 2]: mu and log(sigma) of image i for text i.

        Raises InvalidItem for a text beyond the window, and for an image whose sides differ by more than 1 to 200.
        """
        batch = self._images(
            images=[self._resized(image) for image in images], do_resize=False, return_tensors="pt"
        ).to(self._model.device)
        grids = batch["image_grid_thw"]
        counts = (grids.prod(dim=1) // self._images.merge_size**2).tolist()
        rows = [self._ids(text, count) for text, count in zip(texts, counts, strict=True)]
        pad = self._tokenizer.pad_token_id
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=grids.device)  # [N T]
        read = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=grids.device)
        embeddings = self._model.get_input_embeddings()(ids)  # [N T D]
        seen = torch.cat(self._model.get_image_features(batch["pixel_values"], grids).pooler_output)
        embeddings = embeddings.masked_scatter((ids == self._image_id)[..., None], seen.to(embeddings.dtype))
        hidden = self._model.language_model(
            inputs_embeds=embeddings, attention_mask=read, use_cache=False
        ).last_hidden_state
        found: NDArray[np.float32] = self._head(hidden[ids == self._reward_id].float()).cpu().numpy()
        return found

    def _resized(self, image: Pixels) -> Image.Image:
        """Resize to `IMAGE_TOKENS` tokens, sides in multiples of a token's, bicubic."""
        height, width, _ = image.shape
        if max(height, width) > MAX_RATIO * min(height, width):
            raise InvalidItem(
                f"the image is {width} x {height}: hpsv3 reads sides of at most 1 to {MAX_RATIO}; crop or resize it"
            )
        side = self._images.patch_size * self._images.merge_size
        pixels = IMAGE_TOKENS * side**2
        height, width = smart_resize(height, width, factor=side, min_pixels=pixels, max_pixels=pixels)
        return Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)

    def _ids(self, text: str, image_tokens: int) -> list[int]:
        """Control tokens in `text` are text."""
        (start, before), (after, end) = self._before, self._after
        ids = [*start, *self._words(before + text + after), *end]
        place = ids.index(self._image_id)
        ids[place : place + 1] = [self._image_id] * image_tokens
        if len(ids) > self._window:
            reason = f"{len(ids)} tokens of instruction, image and prompt; the model reads {self._window}"
            raise InvalidItem(f"{reason}; shorten the prompt")
        return ids

    def _words(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def _form(self, processor: Any) -> tuple[tuple[list[int], str], tuple[str, list[int]]]:
        """Return the chat form around a prompt: (tokens, text just before it), (text just after it, tokens).

        The tokenizer splits at control tokens before anything else; so it gives the same tokens when only the run of
        text that holds the prompt is read apart from the rest."""
        content = [{"type": "image"}, {"type": "text", "text": INSTRUCTION}]
        whole: str = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        before, after = whole.split(_PROMPT_MARK)
        control = re.compile("|".join(map(re.escape, self._tokenizer.get_added_vocab())))
        start = max((found.end() for found in control.finditer(before)), default=0)
        found = control.search(after)
        end = found.start() if found else len(after)
        first, last = self._tokenizer([before[:start], after[end:]], add_special_tokens=False)["input_ids"]
        return (first, before[start:]), (after[:end], last)


def our_name(published: str) -> str:
    """Return the name in Qwen2VLModel of a tensor of the file, in transformers 4.45's layout or a later one."""
    if published.startswith("visual."):
        return published
    name = published.removeprefix("model.")
    return name if name.startswith(("visual.", "language_model.")) else f"language_model.{name}"


def build(state: Mapping[str, torch.Tensor], base: Path, where: Path, device: Device) -> tuple[Any, nn.Module]:
    """Build the tower and the head from the tensors `state` of the file `where`. Raises SettingsError.

    Sizes come from `base`'s configuration; the vocabulary's comes from the file, to which a special token was added.
    """
    tower = {our_name(key): value for key, value in state.items() if key != _UNUSED and not key.startswith(_HEAD)}
    head_state = {key.removeprefix(_HEAD): value for key, value in state.items() if key.startswith(_HEAD)}
    config = AutoConfig.from_pretrained(base)
    if config.model_type != "qwen2_vl":
        raise SettingsError(f"{base}: base is a '{config.model_type}'; give Qwen2-VL's configuration and processor")
    embedded = "language_model.embed_tokens.weight"
    if embedded not in tower:
        raise SettingsError(f"{where}: no '{embedded}'; give the published {WEIGHTS_FILE}")
    config.text_config.vocab_size = len(tower[embedded])
    dtype = getattr(torch, device.dtype)
    model, info = Qwen2VLModel.from_pretrained(
        None, config=config, state_dict=tower, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    weights.check_complete(where, info)
    width = config.text_config.hidden_size
    head = nn.Sequential(
        *(nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05)),
        *(nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)),
    )
    weights.load_into(head, head_state, where)
    return model, head


def load(source: str, base: str, device: Device) -> Hpsv3:
    """Return the model of a directory or hub id with `HPSv3.safetensors`, shared per process.

    `base` has Qwen2-VL's configuration, processor and tokenizer. Raises SettingsError for files that are missing or of
    another model.
    """
    return shared(f"hpsv3 {base}", source, device, lambda folder: Hpsv3(folder, base, device))

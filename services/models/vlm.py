"""A text's log-probability given an image, under any model that AutoModelForImageTextToText loads (Qwen2.5-VL, LLaVA).

Shapes: N images and texts, P tokens of the longest prefix (image and question, padded on the left), T of the
longest text (padded on the right), V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from services.models import pretrained
from services.models.cache import Device, shared
from services.models.tokens import TextTokenizer
from synod.contracts import Pixels
from synod.errors import InvalidItem


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """A text's tokens as the tokenizer spells them, and the natural log of each one's probability after those."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]


class Vlm:
    """Reads an image and a question in the model's own chat form; the text is what the assistant would answer."""

    def __init__(self, folder: Path, device: Device | str) -> None:
        self._processor: Any = AutoProcessor.from_pretrained(folder)
        if not self._processor.chat_template:
            raise ValueError(f"{folder}: no chat template; give the instruction-tuned model, whose processor has one")
        self._tokenizer = TextTokenizer(self._processor.tokenizer)
        self._model: Any = pretrained.load(AutoModelForImageTextToText, folder, device, heads=True)
        self._window: int = self._model.config.get_text_config().max_position_embeddings

    @torch.inference_mode()
    def log_probs(self, images: Sequence[Pixels], texts: Sequence[str], question: str) -> list[TokenLogProbs]:
        """Run one teacher-forced pass over all N. Raises InvalidItem for a text beyond the window."""
        inputs = self._prefixes(images, question)
        answers: list[list[int]] = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        for text, answer, read in zip(texts, answers, inputs["attention_mask"].sum(dim=1).tolist(), strict=True):
            if not answer:
                raise InvalidItem(f"the tokenizer makes no token of {text[:60]!r}; give a prompt in its language")
            if read + len(answer) > self._window:
                reason = f"{read} tokens of image and question, {len(answer)} of text: the model reads {self._window}"
                raise InvalidItem(f"{reason}; shorten the text or send a smaller image")
        longest = max(map(len, answers))
        self._append(inputs, answers, longest)
        logits = self._model(**inputs, logits_to_keep=longest + 1, use_cache=False).logits[:, :-1].float()  # [N T V]
        targets = inputs["input_ids"][:, -longest:]  # [N T]
        found = logits.log_softmax(dim=-1).gather(-1, targets[..., None])[..., 0].cpu()
        return [
            TokenLogProbs(tuple(self._tokenizer.convert_ids_to_tokens(answer)), tuple(row[: len(answer)].tolist()))
            for answer, row in zip(answers, found, strict=True)
        ]

    def _prefixes(self, images: Sequence[Pixels], question: str) -> dict[str, torch.Tensor]:
        asked = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
            for image in map(Image.fromarray, images)
        ]
        inputs = self._processor.apply_chat_template(
            asked,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        inputs = inputs.to(self._model.device)
        return {k: v.to(self._model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}

    def _append(self, inputs: dict[str, torch.Tensor], answers: Sequence[Sequence[int]], longest: int) -> None:
        """Append the answers to the prefixes, in all inputs that have an entry a token: [N P] -> [N P+T]."""
        shape = inputs["input_ids"].shape
        pad: int = self._tokenizer.pad_token_id
        ids = torch.tensor([[*answer, *[pad] * (longest - len(answer))] for answer in answers])
        read = torch.tensor([[1] * len(answer) + [0] * (longest - len(answer)) for answer in answers])
        tails = {"input_ids": ids, "attention_mask": read}
        for name, values in inputs.items():
            if values.shape == shape:  # others, as mm_token_type_ids, mark image tokens: 0 is text
                tail = tails.get(name, torch.zeros_like(ids)).to(values)
                inputs[name] = torch.cat([values, tail], dim=1)


def load(source: str, device: Device | str) -> Vlm:
    """Return the model of a model directory or hub id, shared per process."""
    return shared("vlm", source, device, lambda folder: Vlm(folder, device))

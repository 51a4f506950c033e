"""A language model next to a flow-matching pipeline: it answers queries, and its answers become part of the prompt.

Any directory or hub id that AutoModelForImageTextToText reads, such as Qwen2.5-VL. Answers are sampled at temperature
1 over all tokens but those that stand for images. Control tokens within a query or an answer are read as text. Images
are shrunk to LONGEST_SIDE.
Suffixes: B answers, S their tokens, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn

from synod.contracts import Pixels
from synod.errors import SettingsError
from trainer.policy.base import TextSegment, TokenLogp
from trainer.policy.flow.texts import as_text, control_tokens
from trainer.policy.weights import directory_of
from trainer.types import Query

LONGEST_SIDE: Final = 672  # pixels of an image, as UniRL-Zero gives a source to its language model
_IMAGE_TOKENS = ("image_token_id", "video_token_id", "image_token_index")  # in the configurations of transformers


class Language:
    """A vision-language model with its processor; `max_new_tokens` is the longest answer.

    `source` is the directory or hub id that the model was read from. `model` is passed to every method, because the
    policy and its reference are two.
    """

    def __init__(self, processor: Any, config: Any, generation: Any, max_new_tokens: int, source: str) -> None:
        self.processor, self.generation, self.max_new_tokens = processor, generation, max_new_tokens
        self.source = source
        images = (getattr(processor, name, None) for name in ("image_token", "video_token"))
        self._control = control_tokens([processor.tokenizer], [one for one in images if one])
        given = (getattr(config, name, None) for name in _IMAGE_TOKENS)
        self._unspoken = sorted({one for one in given if one is not None})
        ends = generation.eos_token_id
        self._ends = [ends] if isinstance(ends, int) else list(ends or [processor.tokenizer.eos_token_id])

    @torch.no_grad()
    def sample(self, model: Any, query: Query, uniform_BS: Tensor) -> list[TextSegment]:
        """Sample B answers to one query; answer i follows from row i of the uniform numbers in (0, 1)."""
        from transformers import GenerationConfig

        drawing = _Drawing(uniform_BS.to(model.device), self)
        plain = GenerationConfig(
            max_new_tokens=uniform_BS.shape[1],
            do_sample=True,  # of one token that is left
            num_return_sequences=len(uniform_BS),
            eos_token_id=self._ends,
            pad_token_id=self._ends[0],
        )
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # its own draws, of one token, must not move other random numbers
            model.generate(**self._ask(model, query), generation_config=plain, logits_processor=[drawing])
        rows = zip(torch.stack(drawing.ids, 1), torch.stack(drawing.logps, 1), strict=True)
        return [self._answer(query, ids, logp) for ids, logp in rows]

    def logprobs(self, model: Any, segments: Sequence[TextSegment]) -> tuple[Tensor, Tensor, Tensor]:
        """Return (new_BS, old_BS, mask_BS) of answers to one query, by one pass over all of their tokens."""
        query = segments[0].query
        assert all(one.query is query for one in segments), "answers to different queries"
        ids = nn.utils.rnn.pad_sequence([one.ids_S for one in segments], batch_first=True, padding_value=self._ends[0])
        old = nn.utils.rnn.pad_sequence([one.logp_S for one in segments], batch_first=True)
        lengths = torch.tensor([len(one.ids_S) for one in segments], device=ids.device)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        logits = self._read(model, query, ids, mask)
        return self.logp(logits).gather(-1, ids[..., None])[..., 0], old, mask

    def token_logp(self, model: Any, query: Query, answer: str) -> TokenLogp:
        """Return how likely each token of a given answer is, among all tokens.

        It is the softmax of GvU, where `logp` leaves out tokens that stand for images, because they are never sampled.
        """
        tokenizer = self.processor.tokenizer
        found = tokenizer(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if not found:
            return TokenLogp((), ())
        ids = torch.tensor([found], device=model.device)
        logits = self._read(model, query, ids, torch.ones_like(ids, dtype=torch.bool))
        logp = logits.float().log_softmax(-1).gather(-1, ids[..., None])[0, :, 0]
        return TokenLogp(tuple(tokenizer.convert_ids_to_tokens(found)), tuple(logp.tolist()))

    def _read(self, model: Any, query: Query, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the logits [B S V] of each token of answers [B S] to one query, by one pass."""
        inputs = self._ask(model, query)
        read = inputs["input_ids"].shape
        tails = {"input_ids": ids, "attention_mask": mask.long()}
        for name, values in inputs.items():
            rows = values.repeat(len(ids), *[1] * (values.dim() - 1))
            if values.shape == read:  # an entry for each token; others mark image tokens, and 0 is text
                rows = torch.cat((rows, tails.get(name, torch.zeros_like(ids)).to(rows)), 1)
            inputs[name] = rows
        with recomputing(model):
            logits: Tensor = model(**inputs, logits_to_keep=ids.shape[1] + 1, use_cache=False).logits
        return logits[:, :-1]

    def logp(self, logits: Tensor) -> Tensor:
        """Return log-probabilities [... V] in float32; tokens that stand for images have none."""
        logits = logits.float()
        if self._unspoken:
            logits = logits.index_fill(-1, torch.tensor(self._unspoken, device=logits.device), -torch.inf)
        return logits.log_softmax(-1)

    def embed(self, model: Any, prompt: str) -> tuple[nn.Module, Tensor]:
        """Return the decoder, and what it reads of a prompt to draw, embedded [1 L W]."""
        ids = self._ask(model, Query(prompt))["input_ids"]
        return model.get_decoder(), model.get_input_embeddings()(ids)

    def blank(self, device: torch.device) -> TextSegment:
        """Return the shortest answer."""
        return TextSegment(Query(""), torch.tensor(self._ends[:1], device=device), torch.zeros(1, device=device), "")

    def save(self, model: Any, state: dict[str, Tensor], directory: Path) -> None:
        """Write a directory that `load` reads, with these weights."""
        model.save_pretrained(directory, state_dict=state)
        self.generation.save_pretrained(directory)
        self.processor.save_pretrained(directory)

    def _ask(self, model: Any, query: Query) -> dict[str, Tensor]:
        image = [] if query.image is None else [{"type": "image", "image": _shrunk(query.image)}]
        text = as_text(query.text, self._control)
        inputs = self.processor.apply_chat_template(
            [[{"role": "user", "content": [*image, {"type": "text", "text": text}]}]],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        return {name: values.to(model.device) for name, values in inputs.items()}

    def _answer(self, query: Query, ids_S: Tensor, logp_S: Tensor) -> TextSegment:
        ends = torch.isin(ids_S, torch.tensor(self._ends, device=ids_S.device)).nonzero()
        length = int(ends[0]) + 1 if len(ends) else len(ids_S)
        text = self.processor.tokenizer.decode(ids_S[:length], skip_special_tokens=True)
        return TextSegment(query, ids_S[:length], logp_S[:length], text)


def _shrunk(image: Pixels) -> Image.Image:
    """Return the image with no side longer than LONGEST_SIDE and its proportions kept; a smaller one as it is."""
    found = Image.fromarray(image)
    found.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return found


class _Drawing:
    """A logits processor of transformers that draws each token by our own random numbers, and leaves no other."""

    def __init__(self, uniform_BS: Tensor, language: Language) -> None:
        self._uniform, self._language = uniform_BS.double(), language
        self.ids: list[Tensor] = []
        self.logps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logp = self._language.logp(scores)
        below = logp.double().exp().cumsum(-1)
        drawn = torch.searchsorted(below, self._uniform[:, len(self.ids), None] * below[:, -1:])[:, 0]
        self.ids.append(drawn)
        self.logps.append(logp.gather(-1, drawn[:, None])[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(1, drawn[:, None], 0.0)


@contextmanager
def recomputing(model: Any) -> Iterator[None]:
    """Let the layers of a model with checkpointing compute their activations twice in a pass that has a gradient.

    transformers has them do so while they train. The modules inside a layer stay as they are: without dropout.
    """
    layers = [one for one in model.modules() if getattr(one, "gradient_checkpointing", False)]
    for layer in layers:
        layer.training = torch.is_grad_enabled()
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


def load(source: str | Path, max_new_tokens: int, *, checkpointing: bool = False) -> tuple[nn.Module, Language]:
    """Read a vision-language model, with float32 weights, and its processor.

    With `checkpointing`, the activations of each layer are computed twice rather than kept for the backward pass.
    Raises SettingsError for files that are missing, cannot be read or have no chat template.
    """
    from transformers import GenerationConfig

    processor, model = _read_parts(source)
    language = Language(processor, model.config, model.generation_config, max_new_tokens, str(source))
    if checkpointing:
        model.activation_checkpointing_enable()
    model.generation_config = GenerationConfig()  # its own may change what is sampled, as a repetition penalty does
    return model.eval(), language


def check(source: str | Path) -> None:
    """Check what `load` checks, and keep no weights; downloads what is missing. Raises SettingsError."""
    _read_parts(source, device_map="meta")


def _read_parts(source: str | Path, **options: Any) -> tuple[Any, Any]:
    """Return the processor and the model; `options` are those of the model's `from_pretrained`."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    directory = directory_of(source, what="language model")
    with _reading(source):
        processor = AutoProcessor.from_pretrained(directory, local_files_only=True)
    if not getattr(processor, "chat_template", None):
        raise SettingsError(f"language model '{source}' has no chat template; give an instruction-tuned model")
    with _reading(source):
        model, found = AutoModelForImageTextToText.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True, output_loading_info=True, **options
        )
    if found["missing_keys"]:
        names = ", ".join(sorted(found["missing_keys"])[:3])
        raise SettingsError(f"language model '{source}' lacks {names}; give the weights of its config.json")
    return processor, model


@contextmanager
def _reading(source: str | Path) -> Iterator[None]:
    try:
        yield
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        cause = str(error).strip().partition("\n")[0]
        raise SettingsError(
            f"language model '{source}' cannot be read ({cause}); give one that AutoModelForImageTextToText reads"
        ) from None

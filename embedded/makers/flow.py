"""sana-world: supervised pre-training of a small SANA, with its text encoder, on the latents of the codec.

As UniRL-Zero's appendix A.3: x_t = (1 - t) x_0 + t noise with t = sigmoid(normal), the target is v = noise - x_0, every
time has the same weight, and a tenth of the texts is dropped for guidance. A text is a prompt, in a share of the cases
followed by words on where everything is, as a language model's answer follows a prompt.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from numpy.typing import NDArray
from tokenizers import Regex, normalizers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

from embedded.makers import codec
from embedded.makers.dataset import Sizes
from embedded.makers.drawings import all_texts, drawings
from embedded.makers.loop import MuonRecipe, Part, Recipe
from embedded.makers.texts import tokenizer
from trainer.policy.flow.attention import use_float32_sums
from trainer.policy.flow.policy import TRAINING_TIMES
from trainer.scenarios import compound

RECIPE = MuonRecipe(seed=21, steps=5500, batch=32, lr=1.5e-3, weight_decay=0.0, warmup=200, muon_lr=0.02, decay=1500)
DROPPED = 0.1  # share of images trained without text
WORDS = 0.3  # share of texts with words on where things are
MAX_TEXT = 64  # tokens
WIDTH, HEADS, LAYERS = 160, 5, 5
TEXT_WIDTH = 128
SHIFT = 3.0  # of the sampling schedule, as published
WORKERS = 2  # parts of a batch, each computed by a thread of its own


class SanaMaker:
    """Train the transformer and the text encoder of a pipeline whose codec is finished."""

    def __init__(self, recipe: Recipe, folder: Path, sizes: Sizes, pipeline: Path) -> None:
        self.prepare(recipe, pipeline)
        data = drawings(folder, sizes)
        self.texts: list[Any] = data["texts"]
        self.latents = latents_of(self.codec, data["image"], folder / f"drawings-{sizes.drawings}-latents.npy")

    def prepare(self, recipe: Recipe, pipeline: Path) -> None:
        """Load the codec, and create what is trained."""
        self.recipe = recipe
        self.codec = AutoencoderDC.from_pretrained(pipeline / codec.FOLDER, torch_dtype=torch.float32).eval()
        self.tokenizer = text_tokenizer()
        self.encoder, self.transformer = new_text_encoder(len(self.tokenizer)), new_transformer()
        self.module: nn.Module = nn.ModuleDict({"text_encoder": self.encoder, "transformer": self.transformer})

    def loss(self, rng: np.random.Generator) -> Tensor | list[Part]:
        """Draw a batch and return its loss in WORKERS parts, short texts first."""
        rows = rng.integers(len(self.latents), size=self.recipe.batch)
        texts = [text_of(self.texts[row], rng) for row in rows]
        t = 1 / (1 + np.exp(-rng.standard_normal(len(rows), np.float32)))
        noise = rng.standard_normal(self.latents[rows].shape, np.float32)
        order = np.array(sorted(range(len(rows)), key=lambda i: len(texts[i])))
        parts: list[Part] = []
        for cut in np.array_split(order, WORKERS):
            x_0, time, drawn = (torch.from_numpy(one[cut]) for one in (self.latents[rows], t, noise))
            parts.append(partial(self._part, x_0.float(), [texts[i] for i in cut], time, drawn, len(cut) / len(rows)))
        return parts

    def _part(self, x_0: Tensor, texts: list[str], t_b: Tensor, noise: Tensor, share: float) -> Tensor:
        # Threads share autocast's cache, so that with it the roundings would depend on their timing.
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            v = self.velocity(mixed(x_0, noise, t_b), texts, t_b)
        return share * (v.float() - (noise - x_0)).square().mean()

    def velocity(self, x_bchw: Tensor, texts: list[str], t_b: Tensor) -> Tensor:
        """Return the velocity [B C H W], as `FlowPolicy.velocity` does without guidance."""
        read = self.tokenizer(texts, padding=True, truncation=True, max_length=MAX_TEXT, return_tensors="pt")
        captions = self.encoder(read.input_ids, attention_mask=read.attention_mask).last_hidden_state
        found: Tensor = self.transformer(
            hidden_states=x_bchw,
            timestep=TRAINING_TIMES * t_b,
            encoder_hidden_states=captions,
            encoder_attention_mask=read.attention_mask,
            return_dict=False,
        )[0]
        return found

    def context(self) -> AbstractContextManager[None]:
        """Return the context of training: plain attention, since the backward pass of the fused one is slow on a CPU.

        It is a setting of the process, not of the threads that compute the parts.
        """
        return sdpa_kernel(SDPBackend.MATH)

    def save(self, directory: Path) -> None:
        """Write a pipeline in diffusers' layout, in bfloat16."""
        self.write(directory, self.transformer)

    def write(self, directory: Path, transformer: SanaTransformer2DModel) -> None:
        """Write it with this transformer."""
        scheduler = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
        )
        parts = (part.to(torch.bfloat16) for part in (self.encoder, self.codec, transformer))
        SanaPipeline(self.tokenizer, *parts, scheduler).save_pretrained(directory)


def mixed(x_0: Tensor, noise: Tensor, t_b: Tensor) -> Tensor:
    """Return x_t = (1 - t) x_0 + t noise [B C H W]; t is one time for each row."""
    t = t_b[:, None, None, None]
    return (1 - t) * x_0 + t * noise


def text_of(record: dict[str, Any], rng: np.random.Generator) -> str:
    """Return what an image is drawn from: nothing, its prompt, or the prompt and words on where things are."""
    if rng.random() < DROPPED:
        return ""
    with_words = rng.random() < WORDS
    return compound(record["prompt"], record["words"]) if with_words else str(record["prompt"])


def new_transformer() -> SanaTransformer2DModel:
    """Return a SANA of 2.3 million random weights, with positions, which so few blocks cannot find by themselves.

    The first prediction is 0, as in DiT (Peebles & Xie 2023).
    """
    transformer = SanaTransformer2DModel(
        in_channels=codec.CHANNELS,
        out_channels=codec.CHANNELS,
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        num_layers=LAYERS,
        num_cross_attention_heads=HEADS,
        cross_attention_head_dim=WIDTH // HEADS,
        cross_attention_dim=WIDTH,
        caption_channels=TEXT_WIDTH,
        sample_size=8,
        interpolation_scale=1,
    )
    use_float32_sums(transformer)
    nn.init.zeros_(transformer.proj_out.weight)
    return transformer


def new_text_encoder(vocabulary: int) -> Gemma2Model:
    """Return a Gemma 2 of random weights, the class of SANA's text encoder."""
    return Gemma2Model(
        Gemma2Config(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=TEXT_WIDTH // 4,
            query_pre_attn_scalar=TEXT_WIDTH // 4,
            attn_logit_softcapping=None,  # fused attention has none
            max_position_embeddings=4 * MAX_TEXT,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
        )
    )


def text_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of every word that a prompt or an answer has.

    It removes what the text encoder does not know: the instruction that SANA's pipeline writes before a prompt, up to
    its last line "User Prompt: ", and the tags of `<answer>..</answer>`.
    """
    words = tokenizer(all_texts(), MAX_TEXT)
    backend = words.backend_tokenizer
    assert backend.normalizer is not None
    removed = [normalizers.Replace(Regex(one), " ") for one in (r"^[\s\S]*User Prompt: ", "</?answer>")]
    backend.normalizer = normalizers.Sequence([*removed, backend.normalizer])
    words.add_special_tokens({"bos_token": "[CLS]", "eos_token": "[SEP]"})
    return words


def latents_of(autoencoder: AutoencoderDC, images: NDArray[np.uint8], path: Path) -> NDArray[np.float16]:
    """Return the scaled latents of all images, float16 [N 16 8 8], cached for this codec."""
    weights = autoencoder.encoder.conv_out.weight.detach().numpy()
    path = path.with_name(f"{path.stem}-{hashlib.blake2b(weights.tobytes()).hexdigest()[:16]}.npy")
    if not path.exists():
        parts = tqdm(range(0, len(images), 512), desc="encoding", mininterval=5.0)
        found = [codec.encode(autoencoder, images[i : i + 512]).half().numpy() for i in parts]
        np.save(path, np.concatenate(found) * np.float16(autoencoder.config.scaling_factor))
    latents: NDArray[np.float16] = np.load(path)
    return latents

"""Fixtures of a tiny Show-o: 2 layers of width 64, 16 codes, 4 x 4 image tokens of 2 x 2 pixels, random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.policy.show_o.config import ShowOConfig
from trainer.policy.show_o.magvit import Magvit, MagvitConfig
from trainer.policy.show_o.memory import Dtype
from trainer.policy.show_o.policy import Sampling, ShowO
from trainer.policy.show_o.vocabulary import END, Vocabulary

TEXT = """a photo of red blue green cat dog sits on grass wearing hat what color is has two USER ASSISTANT : . ?"""
WORDS = TEXT.split()
CONCEPTS = ("<bo>", "<cy>")
LIMIT = 12  # words of a text block, one less than its columns
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def write_tokenizer(folder: Path, tokens: list[str]) -> Path:
    """Write a word tokenizer whose ids are the indices of `tokens`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[0]))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = {"bos_token": END, "eos_token": END} if END in tokens else {}
    PreTrainedTokenizerFast(tokenizer_object=made, **ends).save_pretrained(folder)
    return folder


def make_vocabulary(folder: Path) -> Vocabulary:
    """Write the tokenizer to a folder and return its vocabulary."""
    return Vocabulary.read(write_tokenizer(folder, ["[UNK]", *WORDS, END]), CONCEPTS, 16, LIMIT)


def make_vq() -> Magvit:
    config = MagvitConfig(8, 4, (1, 2), (1, 2), (1, 2), (2, 1), norm_groups=4)
    made: Magvit = _random(Magvit(config))
    return made.eval().requires_grad_(False)


def make_show_o(
    vocab: Vocabulary,
    vq: Magvit,
    kind: type[ShowO] = ShowO,
    *,
    checkpointing: bool = False,
    dtype: Dtype = "float32",
    **options: Any,
) -> ShowO:
    """Return the same weights every time, spread out so that mistakes show; `options` are of its sampler."""
    config = ShowOConfig(vocab.size, 16, 16, LIMIT, "", False, CONCEPTS, SHAPE)
    sampling = Sampling(**{"guidance_scale": 2.0, "denoising_steps": 4, "max_new_tokens": 4, **options})
    policy = kind(config, vocab, vq, sampling, checkpointing=checkpointing, dtype=dtype)
    _random(policy.module)
    policy.phi.lm_head.weight.data *= 3.0
    policy.phi.lm_head.bias.data[vocab.id(END)] += 2.0  # some answers end, some do not
    return policy


@pytest.fixture(scope="session")
def tokenizer_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], Path]:
    """`tokenizer_of(tokens)`: the directory of a word tokenizer; ids are indices of the list."""
    return lambda tokens: write_tokenizer(tmp_path_factory.mktemp("tokenizer"), tokens)


@pytest.fixture(scope="session")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return make_vocabulary(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def vq() -> Magvit:
    return make_vq()


@pytest.fixture
def make_policy(vocab: Vocabulary, vq: Magvit) -> Callable[..., ShowO]:
    """`make_policy(guidance_scale=2.0)`: see `make_show_o`."""
    return partial(make_show_o, vocab, vq)


@pytest.fixture
def policy(make_policy: Callable[..., ShowO]) -> ShowO:
    return make_policy()


@pytest.fixture
def uniforms() -> Callable[..., torch.Tensor]:
    """`uniforms(3, 8, seed=1)`: float32 in (0, 1)."""

    def make(*shape: int, seed: int = 0) -> torch.Tensor:
        drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
        return drawn.clamp(2.0**-24, 1 - 2.0**-24)

    return make


@pytest.fixture(scope="session")
def image() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def _random(module: Any) -> Any:
    """Fill with reproducible random values; gains and biases differ from 1 and 0."""
    generator = torch.Generator().manual_seed(0)
    for key, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = 1.0 if key.endswith("weight") else 0.0
        parameter.data = gain + 0.2 * noise if parameter.dim() == 1 else noise / parameter[0].numel() ** 0.5
    return module

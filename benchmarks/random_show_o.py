"""A Show-o of any size with random weights, which costs as much as a trained one."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from trainer.policy.show_o.config import ShowOConfig
from trainer.policy.show_o.magvit import Magvit, MagvitConfig
from trainer.policy.show_o.memory import Dtype
from trainer.policy.show_o.policy import Sampling, ShowO
from trainer.policy.show_o.segments import ImageSegment
from trainer.policy.show_o.vocabulary import END, SPECIALS, Vocabulary
from trainer.policy.weights import parameters_on_meta

FULL = ShowOConfig(58_498)  # showlab/show-o-512x512
TINY = ShowOConfig(
    8192 + 1 + 500, num_vq_tokens=16, max_text_length=16,
    llm={"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
)  # fmt: skip
SMALL_VQ = MagvitConfig(channels=16, norm_groups=4)  # 13 bits as the public one; for figures without decoding


def build(
    config: ShowOConfig,
    sampling: Sampling,
    *,
    vq: MagvitConfig = SMALL_VQ,
    device: str = "cpu",
    dtype: Dtype = "float32",
    checkpointing: bool = False,
) -> ShowO:
    """Return a policy with float32 weights of standard deviation 0.02, as before training."""
    words = config.vocab_size - config.codebook_size - 1 - len(SPECIALS) - 1  # less the mask token and [PAD]
    with TemporaryDirectory() as folder:
        _write_tokenizer(words, Path(folder))
        vocab = Vocabulary.read(folder, (), config.codebook_size, config.max_text_length)
    tokens = Magvit(vq).to(device).eval().requires_grad_(False)
    with parameters_on_meta():
        policy = ShowO(config, vocab, tokens, sampling, dtype=dtype, checkpointing=checkpointing)
    policy.module.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in policy.module.parameters():
        nn.init.normal_(parameter, std=0.02, generator=generator)
    for name, parameter in policy.module.named_parameters():
        if "layernorm" in name and name.endswith("weight"):
            nn.init.ones_(parameter)
    return policy


def prompt(config: ShowOConfig, number: int) -> str:
    """Return a prompt that fills its text block; each number gives another one."""
    return " ".join(f"w{number}" for _ in range(config.max_text_length - 2))


def halfway(policy: ShowO, rollouts: int) -> list[ImageSegment]:
    """Return images of one denoising step, in which every second position is masked, with random codes."""
    config, generator = policy.config, torch.Generator().manual_seed(0)
    shape = (rollouts, 1, config.num_vq_tokens)
    codes = torch.randint(config.codebook_size, shape, generator=generator).to(policy.device)
    masked = (torch.arange(config.num_vq_tokens) % 2 == 0).expand(shape).to(policy.device)
    logp = torch.full(shape, -9.0, device=policy.device) * masked  # log(1 / 8192)
    uniform = torch.full((rollouts, 1, 2, config.num_vq_tokens), 0.5, device=policy.device)
    columns = zip(codes, masked, logp, masked[:, 0], uniform, strict=True)
    return [ImageSegment(prompt(config, i), *row) for i, row in enumerate(columns)]


def _write_tokenizer(words: int, folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [END, *(f"w{i}" for i in range(words - 1))]
    made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=END))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token=END, eos_token=END).save_pretrained(folder)

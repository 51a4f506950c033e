"""Tiny random pipelines in diffusers' published layout, written by the real classes' own save_pretrained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from synod.contracts import ScoreItem
from tests.unit.trainer.tiny_run import TINY

Family = Literal["sana", "sd3"]
WORDS = ("<pad>", "</s>", "<s>", "<unk>", "a", "photo", "of", "red", "cat", "dog", "cats", "dogs", "two", "bright")
PIXELS = 8  # the side of an image
LATENT = (4, 4, 4)


def write_pipeline(directory: Path, family: Family, seed: int = 0) -> Path:
    """Write a pipeline of random weights for images of 8 x 8 pixels, about 30 thousand numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        (make_sana() if family == "sana" else make_sd3()).save_pretrained(directory)
    return directory


def make_sana() -> Any:
    import diffusers
    from transformers import Gemma2Config, Gemma2Model

    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=4,
    )
    codec = diffusers.AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        scaling_factor=0.41407,
    )
    words = Gemma2Config(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return diffusers.SanaPipeline(
        tokenizer=make_tokenizer(),
        text_encoder=Gemma2Model(words),
        vae=codec,
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(  # as published
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def make_sd3() -> Any:
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    transformer = diffusers.SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=4,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    codec = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=8,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    clip = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=8,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    t5 = T5Config(
        vocab_size=len(WORDS), d_model=32, d_ff=16, d_kv=8, num_layers=1, num_heads=2, pad_token_id=0, eos_token_id=1
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=codec,
        text_encoder=CLIPTextModelWithProjection(clip),
        tokenizer=make_tokenizer(8),
        text_encoder_2=CLIPTextModelWithProjection(clip),
        tokenizer_2=make_tokenizer(8),
        text_encoder_3=T5EncoderModel(t5),
        tokenizer_3=make_tokenizer(),
    )


def make_tokenizer(longest: int = 512) -> Any:
    """A tokenizer of WORDS that ends every text with </s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        model_max_length=longest,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
    )


TEXT = TINY.replace("max_new_tokens = 4\n", "")
FLOW = {"POLICY__FAMILY": "flow", "POLICY__MAX_TEXT_LENGTH": "6", "DATA__GENEVAL_SHARE": "1.0"}  # overrides of settings


def smoothness(item: ScoreItem) -> float:
    """Minus the mean difference of neighbouring pixels, in [-1, 0]: smooth images compress well."""
    image = item.pixels().astype(float) / 255
    return -float((np.abs(np.diff(image, axis=0)).mean() + np.abs(np.diff(image, axis=1)).mean()) / 2)

"""Tiny random vision-language models: Qwen2.5-VL, LLaVA and HPSv3 (Qwen2-VL), with their processors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
_TEMPLATE = """{% for message in messages %}<|im_start|> {{ message['role'] }} {% for part in message['content'] %}\
{% if part['type'] == 'image' %}IMAGE{% else %} {{ part['text'] }}{% endif %}{% endfor %} <|im_end|> {% endfor %}\
{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"""


def qwen(folder: Path, words: Sequence[str]) -> None:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _tokenizer((*_QWEN, "<|video_pad|>"), words)
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    ids |= {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    config = Qwen2_5_VLConfig(
        text_config=_text(len(tokenizer)) | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "out_hidden_size": 32,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    _spread(Qwen2_5_VLForConditionalGeneration(config)).save_pretrained(folder)
    sizes: dict[str, Any] = {"patch_size": 8, "merge_size": 2, "size": {"shortest_edge": 256, "longest_edge": 1024}}
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**sizes),
        tokenizer,
        Qwen2VLVideoProcessor(**sizes),
        chat_template=_TEMPLATE.replace("IMAGE", image),
    ).save_pretrained(folder)


def llava(folder: Path, words: Sequence[str]) -> None:
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = _tokenizer(("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"), words)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, **vision},
        text_config={"model_type": "llama", **_text(len(tokenizer))},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    _spread(LlavaForConditionalGeneration(config)).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=_TEMPLATE.replace("IMAGE", "<image>"),
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def qwen2(folder: Path, words: Sequence[str]) -> None:
    """Write the configuration, processor and tokenizer of a tiny Qwen2-VL, without weights."""
    from transformers import Qwen2VLConfig, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    tokenizer = _tokenizer((*_QWEN, "<|video_pad|>"), words)
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    ids |= {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    text = _text(len(tokenizer) + 7) | {"max_position_embeddings": 2048}  # unused rows, as published
    config = Qwen2VLConfig(
        text_config=text | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2},
        **{f"{name.replace('_pad', '')}_token_id": value for name, value in ids.items()},
    )
    config.save_pretrained(folder)
    sizes: dict[str, Any] = {"patch_size": 8, "merge_size": 2, "size": {"shortest_edge": 256, "longest_edge": 65536}}
    Qwen2VLProcessor(
        Qwen2VLImageProcessor(**sizes), tokenizer, Qwen2VLVideoProcessor(**sizes), chat_template=_CHAT
    ).save_pretrained(folder)


def hpsv3(folder: Path) -> None:
    """Write `HPSv3.safetensors` for the `qwen2` in the same folder.

    It has the tensor names of transformers 4.45. Its vocabulary has a row for the special token and no unused rows.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoTokenizer, Qwen2VLForConditionalGeneration

    folder.mkdir()
    base = folder.parent / "qwen2"
    config = AutoConfig.from_pretrained(base)
    config.text_config.vocab_size = len(AutoTokenizer.from_pretrained(base)) + 1
    model = _spread(Qwen2VLForConditionalGeneration(config))
    state = {
        key.replace("model.language_model.", "model.").replace("model.visual.", "visual."): value.contiguous().clone()
        for key, value in model.state_dict().items()
    }
    widths = ((0, 32, 1024), (3, 1024, 16), (5, 16, 2))
    for place, before, after in widths:
        state[f"rm_head.{place}.weight"] = torch.randn(after, before) * 2 / before**0.5
        state[f"rm_head.{place}.bias"] = torch.randn(after) / 5
    save_file(state, folder / "HPSv3.safetensors")


_CHAT = (  # Qwen2-VL's: adds a missing system turn; an image stands between vision_start and vision_end
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _text(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }


def _tokenizer(special: Sequence[str], words: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, "[UNK]", "user", "assistant", *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=special[0], eos_token=special[0])
    fast.add_special_tokens({"additional_special_tokens": list(special[1:])})
    return fast


def _spread(model: Any) -> Any:
    """Random weights large enough that different images give clearly different texts."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6.0)
    return model

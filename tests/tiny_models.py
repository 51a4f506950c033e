"""Tiny random models, complete with processors and tokenizers, so that tests need no trained weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests import tiny_rewards, tiny_vlm

TEXT = """a photo of red orange yellow green blue purple pink brown black white colored object cat dog person bird
wearing hat has the left right above bad two good sits on grass and scarf with - < > . , '"""
WORDS = TEXT.split()
LABELS = ("background", "cat", "dog", "person", "face")


class TinyModels:
    """Absolute paths of model directories (or weights files) by name, each written on first use, from seed 0."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __getattr__(self, name: str) -> str:
        import torch

        if name not in _MAKERS:
            raise AttributeError(name)
        folder = self._root / name
        if not folder.exists():
            if name in _BASES:
                getattr(self, _BASES[name])
            with torch.random.fork_rng():
                torch.manual_seed(0)
                _MAKERS[name](folder)
        return str(folder / _FILES.get(name, ""))


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]"]
    vocab = {word: i for i, word in enumerate([*special, *WORDS, "[SEP]"])}  # the end token last: CLIP pools at argmax
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=24,
    ).save_pretrained(folder)


def _vocabulary() -> int:
    return len(WORDS) + 5  # BLIP-2's processor adds one image token


def _spread(module: Any, scale: float) -> Any:
    """Random weights large enough that different inputs give clearly different outputs."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(scale)
    return module


def _encoder() -> dict[str, int]:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {**size, "vocab_size": _vocabulary(), "max_position_embeddings": 24}


def _text(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    _spread(BertModel(BertConfig(**_encoder())), 8.0).save_pretrained(folder)
    _tokenizer(folder)


def _ernie(folder: Path) -> None:
    """A model of ERNIE's own class with task types, like nghuyong/ernie-2.0-base-en and ernie-3.0-*-zh."""
    from transformers import ErnieConfig, ErnieModel

    config = ErnieConfig(**_encoder(), task_type_vocab_size=3, use_task_id=True)
    _spread(ErnieModel(config), 8.0).save_pretrained(folder)
    _tokenizer(folder)


def _blip2(folder: Path) -> None:
    from transformers import (
        AutoTokenizer,
        Blip2Config,
        Blip2ForImageTextRetrieval,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessor,
        OPTConfig,
    )

    _tokenizer(folder)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            vocab_size=_vocabulary(),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=24,
            encoder_hidden_size=32,
            use_qformer_text_input=True,
        ).to_dict(),
        text_config=OPTConfig(
            vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, ffn_dim=8
        ).to_dict(),
        num_query_tokens=4,
        image_text_hidden_size=16,
    )
    model = _spread(Blip2ForImageTextRetrieval(config), 8.0)
    model.query_tokens.data.normal_()
    model.save_pretrained(folder)
    processor = BlipImageProcessor(size={"height": 32, "width": 32})
    Blip2Processor(processor, AutoTokenizer.from_pretrained(folder), num_query_tokens=4).save_pretrained(folder)


def _dinov2(folder: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=7)
    _spread(Dinov2Model(config), 8.0).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, do_center_crop=True
    ).save_pretrained(folder)


def _small_face(folder: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    _spread(ViTModel(config), 8.0).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def _clip(folder: Path) -> None:
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

    _tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    config = CLIPConfig(
        text_config={**size, **ends, "vocab_size": _vocabulary(), "max_position_embeddings": 16},
        vision_config={**size, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    _spread(CLIPModel(config), 8.0).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


def _open_clip(folder: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    _tokenizer(folder)
    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": _vocabulary(),
            "width": 32,
            "heads": 4,
            "layers": 2,
            "hf_tokenizer_name": "here",
        },
    }
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = _spread(open_clip.create_model(f"local-dir:{folder}", load_weights=False), 4.0)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )


def _semantic(folder: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[16, 32],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
        part_of={"face": "person"},
    )
    model = _spread(SegformerForSemanticSegmentation(config), 6.0)
    _spread(model.decode_head.classifier, 30.0)
    model.save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def _mask2former(folder: Path) -> None:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    backbone = SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    labels = {0: "cat", 1: "mouse", 2: "person"}
    config = Mask2FormerConfig(
        backbone_config=backbone.to_dict(),
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=40,
        id2label=labels,
        label2id={label: i for i, label in labels.items()},
    )
    model = _spread(Mask2FormerForUniversalSegmentation(config), 2.0)
    _spread(model.class_predictor, 8.0)
    model.save_pretrained(folder)


def _facenet(folder: Path) -> None:
    import torch
    from facenet_pytorch import InceptionResnetV1

    folder.mkdir()
    model = InceptionResnetV1(pretrained=None).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.momentum = 1.0  # one pass sets the statistics, without which all embeddings are nearly equal
    with torch.no_grad():
        model(torch.randn(4, 3, 6, 6).repeat_interleave(27, 2).repeat_interleave(27, 3)[..., :160, :160])
    state = dict(model.state_dict())
    state["logits.weight"], state["logits.bias"] = torch.zeros(3, 512), torch.zeros(3)  # as the published weights have
    torch.save(state, folder / "face.pt")


def _hps(folder: Path) -> None:
    """Other weights for `open_clip`'s architecture, under `state_dict` like the published HPS weights."""
    import open_clip
    import torch

    folder.mkdir()
    model = _spread(open_clip.create_model(f"local-dir:{folder.parent / 'open_clip'}", load_weights=False), 5.0)
    torch.save({"epoch": 2, "state_dict": model.state_dict()}, folder / "hps.pt")


def _aesthetic(folder: Path) -> None:
    """The public predictor's layers on `clip`'s features of 16 numbers."""
    import torch

    folder.mkdir()
    widths = (16, 12, 10, 8, 4, 1)
    state = {}
    for place, before, after in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        state[f"layers.{place}.weight"] = torch.randn(after, before) * 1.3 / before**0.5
        state[f"layers.{place}.bias"] = torch.randn(after) * 0.2
    state["layers.7.bias"] += 5
    torch.save(state, folder / "aesthetic.pth")


_MAKERS: Final[Mapping[str, Callable[[Path], None]]] = {
    "text": _text,
    "ernie": _ernie,
    "blip2": _blip2,
    "dinov2": _dinov2,
    "clip": _clip,
    "open_clip": _open_clip,
    "semantic": _semantic,
    "mask2former": _mask2former,
    "small_face": _small_face,
    "facenet": _facenet,
    "hps": _hps,
    "aesthetic": _aesthetic,
    "image_reward": tiny_rewards.image_reward,
    "qwen2": partial(tiny_vlm.qwen2, words=WORDS),
    "hpsv3": tiny_vlm.hpsv3,
    "qwen": partial(tiny_vlm.qwen, words=WORDS),
    "llava": partial(tiny_vlm.llava, words=WORDS),
}
_FILES: Final = {"facenet": "face.pt", "hps": "hps.pt", "aesthetic": "aesthetic.pth"}
_BASES: Final = {"hps": "open_clip", "hpsv3": "qwen2"}  # models whose maker reads another

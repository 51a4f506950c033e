"""The published scorers' architectures and formats with random weights, to measure without a hub.

Each function writes one model into an empty folder and returns what settings name: the folder, or a weights file.
Sizes are the library's defaults where the published config.json omits them; others are given here with their source.
Weights have the published dtype. Tokenizers are small ones of our own; embeddings have the published number of rows.
`tiny` shrinks every width and depth, for tests.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import open_clip
import torch
import transformers
from facenet_pytorch import InceptionResnetV1
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from services.models.weights import parameters_on_meta

Maker = Callable[[Path, bool], Path]
WORDS: Final = [
    "a",
    "an",
    "the",
    "photo",
    "of",
    "red",
    "blue",
    "cat",
    "dog",
    "cup",
    "car",
    "person",
    "with",
    "and",
    "on",
    "under",
    "two",
    "three",
    "hat",
    "in",
    "shows",
    "no",
]
_LOGIT_SCALE: Final = math.log(100)  # where CLIP's training clamps it
_NOISE: Final = 4_194_301  # random numbers; a prime count, so that rows of a matrix differ
_SMALL: Final = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def ernie(folder: Path, tiny: bool = False) -> Path:
    """ERNIE 2.0 base (English), TIER's encoder: BERT base with 4 token types (Sun et al. 2019).

    `nghuyong/ernie-2.0-base-en`. The library's defaults are of 3.0 (Chinese): 30522 words and 512 positions are given.
    Published as pytorch_model.bin in float32.
    """
    sizes: dict[str, Any] = dict(_SMALL) if tiny else {}
    config = transformers.ErnieConfig(vocab_size=30522, max_position_embeddings=512, type_vocab_size=4, **sizes)
    torch.save(random_state(lambda: transformers.ErnieModel(config)), folder / "pytorch_model.bin")
    config.save_pretrained(folder)
    _tokenizer(folder, {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102}, 512)
    return folder


def blip2(folder: Path, tiny: bool = False) -> Path:
    """BLIP-2 ITM with ViT-g at 224 px, BER's model: 1.17 B parameters, 4.69 GB in float32.

    `Salesforce/blip2-itm-vit-g`'s config.json names 30523 words, 32 queries and 256 numbers a feature; the rest are the
    library's defaults. The language model that the config mentions is not part of this class.
    """
    vision: dict[str, Any] = {**_SMALL, "image_size": 56} if tiny else {}
    former: dict[str, Any] = {**_SMALL, "encoder_hidden_size": 32} if tiny else {}
    config = transformers.Blip2Config(
        vision_config=vision,
        qformer_config={"vocab_size": 30523, "use_qformer_text_input": True, **former},
        num_query_tokens=32,
        image_text_hidden_size=256,
    )
    _save(folder, config, lambda: transformers.Blip2ForImageTextRetrieval(config))
    side = config.vision_config.image_size
    _tokenizer(folder, {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102}, 512)
    images = transformers.BlipImageProcessor(size={"height": side, "width": side})
    words = transformers.AutoTokenizer.from_pretrained(folder)
    transformers.Blip2Processor(images, words, num_query_tokens=32).save_pretrained(folder)
    return folder


def dinov2(folder: Path, tiny: bool = False) -> Path:
    """DINOv2 base, DER's model (Oquab et al. 2023; `facebook/dinov2-base`), float32.

    The library's defaults, patches of 14 px with positions for 518 px; images are scaled to a short side of 256 px and
    cropped to 224 px.
    """
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4} if tiny else {}
    config = transformers.Dinov2Config(image_size=518, patch_size=14, **sizes)
    _save(folder, config, lambda: transformers.Dinov2Model(config))
    transformers.BitImageProcessor(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, do_center_crop=True
    ).save_pretrained(folder)
    return folder


def mask2former(folder: Path, tiny: bool = False) -> Path:
    """Mask2Former with Swin-S for COCO's instances, GenEval's detector (Cheng et al. 2022).

    `facebook/mask2former-swin-small-coco-instance`: depths 2, 2, 18, 2 of width 96, windows of 7 px, 100 queries, 80
    classes. float32.
    """
    width: dict[str, int] = {}
    if tiny:
        width = {"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "encoder_feedforward_dim": 32}
        width |= {"dim_feedforward": 32, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2}
    backbone = transformers.SwinConfig(
        embed_dim=24 if tiny else 96,
        depths=[1, 1, 1, 1] if tiny else [2, 2, 18, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    names = dict(enumerate(("person", "cat", "dog", "cup", "car")))
    labels = {number: names.get(number, f"class {number}") for number in range(80)}
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone.to_dict(),
        id2label=labels,
        label2id={label: i for i, label in labels.items()},
        **width,
    )
    state = random_state(lambda: transformers.Mask2FormerForUniversalSegmentation(config))
    for key, value in state.items():  # random attention makes all queries equal, and their mask may be empty
        if "queries_" in key:
            value /= value.std()
        elif ".decoder.layers." in key and key.endswith("attn.out_proj.weight"):
            value *= 0.1
    state["class_predictor.bias"][0] = 8  # every query detects a person, so that GenEval classifies a colour
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    return folder


def clip_l(folder: Path, tiny: bool = False) -> Path:
    """open_clip's ViT-L-14-quickgelu with OpenAI's preprocessing, GenEval's colour model.

    Radford et al. 2021. Sizes are open_clip's; `timm/vit_large_patch14_clip_224.openai` is published in float32.
    """
    model = _architecture("ViT-L-14-quickgelu", tiny)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    table = {"model_cfg": model, "preprocess_cfg": {"mean": mean, "std": std}}
    (folder / "open_clip_config.json").write_text(json.dumps(table))
    save_file(_open_clip_state(model, torch.float32), folder / "open_clip_model.safetensors")
    return folder


def hps(folder: Path, tiny: bool = False) -> Path:
    """HPS v2.1's ViT-H-14 (Wu et al. 2023), with open_clip's sizes.

    HPS_v2.1_compressed.pt is a `torch.save` of float16 under `state_dict`, 1.97 GB.
    """
    model = _architecture("ViT-H-14", tiny)
    torch.save({"state_dict": _open_clip_state(model, torch.float16)}, folder / "HPS_v2.1_compressed.pt")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    return folder / "HPS_v2.1_compressed.pt"


def pickscore(folder: Path, tiny: bool = False) -> Path:
    """PickScore's CLIP-H (Kirstain et al. 2023) as a `CLIPModel`, with sizes of open_clip's ViT-H-14.

    One model.safetensors of 3.94 GB in float32.
    """
    wide, words = (
        open_clip.get_model_config("ViT-H-14")["vision_cfg"],
        open_clip.get_model_config("ViT-H-14")["text_cfg"],
    )
    vision = {
        "hidden_size": wide["width"],
        "intermediate_size": 4 * wide["width"],
        "num_hidden_layers": wide["layers"],
        "num_attention_heads": wide["width"] // wide["head_width"],
    }
    text = {
        "hidden_size": words["width"],
        "intermediate_size": 4 * words["width"],
        "num_hidden_layers": words["layers"],
        "num_attention_heads": words["heads"],
    }
    return _clip_model(folder, vision, text, 1024, "gelu", tiny)


def aesthetic_clip(folder: Path, tiny: bool = False) -> Path:
    """`openai/clip-vit-large-patch14` as a `CLIPModel`, the encoder of LAION's predictor.

    Radford et al. 2021, table 20. Quick GELU, features of 768 numbers, float32.
    """
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    return _clip_model(folder, vision, text, 768, "quick_gelu", tiny)


def aesthetic_head(folder: Path, tiny: bool = False) -> Path:
    """LAION's aesthetic predictor (`sac+logos+ava1-l14-linearMSE.pth`), float32.

    Layers 768-1024-128-64-16-1 at places 0, 2, 4, 6, 7.
    """
    widths = (16 if tiny else 768, 1024, 128, 64, 16, 1)
    layers = {str(p): torch.nn.Linear(a, b) for p, a, b in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False)}
    torch.nn.init.constant_(layers["7"].bias, 5)  # ratings near 0 would all be clipped to the lowest
    torch.save(torch.nn.ModuleDict({"layers": torch.nn.ModuleDict(layers)}).state_dict(), folder / "aesthetic.pth")
    return folder / "aesthetic.pth"


def facenet(folder: Path, tiny: bool = False) -> Path:
    """InceptionResnetV1 for VGGFace2's 8631 people, FER's embedder (facenet-pytorch).

    It has one size, also if `tiny`. A `torch.save` in float32, with the unused classifier. MTCNN's weights come with
    its package.
    """
    state = random_state(lambda: InceptionResnetV1(pretrained=None))
    state |= {"logits.weight": torch.zeros(8631, 512), "logits.bias": torch.zeros(8631)}
    torch.save(state, folder / "20180402-114759-vggface2.pt")
    return folder / "20180402-114759-vggface2.pt"


MAKERS: Final[dict[str, Maker]] = {
    one.__name__: one
    for one in (ernie, blip2, dinov2, facenet, mask2former, clip_l, pickscore, hps, aesthetic_clip, aesthetic_head)
}


def make(name: str, folder: Path, tiny: bool = False) -> Path:
    """Create `folder`, write the model `name` into it and return what settings name."""
    folder.mkdir(parents=True)
    return MAKERS[name](folder, tiny)


def random_state(build: Callable[[], torch.nn.Module], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return a random state dict for a module, without allocating the module.

    Norms are the identity and matrices preserve the scale of their inputs, so that activations stay finite.
    """
    with parameters_on_meta():
        wanted = build().state_dict()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_NOISE, generator=generator)
    state: dict[str, torch.Tensor] = {}
    for number, (key, value) in enumerate(wanted.items()):
        if value.device.type != "meta":
            state[key] = value.clone()
        else:
            state[key] = _random(key, value, noise, 7919 * number).to(dtype)
    return state


def _random(key: str, value: torch.Tensor, noise: torch.Tensor, start: int) -> torch.Tensor:
    last = key.rpartition(".")[2]
    if last == "logit_scale":
        return torch.full(value.shape, _LOGIT_SCALE)
    if last == "lambda1" or (value.ndim == 1 and last == "weight"):
        return torch.ones(value.shape)
    if value.ndim == 1 and last.endswith("bias"):
        return torch.zeros(value.shape)
    begin, size = start % _NOISE, value.numel()
    repeats = -(-(begin + size) // _NOISE)
    drawn = (noise.repeat(repeats) if repeats > 1 else noise)[begin : begin + size].view(value.shape)
    table = "embed" in key or value.ndim == 1 or value.shape[0] == 1
    return drawn * (0.02 if table else (value[0].numel()) ** -0.5)


def _save(folder: Path, config: Any, build: Callable[[], torch.nn.Module]) -> None:
    save_file(random_state(build), folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)


def _clip_model(
    folder: Path, vision: dict[str, int], text: dict[str, int], width: int, activation: str, tiny: bool
) -> Path:
    if tiny:
        vision, text, width = dict(_SMALL), dict(_SMALL), 16
    ends = {"bos_token_id": 49406, "eos_token_id": 49407}
    config = transformers.CLIPConfig(
        vision_config={**vision, "hidden_act": activation, "image_size": 224, "patch_size": 14},
        text_config={**text, **ends, "hidden_act": activation, "vocab_size": 49408, "max_position_embeddings": 77},
        projection_dim=width,
    )
    _save(folder, config, lambda: transformers.CLIPModel(config))
    transformers.CLIPImageProcessor().save_pretrained(folder)
    _tokenizer(folder, {"[PAD]": 0, "[UNK]": 1, "[CLS]": 49406, "[SEP]": 49407}, 77)
    return folder


def _architecture(name: str, tiny: bool) -> dict[str, Any]:
    table: dict[str, Any] = open_clip.get_model_config(name)
    if tiny:
        table["embed_dim"] = 16
        table["vision_cfg"] |= {"layers": 2, "width": 32, "head_width": 8}
        table["text_cfg"] |= {"width": 32, "heads": 4, "layers": 2}
    return table


def _open_clip_state(model: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return random_state(lambda: open_clip.CLIP(**model), dtype)


def _tokenizer(folder: Path, special: dict[str, int], length: int) -> None:
    """Write a tokenizer with one token per word and the published ids of the special tokens."""
    vocabulary = {**special, **{word: 1000 + number for number, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", special["[SEP]"]), ("[CLS]", special["[CLS]"]))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **names).save_pretrained(
        folder
    )

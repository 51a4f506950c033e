"""What does not fit is refused by the configuration files, before any weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from synod.errors import SettingsError
from tests.unit.trainer.loops import MakeSettings
from tests.unit.trainer.tiny_flow import FLOW, TEXT, Family
from trainer.evaluate import command
from trainer.policy import registry
from trainer.policy.flow import language, loading
from trainer.policy.lora import targeted
from trainer.policy.weights import directory_of
from trainer.settings import FlowSettings, TrainerSettings, read_policy
from trainer.settings import load as settings_of

CONFIGS = Path(__file__).parents[5] / "deploy/configs"


@pytest.fixture
def weightless(pipelines: dict[Family, Path], tmp_path: Path) -> Callable[[Family], Path]:
    """`weightless("sana")`: a pipeline's directory without a weight that could be read."""

    def copied(family: Family) -> Path:
        return Path(
            shutil.copytree(pipelines[family], tmp_path / family, ignore=shutil.ignore_patterns("*.safetensors"))
        )

    return copied


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("family", "file", "values", "message"),
    [
        (
            "sana",
            "model_index.json",
            {"_class_name": "FluxPipeline"},
            "class 'FluxPipeline'; policies of",
        ),
        (
            "sd3",
            "model_index.json",
            {"vae": ["diffusers", "AutoencoderTiny"]},
            "vae is of class 'AutoencoderTiny'",
        ),
        (
            "sd3",
            "model_index.json",
            {"text_encoder_3": [None, None]},
            "_3 is of class 'None'.*a T5EncoderModel",
        ),
        (
            "sana",
            "scheduler/scheduler_config.json",
            {"prediction_type": "epsilon"},
            "is a DPMSolverMultistepScheduler with prediction_type 'epsilon', so the model does not predict the veloc",
        ),
        ("sd3", "scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "a DDIMScheduler with prediction"),
        (
            "sana",
            "vae/config.json",
            {"latent_channels": 8},
            "of 4 channels and returns 4, but those of the vae",
        ),
        ("sd3", "transformer/config.json", {"out_channels": 8}, "of 4 channels and returns 8, but those of the vae ha"),
        (
            "sd3",
            "transformer/config.json",
            {"patch_size": "2"},
            "config.json: patch_size is '2'; give a positive",
        ),
        ("sana", "transformer/config.json", {"guidance_embeds": True}, "distilled for a guidance scale as its input"),
        (
            "sana",
            "text_encoder/config.json",
            {"hidden_size": 24},
            "width 16, but the text encoder returns 24",
        ),
        (
            "sd3",
            "text_encoder_3/config.json",
            {"d_model": 64},
            r"width 32, .* return 64 \(T5\) and 32 \(both",
        ),
        (
            "sd3",
            "text_encoder_2/config.json",
            {"projection_dim": 9},
            "width 16, but both CLIP encoders return 17",
        ),
        (
            "sd3",
            "transformer/config.json",
            {"joint_attention_dim": None},
            "config.json: joint_attention_dim",
        ),
        ("sana", "vae/config.json", {"encoder_block_out_channels": 8}, "vae/config.json has no list of block channels"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    weightless: Callable[[Family], Path], family: Family, file: str, values: dict[str, Any], message: str
) -> None:
    directory = weightless(family)
    change(directory / file, **values)
    with pytest.raises(SettingsError, match=message):
        loading.load(directory)


def test_parts_are_checked_before_a_language_model_is_read(
    weightless: Callable[[Family], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("a language model was read")

    monkeypatch.setattr(language, "load", read)
    directory = weightless("sd3")
    table = {"family": "flow", "model": str(directory), "language": {"model": "org/words"}}
    with pytest.raises(SettingsError, match="edits = true adds layers to a SanaTransformer2DModel"):
        registry.load(read_policy({**table, "edits": True}))
    change(directory / "scheduler/scheduler_config.json", _class_name="DDIMScheduler")
    with pytest.raises(SettingsError, match="a DDIMScheduler with prediction"):
        registry.load(read_policy(table))


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("sana", {"resolution": 9}, "resolution = 9 is not a multiple of 2, .* such as 8"),
        ("sd3", {"resolution": 10}, "resolution = 10 is not a multiple of 4"),
        ("sd3", {"resolution": 20}, "resolution = 20 needs 5 patches a side, .* has positions for 4; give at most 16"),
        ("sd3", {"max_text_length": 513}, "max_text_length = 513 is above 512"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    weightless: Callable[[Family], Path], family: Family, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        loading.load(weightless(family), **options)


def test_another_size_is_drawn(load: Callable[..., Any]) -> None:
    policy = load("sd3", resolution=12)
    assert policy.images(policy.denoise(policy.start(["a cat"], [(0,)]), 1))[0].shape == (12, 12, 3)


def test_a_directory_of_another_layout_is_refused(tmp_path: Path, weightless: Callable[[Family], Path]) -> None:
    with pytest.raises(SettingsError, match=r"has no model_index\.json"):
        loading.load(tmp_path)
    directory = weightless("sana")
    shutil.rmtree(directory / "scheduler")
    with pytest.raises(SettingsError, match=r"scheduler has no scheduler_config\.json"):
        loading.load(directory)


@pytest.mark.parametrize("folder", ["transformer", "vae", "text_encoder"])
def test_missing_weights_are_refused(pipelines: dict[Family, Path], tmp_path: Path, folder: str) -> None:
    directory = Path(shutil.copytree(pipelines["sana"], tmp_path / "sana"))
    (file,) = (directory / folder).glob("*.safetensors")
    tensors = load_file(file)
    lost = sorted(tensors)[0]
    save_file({key: value for key, value in tensors.items() if key != lost}, file, metadata={"format": "pt"})
    with pytest.raises(SettingsError, match=f"{folder} lacks "):
        loading.load(directory)
    file.unlink()
    with pytest.raises(SettingsError, match=f"{folder} (has no weights|cannot be read)"):
        loading.load(directory)


def test_a_tokenizer_is_needed(pipelines: dict[Family, Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(pipelines["sana"], tmp_path / "sana"))
    for file in (directory / "tokenizer").iterdir():
        file.unlink()
    with pytest.raises(SettingsError, match="tokenizer has no usable tokenizer"):
        loading.check(loading.Parts.find(directory))


def test_the_hub_sends_what_is_needed(pipelines: dict[Family, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(name: str, **options: Any) -> str:
        calls.append((name, options))
        return str(pipelines["sana"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    parts = loading.Parts.find("org/sana@main")
    assert calls[0][1]["allow_patterns"] == ["*.json", "*.jinja", "*.txt", "*.model"]
    assert parts.directory() == pipelines["sana"]
    name, options = calls[1]
    assert (name, options["revision"]) == ("org/sana", "main")
    weights = ["transformer/*.safetensors", "vae/*.safetensors", "text_encoder/*.safetensors"]
    assert options["allow_patterns"][4:] == weights
    assert options["ignore_patterns"] == ["*.fp16*", "*.bf16*", "*.int4*"]
    assert [one.folder for one in parts.sources()] == ["transformer", "vae", "text_encoder"]
    assert directory_of("org/sana", folders=("vae",)) == pipelines["sana"]


def test_the_registry_loads_what_the_settings_say(pipelines: dict[Family, Path]) -> None:
    table = {"family": "flow", "model": str(pipelines["sd3"]), "resolution": 12, "max_text_length": 6}
    times = {"denoising_steps": 6, "shift": 2.0, "schedule": "diffusers"}
    sampler = {**times, "eta": 0.5, "sde": [1, 3], "guidance_scale": 2.0}
    settings = read_policy({**table, "sampler": sampler, "checkpointing": True, "lora": {"rank": 2, "alpha": 4}})
    policy: Any = registry.load(settings)
    assert (policy.shapes.resolution, policy.shapes.text_length, policy.guidance_scale) == (12, 6, 2.0)
    assert policy.sampler == loading.Sampler.of(6, 2.0, 0.5, schedule="diffusers", window=(1, 3))
    assert policy.evaluation == loading.Sampler.of(20, 2.0, 0.0, schedule="diffusers")
    assert policy.module.is_gradient_checkpointing
    assert any("lora_A" in name for name, _ in policy.module.named_parameters())
    registry.FAMILIES["flow"].check(settings, ())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"POLICY__SAMPLER__SDE": "[0, 3]"}, r"trainer\.policy\.sampler.*sde \[0, 3\] does not fit denoising_steps 4"),
        ({"POLICY__SAMPLER__SDE": "[2, 1]"}, r"give a window within \[0, 2\], because the last step"),
        ({"POLICY__SAMPLER__ETA": "0"}, r"trainer\.policy\.sampler\.eta"),
        ({"POLICY__SAMPLER__TEMPERATURE": "1"}, r"trainer\.policy\.sampler\.temperature"),
        ({"POLICY__VQ": "x"}, r"trainer\.policy\.vq"),
        ({"DATA__GENEVAL_SHARE": "0.5"}, "'sync_r1' asks the policy questions, but policy.family 'flow' answers none"),
        ({"POLICY__FAMILY": "flux"}, r"trainer\.policy.*'show_o', 'flow'"),
    ],
)
def test_settings_of_a_flow_policy_are_checked(
    settings_from: Callable[..., TrainerSettings], overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_from(TEXT, **{**FLOW, **overrides})


@pytest.mark.parametrize(
    ("policy", "betas", "needed"),
    [
        ({}, {"IMAGE": "0"}, False),  # the text's is .01 by default, but nothing samples text
        ({}, {"TEXT": "0"}, True),
        ({"POLICY__LANGUAGE__MODEL": "x"}, {"IMAGE": "0"}, True),
        ({"POLICY__LANGUAGE__MODEL": "x", "POLICY__TRAINS": '["image"]'}, {"IMAGE": "0"}, False),
        (
            {"POLICY__LANGUAGE": '{model = "x", bridge = "queries"}', "POLICY__TRAINS": '["text"]'},
            {"TEXT": "0"},
            True,  # the images' decisions train the language model
        ),
    ],
)
def test_only_a_kl_term_of_what_is_trained_needs_a_reference(
    settings_from: Callable[..., TrainerSettings], policy: dict[str, str], betas: dict[str, str], needed: bool
) -> None:
    terms = {f"LOSS__{kind}__BETA": beta for kind, beta in betas.items()}
    assert settings_from(TEXT, **FLOW, **policy, **terms).needs_reference is needed


def test_another_size_or_text_length_is_another_evaluation() -> None:
    table = {"family": "flow", "model": "x"}
    settings = [read_policy({**table, **own}) for own in ({}, {"resolution": 512}, {"max_text_length": 8})]
    benchmark: Any = SimpleNamespace(prompts=())
    found = [json.dumps(command.conditions(benchmark, one, "weights", 0)) for one in settings]
    assert len(set(found)) == len(found)


def test_show_o_needs_no_family(tiny_settings: MakeSettings) -> None:
    assert tiny_settings().policy.family == "show_o"


SD35_MEDIUM = {  # stabilityai/stable-diffusion-3.5-medium, transformer/config.json
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "dual_attention_layers": list(range(13)),
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "sample_size": 128,
}


def test_flow_grpo_fits_the_published_configuration(weightless: Callable[[Family], Path]) -> None:
    """Of SD3.5 medium, without memory for its weights."""
    from diffusers import SD3Transformer2DModel

    directory = weightless("sd3")
    change(directory / "transformer/config.json", **SD35_MEDIUM)
    change(directory / "vae/config.json", block_out_channels=[128, 256, 512, 512], latent_channels=16)
    change(directory / "text_encoder/config.json", hidden_size=768, projection_dim=768)
    change(directory / "text_encoder_2/config.json", hidden_size=1280, projection_dim=1280)
    change(directory / "text_encoder_3/config.json", d_model=4096)
    settings = settings_of(CONFIGS / "sd35_flow_grpo.toml", {}).policy
    assert isinstance(settings, FlowSettings)
    parts = loading.Parts.find(directory, settings.resolution, settings.max_text_length)
    assert (parts.shapes.channels, parts.shapes.side, parts.shapes.text_length) == (16, 64, 128)
    with torch.device("meta"):
        transformer = SD3Transformer2DModel.from_config(parts.configs["transformer"])
    assert sum(one.numel() for one in transformer.parameters()) == pytest.approx(2.24e9, rel=0.01)
    layers = {target: len(targeted(transformer, (target,))) for target in settings.adapters.targets}
    assert layers.pop("attn.to_add_out") == 23  # the last block returns no texts
    assert set(layers.values()) == {24}

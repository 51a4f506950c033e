"""The trainer's settings: one frozen typed tree, the `[trainer]` table of a TOML. Imports no torch.

Relative paths resolve from the TOML's folder; `SYNOD__TRAINER__STEPS=5` overrides `steps`. Defaults are Sync-R1's
(table 4 and sec. 3), or our correction where we correct a formula. An unknown key, a bad value or a missing path
raises SettingsError, which names the key, the value and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from synod import toml


def _folder(info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder", Path.cwd())
    assert isinstance(folder, Path)
    return folder


def _source(source: str, info: ValidationInfo) -> str:
    return toml.model_source(source, _folder(info))


def _path(path: Path, info: ValidationInfo) -> Path:
    return (_folder(info) / path).resolve()


def _file(path: Path, info: ValidationInfo) -> Path:
    found = _path(path, info)
    if not found.is_file():
        raise ValueError(f"'{path}': no such file: {found}. Give a JSONL file of prompts")
    return found


def _directory(path: Path, info: ValidationInfo) -> Path:
    found = _path(path, info)
    if not found.is_dir():
        raise ValueError(f"'{path}': no such directory: {found}. Give a directory that exists")
    return found


ModelSource = Annotated[str, AfterValidator(_source)]
OutputPath = Annotated[Path, AfterValidator(_path)]
PromptFile = Annotated[Path, AfterValidator(_file)]
Directory = Annotated[Path, AfterValidator(_directory)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class _Node(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PolicySettings(_Node):
    """A Show-o directory or hub id, and its image tokenizer; null: the directory `vq` in `model`."""

    model: ModelSource
    vq: ModelSource | None = None


class DataSettings(_Node):
    """Prompts and concepts. `geneval_share` of the training prompts are GenEval's."""

    prompts: PromptFile
    heldout: PromptFile
    concepts: Directory
    geneval_share: float = Field(0.0, ge=0, le=1)


class SamplerSettings(_Node):
    """MaskGIT sampling; logits are (1 + g) * conditional - g * unconditional, with g `guidance_scale`."""

    denoising_steps: int = Field(50, ge=2)
    guidance_scale: float = Field(5.0, ge=0)
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(100, ge=1)


class ServiceSettings(_Node):
    """The reward service. `ensemble` rewards the images of concept prompts.

    An unavailable service is retried for `patience_s`.
    """

    url: str = Field("http://127.0.0.1:8000", pattern="^https?://")
    patience_s: float = Field(300.0, gt=0)
    ensemble: str = "sync_r1"


class ScreenSettings(_Node):
    """Dynamic Group Scaling: previews are drawn until `group_size` of them pass the threshold.

    They are drawn `preview_batch_size` at a time, at most `max_previews`, and scored after `screen_fraction` of the
    denoising steps. `threshold` names the controller in `trainer.grpo.threshold`; "none" keeps the first previews.
    """

    group_size: int = Field(9, ge=2)
    preview_batch_size: int = Field(12, ge=1)
    max_previews: int = Field(144, ge=2)
    screen_fraction: Fraction = 0.2
    threshold: Literal["quantile", "power", "paper", "none"] = "quantile"
    target_pass_rate: Fraction = 0.25

    @model_validator(mode="after")
    def _a_group_fits(self) -> ScreenSettings:
        if self.max_previews < self.group_size:
            raise ValueError(
                f"max_previews {self.max_previews} is below group_size {self.group_size}; allow at least the group"
            )
        return self


class LossSettings(_Node):
    """Sync-GRPO, eq. 9.

    `positions` "masked" scores sampled positions, "all" every position as in the paper. `scale` divides each modality
    by a constant, or sums as the paper does. `loss_step_fraction` of the denoising steps enter the loss, drawn at
    random and reweighted.
    """

    alpha_text: float = Field(0.4, ge=0)
    alpha_image: float = Field(0.6, ge=0)
    beta: float = Field(0.01, ge=0)
    positions: Literal["masked", "all"] = "masked"
    scale: Literal["per_modality_constant", "paper_sum"] = "per_modality_constant"
    baseline: Literal["group", "population"] = "group"
    loss_step_fraction: float = Field(1.0, gt=0, le=1)


class OptimizerSettings(_Node):
    """AdamW. The learning rate rises linearly over `warmup_steps` and then stays at `lr`."""

    lr: float = Field(1e-6, gt=0)
    warmup_steps: int = Field(0, ge=0)


class TrainerSettings(_Node):
    """The whole trainer. `run_dir` is the directory of checkpoints, metrics and images.

    Each step takes `prompts_per_step` prompts; a reward request holds `reward_batch_size` images. A checkpoint is
    written every `checkpoint_every` steps and at the end. `evaluation_prompts` are drawn before and after training.
    """

    seed: int = Field(0, ge=0)
    steps: int = Field(100, ge=1)
    prompts_per_step: int = Field(1, ge=1)
    reward_batch_size: int = Field(3, ge=1)
    checkpoint_every: int = Field(10, ge=1)
    evaluation_prompts: int = Field(200, ge=1)
    run_dir: OutputPath
    policy: PolicySettings
    data: DataSettings
    sampler: SamplerSettings = SamplerSettings()
    service: ServiceSettings = ServiceSettings()
    screen: ScreenSettings = ScreenSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()

    @property
    def screening_step(self) -> int:
        """The denoising step, 1 to T - 1, after which a preview is scored."""
        return round(self.screen.screen_fraction * self.sampler.denoising_steps)

    @model_validator(mode="after")
    def _a_step_before_and_after_the_screen(self) -> TrainerSettings:
        total = self.sampler.denoising_steps
        if not 1 <= self.screening_step < total:
            raise ValueError(
                f"screen.screen_fraction {self.screen.screen_fraction} of {total} denoising steps leaves no step "
                "before or after it; give a fraction nearer to 0.5"
            )
        return self


def load(path: str | Path, environ: Mapping[str, str] | None = None) -> TrainerSettings:
    """Read the `[trainer]` table of a TOML with environment overrides. Raises SettingsError."""
    path = Path(path)
    table = toml.read(path, environ).get("trainer", {})
    try:
        return TrainerSettings.model_validate(table, context={"folder": path.resolve().parent})
    except ValidationError as error:
        raise toml.settings_error(path, error.errors(), "trainer") from None

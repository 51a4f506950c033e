"""The trainer's settings: one frozen typed tree, the `[trainer]` table of a TOML. Knows no torch.

Relative paths resolve from the TOML's folder; `SYNOD__TRAINER__STEPS=5` overrides `steps`. Defaults are the paper's
where it has one (Sync-R1, table 4 and sec. 3), and where a formula of the paper was corrected, our correction's.
An unknown key, a bad value or a missing path is a SettingsError that names the key, the value and the way out.
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
Share = Annotated[float, Field(gt=0, lt=1)]


class _Node(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PolicySettings(_Node):
    """A model directory or hub id. `vq` (the image tokenizer) and `tokenizer` are looked for inside `model` if null."""

    family: Literal["show_o"] = "show_o"
    model: ModelSource
    vq: ModelSource | None = None
    tokenizer: ModelSource | None = None


class DataSettings(_Node):
    """`geneval_share` of the training prompts are GenEval's, which have no concept; the paper has none."""

    prompts: PromptFile
    heldout: PromptFile
    concepts: Directory
    geneval_share: float = Field(0.0, ge=0, le=1)


class SamplerSettings(_Node):
    """MaskGIT sampling; guided logits are (1 + guidance_scale) * conditional - guidance_scale * unconditional."""

    denoising_steps: int = Field(50, ge=2)
    guidance_scale: float = Field(5.0, ge=0)
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(100, ge=1)


class ServiceSettings(_Node):
    """The reward service. `timeout_s` bounds one request, `patience_s` how long a service that is away is waited for.

    Concept images are rewarded by `ensemble`, GenEval images by the scorer `geneval`, previews are screened by the
    scorer `surrogate`; `references` images of the concept go with each item.
    """

    url: str = Field("http://127.0.0.1:8000", pattern="^https?://")
    timeout_s: float = Field(60.0, gt=0)
    patience_s: float = Field(300.0, gt=0)
    ensemble: str = "sync_r1"
    surrogate: str = "ber"
    geneval: str = "geneval"
    references: int = Field(3, ge=1)


class QuantileThreshold(_Node):
    """Trend-aware tracking of the (1 - target_pass_rate) quantile of all surrogate scores.

    `start` null keeps all previews in a tracker's first iteration.
    """

    name: Literal["quantile"]
    target_pass_rate: Share = 0.25
    eta: float = Field(0.8, ge=0, lt=1)
    eps0: float = Field(2.0, ge=1)
    start: float | None = None


class PowerThreshold(_Node):
    """T ** (1 - mu * Delta): eq. 7 with the sign that converges, and no damping."""

    name: Literal["power"]
    target_pass_rate: Share = 0.25
    mu: float = Field(0.12, gt=0)
    start: Share


class PaperThreshold(_Node):
    """Eq. 7 as printed. It does not converge; it is here to reproduce the paper."""

    name: Literal["paper"]
    target_pass_rate: Share = 0.25
    mu: float = Field(0.12, gt=0)
    eta: float = Field(0.8, ge=0, lt=1)
    eps0: float = Field(2.0, ge=0)
    start: Share


class NoThreshold(_Node):
    """Every preview passes: plain GRPO on the first previews."""

    name: Literal["none"]


Threshold = Annotated[QuantileThreshold | PowerThreshold | PaperThreshold | NoThreshold, Field(discriminator="name")]


class ScreenSettings(_Node):
    """Dynamic Group Scaling: previews are drawn until `group_size` of them pass the threshold.

    They are drawn `preview_batch_size` at a time and scored after `screen_fraction` of the denoising steps.
    """

    group_size: int = Field(9, ge=2)
    preview_batch_size: int = Field(12, ge=1)
    max_previews: int = Field(144, ge=2)
    screen_fraction: Share = 0.2
    threshold: Threshold = QuantileThreshold(name="quantile")

    @model_validator(mode="after")
    def _a_group_fits(self) -> ScreenSettings:
        if self.max_previews < self.group_size:
            raise ValueError(
                f"max_previews {self.max_previews} is below group_size {self.group_size}; allow at least the group"
            )
        return self


class LossSettings(_Node):
    """Sync-GRPO, eq. 9. `positions` "masked" scores what was decided, "all" every position as the paper has it.

    `scale`: constants per modality, or the bare alphas of the paper. `min_valid` rewards make a group, a smaller one
    is skipped and counted. `loss_step_fraction` of the denoising steps enter the loss, drawn at random and reweighted.
    """

    alpha_text: float = Field(0.4, ge=0)
    alpha_image: float = Field(0.6, ge=0)
    beta: float = Field(0.01, ge=0)
    clip: Share = 0.2
    positions: Literal["masked", "all"] = "masked"
    scale: Literal["per_modality_constant", "paper_sum"] = "per_modality_constant"
    baseline: Literal["group", "population"] = "group"
    min_valid: int = Field(2, ge=2)
    loss_step_fraction: float = Field(1.0, gt=0, le=1)


class OptimizerSettings(_Node):
    """AdamW. The paper gives lr and max_grad_norm, its public code weight_decay."""

    lr: float = Field(1e-6, gt=0)
    weight_decay: float = Field(1e-3, ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    max_grad_norm: float = Field(1.0, gt=0)
    warmup_steps: int = Field(0, ge=0)


class CheckpointSettings(_Node):
    """A checkpoint `every` steps and at the end; the last `keep` stay."""

    every: int = Field(10, ge=1)
    keep: int = Field(2, ge=1)


class EvaluateSettings(_Node):
    """Held-out evaluation: `prompts` of them, one image each, `batch_size` at a time, from a seed of its own."""

    prompts: int = Field(200, ge=1)
    seed: int = Field(0, ge=0)
    batch_size: int = Field(20, ge=1)


class TrainerSettings(_Node):
    """The whole trainer. `run_dir` is the directory of checkpoints, metrics and images.

    `reward_batch_size` finished images make one reward request.
    """

    seed: int = Field(0, ge=0)
    steps: int = Field(100, ge=1)
    prompts_per_step: int = Field(1, ge=1)
    reward_batch_size: int = Field(3, ge=1)
    run_dir: OutputPath
    policy: PolicySettings
    data: DataSettings
    sampler: SamplerSettings = SamplerSettings()
    service: ServiceSettings = ServiceSettings()
    screen: ScreenSettings = ScreenSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    @property
    def screening_step(self) -> int:
        """The denoising step, 1 to T - 1, after which a preview is judged."""
        return round(self.screen.screen_fraction * self.sampler.denoising_steps)

    @model_validator(mode="after")
    def _parts_agree(self) -> TrainerSettings:
        total = self.sampler.denoising_steps
        if not 1 <= self.screening_step < total:
            raise ValueError(
                f"screen.screen_fraction {self.screen.screen_fraction} of {total} denoising steps leaves no step "
                "before or after it"
            )
        if self.loss.min_valid > self.screen.group_size:
            raise ValueError(
                f"loss.min_valid {self.loss.min_valid} is above screen.group_size {self.screen.group_size}"
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

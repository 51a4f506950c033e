"""The table `[personalize]`, which needs `[trainer.policy]` too, and its reader."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from synod import toml
from trainer.settings.fields import Directory, Node, OutputPath
from trainer.settings.policy import ShowOSettings

Regions = Literal["paper", "public", "full_image", "random_patch", "none"]


class TokenSettings(Node):
    """The numbers of soft tokens: `shared` (K), of `generation` (M), and of `understanding` (N)."""

    shared: int = Field(16, ge=0)
    generation: int = Field(8, ge=0)
    understanding: int = Field(8, ge=0)


class StageSettings(Node):
    """One stage: passes over its data, learning rate, and the questions and images of a batch.

    With 0 epochs its tokens keep the rows that they start with.
    """

    epochs: int = Field(20, ge=0)
    lr: float = Field(1e-3, gt=0)
    questions: int = Field(1, ge=1)
    images: int = Field(1, ge=1)


class Stage1Settings(StageSettings):
    """Stage 1, understanding; it draws no images."""

    lr: float = Field(1e-4, gt=0)
    questions: int = Field(4, ge=1)


class Stage2Settings(StageSettings):
    """Stage 2, generation."""


class Stage3Settings(StageSettings):
    """Stage 3, understanding from generated images."""

    lr: float = Field(1e-4, gt=0)


class PersonalizeSettings(Node):
    """Train the tokens of one concept in three stages (UniCTokens). Defaults are those of the paper.

    `data` is the concept's folder, and `run_dir` that of its stages; `run_dir`/concept is the result. `t2i_loss` is the
    loss of masked codes over the "codes", as images are sampled, or over the whole vocabulary as in the "public" code.
    An epoch asks each question that has no image `text_repeats` times; the paper once, but a small policy then learns
    few facts that only text states. `name_pull` is the weight of an l2 loss that pulls the name's rows to where the
    stage began; the paper has none.
    `initialise` "kmeans" starts soft tokens at centres of the images' codes; "public" leaves what the public code
    leaves as copies of image codes. `faces` is a file of face vectors (.npy, [count, size]), where a person's tokens of
    generation start. `regions` are the parts of drawn images where the tokens of stage 3 start. Prompts have {} for the
    name; `region_prompt` null is the public one of the concept's kind.
    """

    data: Directory
    run_dir: OutputPath
    seed: int = Field(0, ge=0)
    stages: tuple[Literal[1, 2, 3], ...] = Field((1, 2, 3), min_length=1)
    tokens: TokenSettings = TokenSettings()
    t2i_loss: Literal["codes", "public"] = "codes"
    text_repeats: int = Field(1, ge=1)
    name_pull: float = Field(0.0, ge=0)
    initialise: Literal["kmeans", "public"] = "kmeans"
    regions: Regions = "paper"
    faces: OutputPath | None = None
    prompt: str = "A photo of {}."
    region_prompt: str | None = None
    stage_1: Stage1Settings = Stage1Settings()
    stage_2: Stage2Settings = Stage2Settings()
    stage_3: Stage3Settings = Stage3Settings()
    policy: ShowOSettings

    def stage(self, number: int) -> StageSettings:
        """Return the settings of stage 1, 2 or 3."""
        return {1: self.stage_1, 2: self.stage_2, 3: self.stage_3}[number]

    @field_validator("prompt", "region_prompt")
    @classmethod
    def _names_the_concept(cls, prompt: str | None) -> str | None:
        if prompt is not None and "{}" not in prompt:
            raise ValueError("the prompt has no {}, which stands for the concept's name; add it")
        if prompt is not None and re.search("[{}]", prompt.replace("{}", "")):
            raise ValueError("the prompt has other braces than {}, which stands for the concept's name; leave them out")
        return prompt

    @model_validator(mode="after")
    def _stages_in_order(self) -> PersonalizeSettings:
        if list(self.stages) != list(range(self.stages[0], self.stages[-1] + 1)):
            raise ValueError(
                f"stages {list(self.stages)}: a stage begins with the rows of the one before; give stages that follow "
                "each other, such as [1, 2]"
            )
        return self


def load_personalize(path: str | Path, environ: Mapping[str, str] | None = None) -> PersonalizeSettings:
    """Read `[personalize]` and the base model of `[trainer.policy]`, with environment overrides. Raises SettingsError.

    What `[trainer.policy]` says of training (`train`, `lora`, `concepts`) is ignored: stages train rows of the base.
    """
    path = Path(path)
    tree = toml.read(path, environ)
    trainer = tree.get("trainer", {})
    policy = trainer.get("policy", {}) if isinstance(trainer, Mapping) else trainer
    if isinstance(policy, Mapping):
        policy = {key: value for key, value in policy.items() if key not in ("train", "lora", "concepts")}
    table: Any = tree.get("personalize", {})
    table = {**table, "policy": policy} if isinstance(table, Mapping) else table
    try:
        return PersonalizeSettings.model_validate(table, context={"folder": path.resolve().parent})
    except ValidationError as error:
        found = [_located(one) for one in error.errors()]
        raise toml.settings_error(path, found) from None


def _located(error: Any) -> Any:
    """Return pydantic's error with the key's place in the file."""
    key = error["loc"]
    table = ("trainer",) if key[:1] == ("policy",) else ("personalize",)
    return {**error, "loc": (*table, *key)}

"""Settings that several scorers share: a CLIP, a detector, a judge."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from services.settings_types import LocalPath, ModelSource, Node, ScorerSettings

_ENDPOINT = re.compile(r"https?://[^/@?#\s]+(/[^@?#\s]*)?")


class TransformersClipModel(Node):
    """A CLIPModel directory or hub id, with its processor."""

    family: Literal["transformers"]
    model: ModelSource


class OpenClipModel(Node):
    """An open_clip directory, or one of its names with the name of its weights."""

    family: Literal["open_clip"]
    model: ModelSource
    pretrained: str | None = None


ClipModel = Annotated[TransformersClipModel | OpenClipModel, Field(discriminator="family")]


class SemanticDetector(Node):
    """Semantic segmentation plus connected components."""

    family: Literal["semantic"]
    model: ModelSource
    min_area: int = Field(12, ge=1)


class Mask2FormerDetector(Node):
    """Instance segmentation by Mask2Former (GenEval's own family)."""

    family: Literal["mask2former"]
    model: ModelSource


DetectorSettings = Annotated[SemanticDetector | Mask2FormerDetector, Field(discriminator="family")]


class JudgeLimits(Node):
    """What a judge may take, by each replica of its scorer for itself.

    `timeout_s` is for one request, `patience_s` for a verdict with its retries and waits. `max_tokens` (prompt and
    completion) and `max_dollars` hold from a replica's start to its end; what is asked after that fails. Prices are in
    dollars for a million tokens.
    """

    timeout_s: float = Field(60.0, gt=0)
    patience_s: float = Field(180.0, gt=0)
    concurrency: int = Field(8, ge=1)
    requests_per_minute: float | None = Field(None, gt=0)
    max_tokens: int | None = Field(None, ge=1)
    max_dollars: float | None = Field(None, gt=0)
    dollars_per_million_prompt: float | None = Field(None, ge=0)
    dollars_per_million_completion: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _dollars_have_prices(self) -> JudgeLimits:
        prices = (self.dollars_per_million_prompt, self.dollars_per_million_completion)
        if self.max_dollars is not None and None in prices:
            raise ValueError("max_dollars needs dollars_per_million_prompt and dollars_per_million_completion")
        return self


class JudgeEndpoint(ScorerSettings):
    """A model behind OpenAI's chat completions: `url` ends where `/chat/completions` begins, as "http://host:8000/v1".

    The key is in an environment variable or a file (never here); without either, none is sent.
    """

    remote: ClassVar[bool] = True
    url: str
    model: str = Field(min_length=1)
    key_env: str | None = None
    key_file: LocalPath | None = None
    max_answer_tokens: int = Field(512, ge=16)
    limits: JudgeLimits = JudgeLimits()

    @model_validator(mode="after")
    def _one_key(self) -> JudgeEndpoint:
        if self.key_env is not None and self.key_file is not None:
            raise ValueError("both 'key_env' and 'key_file': give one of them")
        return self

    @model_validator(mode="after")  # not of the field: such a mistake's value would be shown, and it may hold a key
    def _plain_url(self) -> JudgeEndpoint:
        if not _ENDPOINT.fullmatch(self.url):
            raise ValueError(
                "url: give http(s)://host:port/path without user, password or query; keys: key_env, key_file"
            )
        return self

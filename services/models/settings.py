"""Settings that several scorers share: a CLIP, a detector, a judge."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from services.settings_types import LocalPath, ModelSource, Node, ScorerSettings

_ENDPOINT = re.compile(r"https?://[^/@?#\s]+(/[^@?#\s]*)?")


class ClipModel(Node):
    """A CLIP: "transformers" takes a directory or hub id of a CLIPModel with its processor; "open_clip" an open_clip
    directory, or one of its names with the name of its weights (`pretrained`).
    """

    family: Literal["transformers", "open_clip"]
    model: ModelSource
    pretrained: str | None = None

    @model_validator(mode="after")
    def _pretrained_needs_open_clip(self) -> ClipModel:
        if self.pretrained is not None and self.family != "open_clip":
            raise ValueError(f"pretrained = '{self.pretrained}' names weights of open_clip: set family = \"open_clip\"")
        return self


class DetectorSettings(Node):
    """An object detector: "mask2former" (instance segmentation, GenEval's own family) or "semantic" (semantic
    segmentation, of which each connected component is an object).
    """

    family: Literal["semantic", "mask2former"]
    model: ModelSource


class JudgeLimits(Node):
    """Limits of a judge, for each replica of its scorer separately.

    `timeout_s` is for one request; a verdict with its retries and waits has three times as long. `max_tokens` (prompt
    and completion) counts from a replica's start; questions beyond it fail.
    """

    timeout_s: float = Field(60.0, gt=0)
    concurrency: int = Field(8, ge=1)
    requests_per_minute: float | None = Field(None, gt=0)
    max_tokens: int | None = Field(None, ge=1)

    @property
    def verdict_timeout_s(self) -> float:
        """Return how long a verdict may take with its retries and waits."""
        return 3 * self.timeout_s


class JudgeEndpoint(ScorerSettings):
    """A model behind OpenAI's chat completions API; `url` is the part before `/chat/completions`.

    The key comes from an environment variable or a file, never from the TOML; without either, none is sent.
    """

    calls_external_api: ClassVar[bool] = True
    url: str
    model: str = Field(min_length=1)
    key_env: str | None = None
    key_file: LocalPath | None = None
    limits: JudgeLimits = JudgeLimits()

    @model_validator(mode="after")
    def _one_key(self) -> JudgeEndpoint:
        if self.key_env is not None and self.key_file is not None:
            raise ValueError("both 'key_env' and 'key_file': give one of them")
        return self

    @model_validator(mode="after")  # of the table: a field's error would show the URL, which may hold a key
    def _plain_url(self) -> JudgeEndpoint:
        if not _ENDPOINT.fullmatch(self.url):
            raise ValueError(
                "url: give http(s)://host:port/path without user, password or query; keys: key_env, key_file"
            )
        return self

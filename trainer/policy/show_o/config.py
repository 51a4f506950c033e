"""Show-o's config.json."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from synod.errors import SettingsError
from trainer.policy.show_o.phi import PhiConfig
from trainer.policy.weights import read_config


@dataclass(frozen=True)
class ShowOConfig:
    """The config.json, with the public field names; `llm` overrides Phi-1.5's shape."""

    vocab_size: int
    codebook_size: int = 8192
    num_vq_tokens: int = 1024
    max_text_length: int = 128
    llm_model_path: str = "microsoft/phi-1_5"
    w_clip_vit: bool = False
    concept_tokens: tuple[str, ...] = ()
    llm: dict[str, Any] | None = None

    @classmethod
    def read(cls, directory: Path) -> ShowOConfig:
        """Read config.json. Raises SettingsError for a model that this code cannot run."""
        known = {f.name for f in fields(cls)}
        stored = {k: tuple(v) if isinstance(v, list) else v for k, v in read_config(directory).items() if k in known}
        values: dict[str, Any] = stored
        try:
            config = cls(**values)
            _ = config.phi
        except TypeError as error:
            raise SettingsError(f"policy {directory}: config.json does not describe a Show-o ({error})") from None
        if config.w_clip_vit:
            raise SettingsError(f"policy {directory}: w_clip_vit is true; give a Show-o with VQ input")
        return config

    @property
    def phi(self) -> PhiConfig:
        return PhiConfig(self.vocab_size, **(self.llm or {}))

"""Show-o's config.json."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synod.errors import SettingsError
from trainer.policy.show_o.phi import PhiConfig
from trainer.policy.show_o.vocabulary import NUM_ADDED, ConceptTokens
from trainer.policy.weights import parse_config, read_config


@dataclass(frozen=True)
class ShowOConfig:
    """The config.json, with the public field names; `llm` overrides Phi-1.5's shape.

    `concept_tokens` are names that the model was trained with from the start, `personal` the concepts that were added
    to it (see `ConceptTokens`).

    `llm_vocab_size` (the tokenizer before Show-o's tokens) and `mask_token_id` follow from the others; a file that has
    them must agree.
    """

    vocab_size: int
    codebook_size: int = 8192
    num_vq_tokens: int = 1024
    max_text_length: int = 128
    llm_model_path: str = "microsoft/phi-1_5"
    w_clip_vit: bool = False
    concept_tokens: tuple[str, ...] = ()
    llm: dict[str, Any] | None = None
    llm_vocab_size: int | None = None
    mask_token_id: int | None = None
    personal: tuple[ConceptTokens, ...] = ()

    @classmethod
    def read(cls, directory: Path, source: str | None = None) -> ShowOConfig:
        """Read config.json; `source` names the model in errors (default: the directory).

        Raises SettingsError for a model that this code cannot run.
        """
        where, stored = f"policy {source or directory}", read_config(directory)
        if (kind := stored.get("_class_name", "Showo")) != "Showo":
            raise SettingsError(f"{where}: config.json describes a '{kind}', expected 'Showo'; give a Show-o")
        config = parse_config(cls, stored, f"{where}: config.json does not describe a Show-o")
        config._check(where)
        return config

    @property
    def phi(self) -> PhiConfig:
        return PhiConfig(self.vocab_size, **(self.llm or {}))

    def _check(self, where: str) -> None:
        if self.w_clip_vit:
            raise SettingsError(
                f"{where}: a CLIP-ViT variant (w_clip_vit is true): it reads images by CLIP features, which are not "
                "supported; give the variant that reads image codes, such as showlab/show-o-512x512 or showlab/show-o"
            )
        if math.isqrt(max(self.num_vq_tokens, 0)) ** 2 != self.num_vq_tokens or self.num_vq_tokens < 1:
            raise SettingsError(f"{where}: num_vq_tokens is {self.num_vq_tokens}; a square image has 4, 9, .. 1024")
        if self.mask_token_id not in (None, self.vocab_size - 1):
            raise SettingsError(
                f"{where}: mask_token_id is {self.mask_token_id}, but the last of vocab_size {self.vocab_size} tokens "
                f"is {self.vocab_size - 1}; give the model's own config.json"
            )
        concepts = len(self.concept_tokens) + sum(concept.count for concept in self.personal)
        added = NUM_ADDED + concepts + self.codebook_size + 1
        if self.llm_vocab_size is not None and self.llm_vocab_size + added != self.vocab_size:
            raise SettingsError(
                f"{where}: vocab_size is {self.vocab_size}, but llm_vocab_size {self.llm_vocab_size} and {added} more "
                f"({NUM_ADDED} special tokens, {concepts} concept tokens, {self.codebook_size} codes "
                f"and the mask) make {self.llm_vocab_size + added}; give the model's own config.json"
            )
        try:
            parse_config(PhiConfig, vars(self.phi), f"{where}: config.json, llm")
        except TypeError as error:
            raise SettingsError(f"{where}: config.json does not describe a Show-o (llm: {error})") from None

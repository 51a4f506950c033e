"""Read a Show-o directory or hub id, as published: `load("showlab/show-o-512x512")`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from synod.errors import SettingsError
from trainer.policy.show_o.config import ShowOConfig
from trainer.policy.show_o.magvit import Magvit
from trainer.policy.show_o.policy import Sampling, ShowO
from trainer.policy.show_o.vocabulary import Vocabulary
from trainer.policy.weights import Source, check_weights, directory_of, parameters_on_meta, read_config, read_weights

DEFAULT: Final = Sampling()
PUBLIC_VQ: Final = "showlab/magvitv2"  # of every published Show-o, whose config.json names none


@dataclass(frozen=True)
class Parts:
    """The sources of a policy's parts, and its config.json; None: the part is in the model's directory."""

    model: str
    vq: str | None
    tokenizer: str | None
    config: ShowOConfig

    @classmethod
    def find(cls, model: str | Path, vq: str | Path | None = None) -> Parts:
        """Read the model's config.json, without its weights, and find the other parts.

        The image tokenizer is `vq`, else the directory `vq` in the model's, else the public one if config.json is of a
        published model. The text tokenizer is in the model directory, else config.json names it. Raises SettingsError.
        """
        directory = directory_of(model, configs_only=True)
        config = ShowOConfig.read(directory, str(model))
        found = None if vq is None else str(vq)
        if vq is None and not (directory / "vq").is_dir():
            if "_class_name" not in read_config(directory):
                raise SettingsError(f"policy {model} has no directory 'vq'; give its image tokenizer as `vq`")
            found = PUBLIC_VQ
        has_tokenizer = (directory / "tokenizer_config.json").exists()
        if not has_tokenizer and not config.llm_model_path:
            raise SettingsError(
                f"policy {model} has no tokenizer_config.json, and its config.json no llm_model_path; "
                "copy the tokenizer's files into the directory"
            )
        return cls(str(model), found, None if has_tokenizer else config.llm_model_path, config)

    def sources(self) -> list[Source]:
        """Return the sources of the parts, the model first."""
        found = [Source("policy.model", self.model)]
        found += [] if self.vq is None else [Source("policy.vq", self.vq)]
        found += [] if self.tokenizer is None else [Source("policy.tokenizer", self.tokenizer, configs_only=True)]
        return found


def load(
    model: str | Path,
    *,
    vq: str | Path | None = None,
    dtype: torch.dtype | None = torch.float32,
    sampling: Sampling = DEFAULT,
    concepts: Iterable[str] = (),
) -> ShowO:
    """Read a Show-o directory or hub id ('org/name' or 'org/name@REVISION') and its parts (see `Parts.find`).

    The weights have `dtype`; None keeps their stored type. Weights that are trained need float32: an update of 1e-6 is
    lost in bfloat16. Memory peaks at the weights and one tensor more. `concepts` are names that the prompts will use.
    Raises SettingsError for files that are missing or do not fit, and for a concept that is not a token.
    """
    parts = Parts.find(model, vq)
    directory = directory_of(parts.model)
    policy = build(parts, directory, sampling, concepts)
    read_weights(policy.module, directory, dtype)
    policy.module.eval()
    return policy


def check(parts: Parts, concepts: Iterable[str] = ()) -> None:
    """Check that the files of all parts are there and fit, without reading the policy's weights.

    Downloads what is missing. Raises SettingsError as `load` does.
    """
    directory = directory_of(parts.model)
    check_weights(build(parts, directory, DEFAULT, concepts).module, directory)


def build(parts: Parts, directory: Path, sampling: Sampling, concepts: Iterable[str]) -> ShowO:
    """Return the policy of a model directory with its tokenizers, but without memory for its weights."""
    config, words = parts.config, directory
    if parts.tokenizer is not None:
        words = directory_of(parts.tokenizer, configs_only=True, what="tokenizer")
    vocab = Vocabulary.read(words, config.concept_tokens, config.codebook_size, config.max_text_length)
    vocab = vocab.with_personal(config.personal)
    if split := vocab.split(concepts):
        raise SettingsError(
            f"policy {parts.model} has no token for {len(split)} of the concepts, {', '.join(split[:3])}: it would "
            "read each as several tokens without meaning; train them by `synod personalize` and give the directories "
            "that it writes in [trainer.policy] concepts (`synod evaluate --concepts`), or give a policy that has them "
            "(concept_tokens in its config.json), or prompts without concepts"
        )
    vq = directory / "vq" if parts.vq is None else directory_of(parts.vq, what="image tokenizer")
    tokens = Magvit.load(vq)
    with parameters_on_meta():
        return ShowO(config, vocab, tokens, sampling)

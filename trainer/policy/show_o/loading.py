"""Read a Show-o directory or hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from trainer.policy.show_o.config import ShowOConfig
from trainer.policy.show_o.magvit import Magvit
from trainer.policy.show_o.policy import Sampling, ShowO
from trainer.policy.show_o.vocabulary import Vocabulary
from trainer.policy.weights import directory_of, read_weights

DEFAULT: Final = Sampling()


def load(model: str | Path, *, vq: str | Path | None = None, sampling: Sampling = DEFAULT) -> ShowO:
    """Read a Show-o directory or hub id.

    `vq` is the image tokenizer, by default the directory `vq` in the model's. The text tokenizer is the model
    directory's, or the one that config.json names. Raises SettingsError for files that are missing or do not fit.
    """
    directory = directory_of(model)
    config = ShowOConfig.read(directory)
    source = directory if (directory / "tokenizer_config.json").exists() else config.llm_model_path
    vocab = Vocabulary.read(source, config.concept_tokens, config.codebook_size, config.max_text_length)
    tokens = Magvit.load(directory_of(vq or directory / "vq"))
    policy = ShowO(config, vocab, tokens, sampling)
    read_weights(policy.module, directory)
    policy.module.eval()
    return policy

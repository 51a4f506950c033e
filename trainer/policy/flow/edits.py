"""Editing: what lets a SANA transformer read a source image.

As in UniRL-Zero (arXiv 2510.17937, app. A.3) the source's latents have an embedding of their own, a copy of that of the
noisy latents, and a linear layer that starts at zero adds it to theirs. So a new editor draws what the pipeline draws.
The source's latents are noised, .8 z + .2 noise; without a source they are zeros. A hook on `patch_embed` adds them, so
that the transformer stays diffusers' class. Suffixes: B rows, C H W of a latent, N patches, W the transformer's width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

from torch import Tensor, nn

from synod.errors import SettingsError
from trainer.policy.weights import check_weights, parameters_on_meta, read_weights, write_weights

EDITS: Final = "edits"  # in a pipeline's directory
REFERENCES: Final = "references"  # in the transformer
WEIGHTS: Final = "model.safetensors"
CLEAN, NOISE = 0.8, 0.2  # of the source's latents, and of the noise that is added


class References(nn.Module):
    """The embedding of source latents. `given` sets them for the transformer's calls in its context."""

    def __init__(self, patch_embed: nn.Module, width: int) -> None:
        super().__init__()
        self.ref_embed = copy.deepcopy(patch_embed)
        self.ref_linear = nn.Linear(width, width)
        nn.init.zeros_(self.ref_linear.weight)
        nn.init.zeros_(self.ref_linear.bias)
        self._latents: Tensor | None = None

    @contextmanager
    def given(self, latents_BCHW: Tensor) -> Iterator[None]:
        self._latents = latents_BCHW
        try:
            yield
        finally:
            self._latents = None

    def add(self, _: nn.Module, arguments: tuple[Any, ...], embedded_BNW: Tensor) -> Tensor:
        """Return the embedded noisy latents with those of the source: the hook on `patch_embed`."""
        assert self._latents is not None, "the transformer was called outside of `given`"
        found: Tensor = embedded_BNW + self.ref_linear(self.ref_embed(self._latents))
        return found


def attach(transformer: nn.Module, directory: Path | None = None) -> None:
    """Let a SanaTransformer2DModel read source latents, by the weights in `directory` or new ones.

    Raises SettingsError for a transformer of another class, and for weights that do not fit.
    """
    patch_embed, found = _embedding(transformer), _new_references(transformer)
    if directory is not None:
        read_weights(found, directory)
    transformer.add_module(REFERENCES, found.requires_grad_(True))
    patch_embed.register_forward_hook(found.add)  # a bound method, so that a copy of the transformer has its own


def check(transformer: nn.Module, directory: Path) -> None:
    """Compare keys and shapes of the weights in `directory` with those that `attach` needs, without reading them.

    The transformer may be without memory. Raises SettingsError.
    """
    with parameters_on_meta():
        found = _new_references(transformer)
    check_weights(found, directory)


def _new_references(transformer: nn.Module) -> References:
    config = cast(Any, transformer.config)
    return References(_embedding(transformer), config.num_attention_heads * config.attention_head_dim)


def _embedding(transformer: nn.Module) -> nn.Module:
    found = transformer.patch_embed
    assert isinstance(found, nn.Module)
    return found


def references_of(transformer: nn.Module) -> References | None:
    """Return what `attach` added, or None."""
    found = getattr(transformer, REFERENCES, None)
    assert found is None or isinstance(found, References)
    return found


def noised(latent: Tensor, noise: Tensor) -> Tensor:
    """Return the source latents that the transformer reads."""
    return CLEAN * latent + NOISE * noise


def split(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the transformer's own weights, and those of what `attach` added."""
    start = f"{REFERENCES}."
    own = {key: value for key, value in state.items() if not key.startswith(start)}
    return own, {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}


def save(state: dict[str, Tensor], directory: Path) -> None:
    """Write the weights of what `attach` added."""
    directory.mkdir(parents=True, exist_ok=True)
    write_weights(state, directory, WEIGHTS)


def check_adapters(transformer: nn.Module, targets: Sequence[str], where: str) -> None:
    """Raise SettingsError if adapters would freeze layers that read nothing of a source yet."""
    added = references_of(transformer)
    if added is None or added.ref_linear.weight.any() or any(t.rpartition(".")[2] == "ref_linear" for t in targets):
        return
    raise SettingsError(
        "[trainer.policy] edits = true adds new layers, which read nothing of a source, and lora freezes them: "
        f"{where} has no directory '{EDITS}' with trained ones; add \"ref_linear\" to [trainer.policy.lora] targets, "
        "give a trained editor, or remove lora"
    )


def check_editor(transformer: str, where: str) -> None:
    """Raise SettingsError unless this class of transformer can be attached to."""
    if transformer != "SanaTransformer2DModel":
        raise SettingsError(
            f"[trainer.policy] edits = true adds layers to a SanaTransformer2DModel, but {where} has a {transformer}; "
            "give a SANA pipeline, or edits = false"
        )

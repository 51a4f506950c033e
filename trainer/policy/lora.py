"""Low-rank adapters on a policy's linear layers (Hu et al. 2022), injected and saved by peft.

A targeted layer computes W x + b + alpha / rank * B A x. A starts random and B at 0, so a new adapter changes nothing;
W and b are frozen, so switching the adapters off always gives the policy as it was loaded. peft takes seconds to
import: only functions import it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from synod.errors import SettingsError
from trainer.policy.weights import state_of

ADAPTER_FILE = "adapter_model.safetensors"  # with adapter_config.json, the names that peft's loader expects
KEY_PREFIX = "base_model.model."  # of the keys in that file: peft's wrappers around the module
_NAME = "default"  # of the only adapter in the module


class Lora:
    """The adapters of one module, injected on construction; peft leaves a gradient to them alone.

    `targets` are names of linear layers, or ends of names: "q_proj" is that layer of every block. `seed` alone decides
    the start of A, rounded to the base's dtype; the adapters are float32, and a base in bfloat16 needs autocast. `base`
    is the model directory or hub id of the module, to be stored with the adapters. `bypassed` maps layers whose weights
    are read without calling them to the reason; an adapter there would have no effect. Raises SettingsError for a
    target that matches no linear layer, or a bypassed one.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        rank: int,
        alpha: int,
        targets: Sequence[str],
        seed: int,
        base: str,
        bypassed: Mapping[str, str] | None = None,
    ) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        _check(module, targets, bypassed or {})
        self.module = module
        self._config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), base_model_name_or_path=base)
        with torch.random.fork_rng(devices=[]):  # A is drawn on the CPU
            torch.manual_seed(seed)
            inject_adapter_in_model(self._config, module, _NAME)
        self._layers: dict[str, Any] = {n: m for n, m in module.named_modules() if isinstance(m, LoraLayer)}
        for layer in self._layers.values():
            layer.lora_A.float()
            layer.lora_B.float()
            layer.cast_input_dtype_enabled = False  # autocast casts; peft's copy would be kept for the backward pass

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Switch the adapters off within the block: the module is its base, bit for bit."""
        trained = [p for layer in self._layers.values() for p in layer.parameters() if p.requires_grad]
        for layer in self._layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.enable_adapters(True)
                layer.requires_grad_(False)  # peft has them trained again, frozen ones too
            for parameter in trained:
                parameter.requires_grad_(True)

    def merged(self) -> dict[str, Tensor]:
        """Return a float32 state dict with W + alpha / rank * B A, under the keys from before the injection."""
        state = {
            key.replace(".base_layer.", "."): value.float() if value.is_floating_point() else value
            for key, value in state_of(self.module).items()
            if ".lora_A." not in key and ".lora_B." not in key
        }
        for name, layer in self._layers.items():
            state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight(_NAME).detach()
        return state

    def is_on(self, part: str) -> bool:
        """Return whether the submodule of this name has adapters."""
        return bool(self._names(f"{part}."))

    def save(self, directory: Path, *, part: str = "", base: str | None = None) -> None:
        """Write adapter_config.json and adapter_model.safetensors, which `PeftModel.from_pretrained` reads.

        With `part` these are the adapters of the submodule of this name alone, for the model that it is by itself;
        `base` is where that comes from, by default where the module does.
        """
        from peft import get_peft_model_state_dict

        directory.mkdir(parents=True, exist_ok=True)
        config = copy.copy(self._config)
        config.inference_mode = True
        start = f"{part}." if part else ""
        if part:
            names = self._names(start)
            chosen = [target for target in config.target_modules if any(_matches(name, target) for name in names)]
            config.target_modules = sorted(target.removeprefix(start) for target in chosen)
        if base is not None:
            config.base_model_name_or_path = base
        config.save_pretrained(str(directory))
        state = get_peft_model_state_dict(
            self.module, state_of(self.module), adapter_name=_NAME, save_embedding_layers=False
        )
        tensors = {
            KEY_PREFIX + key.removeprefix(start): value.contiguous()
            for key, value in state.items()
            if key.startswith(start)
        }
        save_file(tensors, directory / ADAPTER_FILE, metadata={"format": "pt"})

    def _names(self, start: str) -> list[str]:
        """Return the names of the layers with adapters that begin with `start`."""
        return [name for name in self._layers if name.startswith(start)]


def targeted(module: nn.Module, targets: Sequence[str]) -> list[nn.Linear]:
    """Return the layers that adapters of these targets would be on."""
    return [layer for name, layer in _linear_layers(module).items() if any(_matches(name, t) for t in targets)]


def _linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _check(module: nn.Module, targets: Sequence[str], bypassed: Mapping[str, str]) -> None:
    """Raise SettingsError unless every target names linear layers that the module calls."""
    names = _linear_layers(module)
    possible = dict.fromkeys(last for name in names if (last := name.rpartition(".")[2]) not in bypassed)
    for target in targets:
        where = f"[trainer.policy.lora] targets: '{target}'"
        reason = bypassed.get(target.rpartition(".")[2])
        if reason is not None:
            raise SettingsError(f"{where} cannot have an adapter: {reason}. Give some of {', '.join(possible)}")
        if not any(_matches(name, target) for name in names):
            raise SettingsError(f"{where} matches no linear layer of the policy. Give some of {', '.join(possible)}")

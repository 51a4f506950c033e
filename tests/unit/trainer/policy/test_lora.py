"""Adapters of the tiny Show-o: exact at the start and when off, their files, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synod.errors import SettingsError
from trainer.policy.lora import Lora
from trainer.policy.show_o.policy import ShowO

MakePolicy = Callable[..., ShowO]
ALL = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")
IDS = torch.arange(40).reshape(4, 10)


def logits(module: nn.Module, *, autocast: bool = False) -> Tensor:
    phi: Any = module.showo
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return phi.logits(phi(IDS, None), 0, phi.config.vocab_size)  # type: ignore[no-any-return]


def inject(module: nn.Module, targets: tuple[str, ...] = ALL, seed: int = 0, **options: Any) -> Lora:
    return Lora(module, **{"rank": 4, "alpha": 8, "targets": targets, "seed": seed, "base": "hub/base", **options})


def train(module: nn.Module, steps: int = 2, *, autocast: bool = False) -> None:
    """Move every adapter from its start: B is 0 in the first step, so A moves from the second."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.02)
    for step in range(steps):
        optimizer.zero_grad()
        out = logits(module, autocast=autocast)
        (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(step))).sum().backward()
        optimizer.step()


def in_bfloat16(module: nn.Module) -> nn.Module:
    """The module with the linear layers of its blocks in bfloat16."""
    blocks: Any = module.showo
    for layer in blocks.model.layers.modules():
        if isinstance(layer, nn.Linear):
            layer.bfloat16()
    return module


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def adapters(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items() if ".lora_" in key}


def test_a_new_adapter_changes_no_output(make_policy: MakePolicy) -> None:
    policy = make_policy()
    base = logits(policy.module)
    inject(policy.module)
    assert torch.equal(logits(policy.module), base)


def test_disabled_adapters_equal_the_base_after_training(make_policy: MakePolicy) -> None:
    policy = make_policy()
    base, weights = logits(policy.module), dict(policy.module.state_dict())
    lora = inject(policy.module)
    train(policy.module)
    trained = logits(policy.module)
    with lora.disabled():
        assert torch.equal(logits(policy.module), base)
    assert torch.equal(logits(policy.module), trained)
    assert distance(trained, base) > 0.1
    state = {key.replace(".base_layer.", "."): value for key, value in policy.module.state_dict().items()}
    assert all(torch.equal(state[key], value) for key, value in weights.items())


def test_adapters_are_on_again_after_an_error(make_policy: MakePolicy) -> None:
    policy = make_policy()
    lora = inject(policy.module)
    train(policy.module)
    trained = logits(policy.module)
    with pytest.raises(KeyError), lora.disabled():
        raise KeyError
    assert torch.equal(logits(policy.module), trained)
    assert all(p.requires_grad for name, p in policy.module.named_parameters() if ".lora_" in name)


def test_a_reference_pass_leaves_gradients_unchanged(make_policy: MakePolicy) -> None:
    """The reference is computed between a forward pass and its backward pass."""
    found = []
    for with_reference in (False, True):
        module = make_policy().module
        lora = inject(module)
        train(module)
        module.zero_grad()
        out = logits(module)
        if with_reference:
            with lora.disabled(), torch.no_grad():
                logits(module)
        out.square().sum().backward()
        found.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    assert len(found[0]) == 2 * 2 * len(ALL)
    assert found[0].keys() == found[1].keys()
    assert all(gradient.any() and torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


def test_only_the_targets_adapters_are_trained(make_policy: MakePolicy) -> None:
    module = make_policy().module
    inject(module, ("q_proj", "fc2"))
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trained == {
        f"showo.model.layers.{i}.{target}.lora_{half}.default.weight"
        for i in range(2)
        for target in ("self_attn.q_proj", "mlp.fc2")
        for half in "AB"
    }


def test_one_layer_is_targeted_by_its_whole_name(make_policy: MakePolicy) -> None:
    module = make_policy().module
    inject(module, ("showo.model.layers.1.mlp.fc1", "layers.0.self_attn.dense"))
    owners = {key.partition(".lora_")[0] for key in adapters(module)}
    assert owners == {"showo.model.layers.1.mlp.fc1", "showo.model.layers.0.self_attn.dense"}


def test_the_seed_alone_decides_the_start(make_policy: MakePolicy) -> None:
    starts = []
    for seed, targets, noise in ((0, ALL, 1), (0, ALL[::-1], 2), (1, ALL, 1)):
        module = make_policy().module
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        inject(module, targets, seed)
        assert torch.equal(torch.get_rng_state(), before)
        starts.append(adapters(module))
    assert all(torch.equal(starts[0][key], value) for key, value in starts[1].items())
    for key, value in starts[2].items():
        assert torch.equal(starts[0][key], value) == (".lora_B." in key)


def test_a_layer_computes_the_formula(make_policy: MakePolicy) -> None:
    """W x + b + alpha / rank * B A x."""
    module: Any = make_policy().module
    inject(module, rank=3, alpha=12)
    train(module)
    layer, x = module.showo.model.layers[1].mlp.fc1, torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
    assert (a.shape, b.shape) == ((3, 64), (128, 3))
    expected = x @ (layer.weight + 12 / 3 * b @ a).T + layer.bias
    assert torch.allclose(layer(x), expected, atol=1e-5)


# -- numeric types ----------------------------------------------------------------------------------------------------


def test_adapters_of_a_bfloat16_base_are_float32(make_policy: MakePolicy) -> None:
    module = in_bfloat16(make_policy().module)
    base = logits(module, autocast=True)
    lora = inject(module)
    assert {value.dtype for value in adapters(module).values()} == {torch.float32}
    assert torch.equal(logits(module, autocast=True), base)
    train(module, autocast=True)
    assert not torch.equal(logits(module, autocast=True), base)
    with lora.disabled():
        assert torch.equal(logits(module, autocast=True), base)
    assert {value.dtype for value in lora.merged().values()} == {torch.float32}


def test_a_bfloat16_base_equals_autocast_of_its_float32(make_policy: MakePolicy) -> None:
    """Bit for bit: products round the weights to bfloat16 in any case."""
    single, half = make_policy().module, in_bfloat16(make_policy().module)
    assert torch.equal(logits(single, autocast=True), logits(half, autocast=True))


def test_an_adapter_keeps_no_copy_of_its_input(make_policy: MakePolicy) -> None:
    module: Any = in_bfloat16(make_policy().module)
    inject(module)
    x, kept = torch.randn(3, 128).bfloat16(), list[Tensor]()

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module.showo.model.layers[0].mlp.fc2(x)
    inputs = [tensor for tensor in kept if tensor.shape == x.shape]
    assert inputs
    assert all(tensor.data_ptr() == x.data_ptr() for tensor in inputs)


def test_merging_keeps_what_bfloat16_would_lose(make_policy: MakePolicy) -> None:
    module: Any = in_bfloat16(make_policy().module)
    lora = inject(module)
    layer = module.showo.model.layers[0].mlp.fc2
    layer.lora_B.default.weight.data.fill_(1e-6)
    delta = lora.merged()["showo.model.layers.0.mlp.fc2.weight"] - layer.base_layer.weight.float()
    expected = (2 * layer.lora_B.default.weight @ layer.lora_A.default.weight).detach()
    assert distance(delta, expected) < 2**-24  # of weights below 1
    assert distance(expected, torch.zeros(())) > 1e-7


# -- files ------------------------------------------------------------------------------------------------------------


def test_merged_weights_equal_base_and_adapter(make_policy: MakePolicy) -> None:
    policy = make_policy()
    keys = list(policy.module.state_dict())
    lora = inject(policy.module)
    train(policy.module)
    merged = lora.merged()
    assert sorted(merged) == sorted(keys)
    other = make_policy().module
    other.load_state_dict(merged)
    assert distance(logits(other), logits(policy.module)) < 1e-5
    assert distance(logits(other), logits(make_policy().module)) > 0.1


def test_pefts_own_loader_reads_the_adapter(make_policy: MakePolicy, tmp_path: Path) -> None:
    from peft import PeftModel

    module = make_policy().module
    lora = inject(module)
    train(module)
    lora.save(tmp_path)
    other = make_policy().module
    loaded = PeftModel.from_pretrained(other, tmp_path)
    assert torch.equal(logits(other), logits(module))
    config = loaded.peft_config["default"]
    assert (config.r, config.lora_alpha, set(config.target_modules)) == (4, 8, set(ALL))
    assert config.base_model_name_or_path == "hub/base"


def test_the_files_are_those_that_peft_writes(make_policy: MakePolicy, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors import safe_open

    inject(make_policy().module).save(tmp_path / "ours")
    wrapped = get_peft_model(make_policy().module, LoraConfig(r=4, lora_alpha=8, target_modules=list(ALL)))
    wrapped.peft_config["default"].base_model_name_or_path = "hub/base"
    wrapped.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)  # or it asks the hub for the base
    contents = []
    for folder in (tmp_path / "ours", tmp_path / "theirs"):
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            tensors = {key: (file.get_slice(key).get_shape(), file.get_slice(key).get_dtype()) for key in file.keys()}  # noqa: SIM118
            contents.append((tensors, file.metadata()))
    assert contents[0] == contents[1]
    ours, theirs = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("ours", "theirs"))
    assert ours.pop("auto_mapping") is None  # the class of the base, which only peft's AutoPeftModel reads
    theirs.pop("auto_mapping")
    for stored in (ours, theirs):
        stored["target_modules"].sort()
    assert ours == theirs


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["qproj", "proj", "self_attn", "q_layernorm", "layers.2.mlp.fc1", "all-linear", ""])
def test_a_target_that_matches_nothing_is_refused(make_policy: MakePolicy, target: str) -> None:
    module = make_policy().module
    with pytest.raises(SettingsError) as caught:
        inject(module, ("fc1", target), bypassed={"lm_head": "its columns are read directly"})
    assert str(caught.value) == (
        f"[trainer.policy.lora] targets: '{target}' matches no linear layer of the policy. "
        "Give some of q_proj, k_proj, v_proj, dense, fc1, fc2"
    )
    assert not adapters(module)
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("target", ["lm_head", "showo.lm_head", "embed_tokens"])
def test_a_target_that_is_bypassed_is_refused(make_policy: MakePolicy, target: str) -> None:
    bypassed = {"lm_head": "its columns are read directly", "embed_tokens": "its rows are looked up"}
    with pytest.raises(SettingsError, match=rf"'{target}' cannot have an adapter: its .* Give some of q_proj,"):
        inject(make_policy().module, (target,), bypassed=bypassed)

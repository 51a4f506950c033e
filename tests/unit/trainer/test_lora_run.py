"""Runs that train adapters: the loop, resuming, checkpoints, both exports, and the average of the weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from synod.errors import SettingsError
from tests.unit.trainer.loops import (
    LEARNING,
    NO_SLOPES,
    MakePolicy,
    MakeSettings,
    draw,
    equal,
    lines,
    run_loop,
    weights,
)
from tests.unit.trainer.reward_services import Judge, brightness, serve
from trainer import checkpoint
from trainer import run as run_module
from trainer.ema import Ema
from trainer.evaluate import command
from trainer.optim import make_optimizer
from trainer.policy import registry
from trainer.policy.show_o import loading
from trainer.policy.show_o.policy import ADAPTER, ShowO
from trainer.settings import TrainerSettings
from trainer.update import policy_update

RANK = {"POLICY__LORA__RANK": "4"}
LAYERS, TARGETS = 2, 6
IDS = torch.arange(20)[None]


@pytest.fixture
def ready(make_policy: MakePolicy, tiny_settings: MakeSettings, world_dir: Path) -> MakeSettings:
    """Settings with adapters, and the tiny Show-o in the model directory."""
    make_policy().save(world_dir / "model")
    return lambda **overrides: tiny_settings(**{"STEPS": "3", "CHECKPOINT_EVERY": "1", **RANK, **overrides})


@pytest.fixture
def adapted(ready: MakeSettings) -> Callable[[TrainerSettings], ShowO]:
    def make(settings: TrainerSettings) -> ShowO:
        policy = run_module.make_policy(settings)
        assert isinstance(policy, ShowO)
        return policy

    return make


def trained(settings: TrainerSettings, step: int) -> dict[str, Tensor]:
    state = checkpoint.load(settings.run_dir / f"checkpoints/step-{step:06d}", settings)[1]
    policy: dict[str, Tensor] = state["policy"]
    return policy


def base_of(policy: ShowO) -> dict[str, Tensor]:
    state = weights(policy)
    return {key.replace(".base_layer.", "."): value for key, value in state.items() if ".lora_" not in key}


def terms(policy: ShowO, settings: TrainerSettings) -> Tensor:
    groups, _ = draw(policy, Judge(), settings)
    images = [rollout.segments[-1] for rollout in groups[0].rollouts]
    return policy.terms(images, 1).new_BD.detach()


def test_a_run_trains_and_saves_both_exports(ready: MakeSettings, make_policy: MakePolicy) -> None:
    from peft import PeftModel

    with serve(Judge(brightness)) as url:
        settings = ready(REWARDS__URL=url, OPTIMIZER__LR="0.02")
        assert run_module.run(settings, evaluated=False) == 0
    run = settings.run_dir
    assert all(line["kl_image"] is not None for line in lines(run))
    merged = loading.load(run / "policy", sampling=make_policy(guidance_scale=2.0).sampling)
    base = make_policy()
    assert weights(merged).keys() == weights(base).keys()
    changed = {key for key, value in weights(merged).items() if not torch.equal(value, weights(base)[key])}
    assert {key.rsplit(".", 2)[1] for key in changed} == {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}
    assert len(changed) == LAYERS * TARGETS
    assert all(key.endswith(".weight") for key in changed)

    evaluated = command.resolve(str(run), "geneval").policy
    assert (evaluated.model, evaluated.lora) == (str(run / "policy"), None), "the adapters are merged"
    with_adapter = make_policy()
    PeftModel.from_pretrained(with_adapter.module, run / "policy" / ADAPTER)
    hidden = [policy.phi(IDS, None) for policy in (merged, with_adapter, base)]
    logits = [base.phi.logits(one, 0, base.config.vocab_size).detach() for one in hidden]
    assert float((logits[0] - logits[1]).abs().max()) < 1e-5
    assert float((logits[0] - logits[2]).abs().max()) > 1e-3


def test_adapters_learn(
    ready: MakeSettings,
    adapted: Callable[[TrainerSettings], ShowO],
    make_policy: MakePolicy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reward is the share of red pixels."""
    monkeypatch.setattr("trainer.train.log_images", lambda *_: None)  # which takes most of the time
    options = {**LEARNING, "OPTIMIZER__LR": "1e-3"}
    settings = ready(**options)
    policy = adapted(settings)
    policy.phi.lm_head.weight.data *= 0.2  # near uniform, with everything to learn
    run_loop(settings, make_policy, Judge(lambda item: float((item.pixels()[..., 0] > 128).mean())), policy)
    rewards = [line["reward_mean"] for line in lines(settings.run_dir)]
    assert sum(rewards[-6:]) / 6 > rewards[0] + 0.06


def test_a_resumed_run_equals_a_whole_run(
    ready: MakeSettings, adapted: Callable[[TrainerSettings], ShowO], make_policy: MakePolicy
) -> None:
    """Bit for bit, although the adapters of the second process start from nothing."""
    whole, parts = ready(RUN_DIR='"whole"'), [ready(RUN_DIR='"parts"', STEPS=str(n)) for n in (1, 3)]
    run_loop(whole, make_policy, Judge(), adapted(whole))
    for settings in parts:
        state = run_loop(settings, make_policy, Judge(), adapted(settings))
    assert state.step == 3
    assert equal(trained(whole, 3), trained(parts[1], 3))
    assert lines(whole.run_dir) == lines(parts[1].run_dir)
    assert not equal(trained(whole, 1), trained(whole, 3))


def test_training_leaves_the_base_and_the_reference_as_they_were(
    ready: MakeSettings, adapted: Callable[[TrainerSettings], ShowO], make_policy: MakePolicy
) -> None:
    settings = ready(OPTIMIZER__LR="0.02")
    policy, before = adapted(settings), make_policy()
    assert torch.equal(terms(policy, settings), terms(before, settings))
    run_loop(settings, make_policy, Judge(), policy)
    assert equal(base_of(policy), weights(before))
    with policy.reference():
        assert torch.equal(terms(policy, settings), terms(before, settings))
    assert not torch.equal(terms(policy, settings), terms(before, settings))


def test_adapters_need_no_second_copy_of_the_policy(ready: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = registry.load(ready().policy)
    monkeypatch.setattr("copy.deepcopy", None)
    policy.keep_reference()
    with policy.reference():
        pass


def test_the_kl_is_that_of_a_frozen_copy(
    ready: MakeSettings, adapted: Callable[[TrainerSettings], ShowO], make_policy: MakePolicy
) -> None:
    """The reference's log-probabilities are those of the policy as it was loaded."""
    settings = ready(OPTIMIZER__LR="0.02")
    policy = adapted(settings)
    run_loop(settings, make_policy, Judge(), policy)
    groups, _ = draw(policy, Judge(), settings)
    images = [rollout.segments[-1] for rollout in groups[0].rollouts]
    found = policy.terms(images, 0, reference=True)
    expected = make_policy().terms(images, 0)
    assert found.reference_BD is not None
    assert torch.equal(found.reference_BD, expected.new_BD.detach())
    assert not found.reference_BD.requires_grad


def test_a_checkpoint_holds_the_adapters_alone(
    ready: MakeSettings, adapted: Callable[[TrainerSettings], ShowO], make_policy: MakePolicy
) -> None:
    settings = ready(STEPS="1")
    run_loop(settings, make_policy, Judge(), adapted(settings))
    saved = trained(settings, 1)
    assert len(saved) == 2 * LAYERS * TARGETS
    assert all(".lora_A." in key or ".lora_B." in key for key in saved)
    moments = checkpoint.load(settings.run_dir / "checkpoints/step-000001", settings)[1]["optimizer"]["state"]
    assert len(moments) == len(saved)


def test_one_update_moves_only_adapters(ready: MakeSettings, adapted: Callable[[TrainerSettings], ShowO]) -> None:
    settings = ready(OPTIMIZER__LR="0.02")
    policy = adapted(settings)
    before = weights(policy)
    groups, _ = draw(policy, Judge(), settings)
    found = policy_update(policy, make_optimizer(policy, settings), groups, NO_SLOPES, settings, 0)
    assert found.grad_norm is not None
    assert found.grad_norm > 0
    moved = {key for key, value in weights(policy).items() if not torch.equal(value, before[key])}
    assert all(".lora_" in key for key in moved)
    assert sum(".lora_B." in key for key in moved) == LAYERS * TARGETS


def test_texts_shared_between_steps_give_the_same_gradient(
    ready: MakeSettings, adapted: Callable[[TrainerSettings], ShowO], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The texts of the policy and of its reference differ, although they have the same module."""
    settings = ready(OPTIMIZER__LR="1e-30", LOSS__IMAGE__BETA="0.5", LOSS__MICRO_BATCH="3")
    gradients = []
    for shared in (True, False):
        policy = adapted(settings)
        for name, parameter in policy.module.named_parameters():
            if ".lora_B." in name:
                parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        groups, _ = draw(policy, Judge(), settings)
        if not shared:
            monkeypatch.setattr(policy, "sharing", lambda segments: nullcontext())
        policy_update(policy, make_optimizer(policy, settings), groups, NO_SLOPES, settings, 0)
        found = [p.grad.flatten() for p in policy.module.parameters() if p.grad is not None]
        gradients.append(torch.cat(found))
    assert len(found) == 2 * LAYERS * TARGETS
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-6 * float(gradients[1].abs().max())


# -- bfloat16 ---------------------------------------------------------------------------------------------------------


def test_a_frozen_base_in_bfloat16_gives_the_same_results(ready: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit those of float32 weights that every product casts: images, log-probabilities and one update."""
    settings, outputs = ready(POLICY__DTYPE="bfloat16", OPTIMIZER__LR="0.02"), []
    for stored in (torch.bfloat16, torch.float32):
        if stored == torch.float32:
            monkeypatch.setattr(torch.nn.Linear, "bfloat16", lambda layer: layer)
        policy = run_module.make_policy(settings)
        assert isinstance(policy, ShowO)
        blocks = policy.phi.model.layers.named_parameters()
        assert {p.dtype for name, p in blocks if name.endswith("base_layer.weight")} == {stored}
        for name, parameter in policy.module.named_parameters():
            if ".lora_A." in name:  # drawn in the dtype of the base
                parameter.data = parameter.data.bfloat16().float()
        before = terms(policy, settings)
        groups, _ = draw(policy, Judge(), settings)
        update = policy_update(policy, make_optimizer(policy, settings), groups, NO_SLOPES, settings, 0)
        adapters = {name: p.detach() for name, p in policy.module.named_parameters() if ".lora_" in name}
        assert {p.dtype for p in adapters.values()} == {torch.float32}
        with policy.reference():
            assert torch.equal(terms(policy, settings), before)
        outputs.append((before, adapters, update.grad_norm))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert equal(outputs[0][1], outputs[1][1])
    assert outputs[0][2] == outputs[1][2]


def test_a_run_in_bfloat16_resumes_and_saves_float32(
    ready: MakeSettings, make_policy: MakePolicy, adapted: Callable[[TrainerSettings], ShowO], tmp_path: Path
) -> None:
    half = {"POLICY__DTYPE": "bfloat16", "OPTIMIZER__LR": "0.02"}
    whole = ready(RUN_DIR='"whole"', **half)
    parts = [ready(RUN_DIR='"parts"', STEPS=str(n), **half) for n in (1, 3)]
    run_loop(whole, make_policy, Judge(), adapted(whole))
    for settings in parts:
        policy = adapted(settings)
        run_loop(settings, make_policy, Judge(), policy)
    assert equal(trained(whole, 3), trained(parts[1], 3))
    policy.save(tmp_path / "saved")
    found = loading.load(tmp_path / "saved")
    assert {p.dtype for p in found.module.parameters()} == {torch.float32}
    distance = float((found.phi(IDS, None) - make_policy().phi(IDS, None)).detach().abs().max())
    assert 1e-3 < distance < 10


# -- the average of the weights ---------------------------------------------------------------------------------------


def test_an_average_covers_the_adapters_alone(
    ready: MakeSettings, adapted: Callable[[TrainerSettings], ShowO], make_policy: MakePolicy, tmp_path: Path
) -> None:
    settings = ready(OPTIMIZER__LR="0.02")
    policy = adapted(settings)
    average = Ema(policy.module, 0.5)
    assert set(average.to_save()) == {name for name, p in policy.module.named_parameters() if p.requires_grad}
    run_loop(settings, make_policy, Judge(), policy)
    average.update(0)
    own = weights(policy)
    with average.applied():
        assert not equal(weights(policy), own)
        assert equal(base_of(policy), weights(make_policy()))
        policy.save(tmp_path / "averaged")
        with policy.reference():
            assert torch.equal(policy.phi(IDS, None), make_policy().phi(IDS, None))
        expected = policy.phi(IDS, None)
    assert equal(weights(policy), own)
    found = loading.load(tmp_path / "averaged").phi(IDS, None)
    assert float((found - expected).detach().abs().max()) < 1e-5
    assert float((found - policy.phi(IDS, None)).detach().abs().max()) > 1e-4


def test_a_run_resumes_and_exports_the_average(ready: MakeSettings, make_policy: MakePolicy) -> None:
    """The merged export is the base with the averaged adapters of the last checkpoint, whole or resumed."""
    runs = []
    with serve(Judge(brightness)) as url:
        for name, lengths in (("whole", (3,)), ("parts", (1, 3))):
            for steps in lengths:
                more = {"STEPS": str(steps), "RUN_DIR": f'"{name}"', "OPTIMIZER__LR": "0.02"}
                settings = ready(REWARDS__URL=url, OPTIMIZER__EMA="0.5", **more)
                assert run_module.run(settings, evaluated=False) == 0
            runs.append(settings)
    exported = [weights(loading.load(settings.run_dir / "policy")) for settings in runs]
    assert equal(*exported)
    state = checkpoint.load(runs[1].run_dir / "checkpoints/step-000003", runs[1])[1]
    name = "showo.model.layers.1.mlp.fc2"
    for kind in ("ema", "policy"):
        a, b = (state[kind][f"{name}.lora_{half}.default.weight"] for half in "AB")
        expected = weights(make_policy())[f"{name}.weight"] + 64 / 4 * b @ a
        distance = float((exported[0][f"{name}.weight"] - expected).abs().max())
        assert (distance < 1e-6) == (kind == "ema")


def test_resuming_on_another_base_is_refused(
    ready: MakeSettings, adapted: Callable[[TrainerSettings], ShowO], make_policy: MakePolicy, world_dir: Path
) -> None:
    run_loop(ready(STEPS="1"), make_policy, Judge(), adapted(ready()))
    other = make_policy()
    other.phi.model.layers[1].mlp.fc1.bias.data[3] += 0.01
    other.save(world_dir / "model")
    with pytest.raises(checkpoint.CheckpointMismatch, match=r"step 1 started from other weights than \[trainer.pol"):
        run_loop(ready(STEPS="2"), make_policy, Judge(), adapted(ready()))


# -- settings ---------------------------------------------------------------------------------------------------------


def test_the_run_seed_decides_the_adapters_start(ready: MakeSettings) -> None:
    starts = [weights(run_module.make_policy(ready(SEED=seed))) for seed in ("0", "0", "1")]  # type: ignore[arg-type]
    assert equal(starts[0], starts[1])
    assert not equal(starts[0], starts[2])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("[]", "at least 1"),
        ('["proj"]', "'proj' matches no linear layer of the policy. Give some of q_proj, k_proj, v_proj, dense, fc1"),
        ('["q_proj", "lm_head"]', "'lm_head' cannot have an adapter: rows of its weights are read"),
        ('["embed_tokens"]', "'embed_tokens' cannot have an adapter: it is a table of embeddings"),
    ],
)
def test_targets_are_refused_by_name(ready: MakeSettings, targets: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        registry.load(ready(POLICY__LORA__TARGETS=targets).policy)


@pytest.mark.parametrize(
    ("other", "change"),
    [
        ({"POLICY__LORA__RANK": "8"}, "trainer.policy.lora.rank: 4 there, 8 now"),
        ({"POLICY__LORA__ALPHA": "8"}, "trainer.policy.lora.alpha: 64 there, 8 now"),
        ({"POLICY__LORA__TARGETS": '["fc1"]'}, r"trainer.policy.lora.targets: \[.* there, \[\"fc1\"\] now"),
        ({"POLICY__DTYPE": "bfloat16"}, 'trainer.policy.dtype: "float32" there, "bfloat16" now'),
        ({"REWARDS__ENSEMBLE": '"other"'}, 'trainer.rewards.ensemble: .* there, "other" now'),
        ({"REWARDS__SCORERS": "{clip_t = 1.0}"}, "trainer.rewards.scorers.clip_t: absent there, 1.0 now"),
    ],
)
def test_resuming_with_another_policy_or_reward_is_refused(
    ready: MakeSettings, tmp_path: Path, other: dict[str, str], change: str
) -> None:
    path = checkpoint.save(tmp_path / "c", 1, {"x": 1}, ready())
    with pytest.raises(checkpoint.CheckpointMismatch, match=change):
        checkpoint.load(path, ready(**other))


def test_resuming_without_adapters_is_refused(ready: MakeSettings, tiny_settings: MakeSettings, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "c", 1, {"x": 1}, ready())
    with pytest.raises(checkpoint.CheckpointMismatch, match=r"trainer\.policy\.lora\.rank: 4 there, absent now"):
        checkpoint.load(path, tiny_settings())


def test_resuming_with_another_micro_batch_is_allowed(ready: MakeSettings, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "c", 1, {"x": 1}, ready())
    assert checkpoint.load(path, ready(LOSS__MICRO_BATCH="1")) == (1, {"x": 1})

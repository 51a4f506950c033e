"""A flow-matching pipeline as a policy: it draws what diffusers draws, and its update recomputes what it drew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synod.errors import SettingsError
from tests.unit.trainer.policy.flow.conftest import Load
from tests.unit.trainer.tiny_flow import LATENT, PIXELS, Family
from trainer.policy.flow import loading, ranking
from trainer.policy.flow.attention import Float32LinearAttention
from trainer.policy.flow.policy import ADAPTER, FlowPolicy, to_square
from trainer.policy.flow.segments import LatentSegment, Sampler

FAMILIES: tuple[Family, ...] = ("sana", "sd3")
PROMPTS = ("a red cat", "two dogs")
SEEDS = ((0, 0, 0, 0), (0, 0, 0, 1))
each_family = pytest.mark.parametrize("family", FAMILIES)


def draw(policy: FlowPolicy, until: int = 4) -> list[LatentSegment]:
    return policy.denoise(policy.start(PROMPTS, SEEDS), until)


def log_ratios(policy: FlowPolicy, segments: list[LatentSegment]) -> Tensor:
    """[K B]"""
    found = [policy.terms(segments, step) for step in range(policy.steps(segments))]
    return torch.stack([(one.new_BD - one.old_BD).detach()[:, 0] for one in found])


@each_family
@pytest.mark.parametrize("token", ["<s>", "</s>", "</S>"])
def test_control_tokens_in_a_prompt_are_text(load: Load, family: Family, token: str) -> None:
    """Also in capitals: SANA's pipeline makes them small. 1 and 2 end and begin a text for every encoder."""
    policy, read = load(family, max_text_length=16), list[Tensor]()
    for encoder in policy.encoders.children():
        encoder.register_forward_pre_hook(
            lambda _, given, named: read.append(given[0] if given else named["input_ids"]), with_kwargs=True
        )
    for prompt in ("a cat", f"a {token} cat"):
        policy._conditions([prompt])
    plain, tried = read[: len(read) // 2], read[len(read) // 2 :]
    for place in (1, 2):
        assert [int((ids == place).sum()) for ids in tried] == [int((ids == place).sum()) for ids in plain]


@each_family
def test_the_ode_draws_what_diffusers_draws(load: Load, family: Family) -> None:
    policy = load(family, sampler=Sampler.of(5, shift=3.0, eta=0.0, schedule="diffusers"), guidance_scale=2.5)
    noise = torch.randn(2, 6, *LATENT, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"max_sequence_length": 6}
    if family == "sana":
        import diffusers

        policy.pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        policy.pipe.check_inputs = lambda *_, **__: None  # 8 pixels are too few for a published SANA
        options["use_resolution_binning"] = False
    policy.pipe.set_progress_bar_config(disable=True)
    theirs = policy.pipe(
        list(PROMPTS),
        num_inference_steps=5,
        guidance_scale=2.5,
        latents=noise[:, 0].clone(),
        height=PIXELS,
        width=PIXELS,
        output_type="np",
        **options,
    ).images
    ours = policy.images(policy.denoise(policy.begin(PROMPTS, noise), 5))
    assert np.abs(np.stack(ours) - (255 * theirs)).max() < 0.51  # rounded to whole numbers
    assert np.ptp(ours[0]) > 20


@each_family
def test_tokens_that_are_not_read_are_counted(load: Load, family: Family) -> None:
    """What follows has no effect on the embedding, and the count starts there; the longest is logged."""
    policy, said = load(family, max_text_length=8), list[str]()
    policy.log = said.append
    prompts = [" ".join(["red"] * n) for n in (5, 6, 7, 9)]  # a text has two tokens around it
    short, fits, *longer = (policy._conditions([one])["encoder_hidden_states"] for one in prompts)
    assert not torch.equal(short, fits)
    assert all(torch.equal(fits, one) for one in longer)
    begun = policy.start([*prompts, ""], [(0, i) for i in range(5)])
    assert [one.num_cut for one in begun] == [0, 0, 1, 3, 0]
    assert [one.num_cut for one in policy.denoise(begun, 2)] == [0, 0, 1, 3, 0]
    policy.start(prompts, [(0, i) for i in range(4)])
    (line,) = said
    assert line.startswith(f"the last 3 tokens of the prompt {prompts[-1]!r} do not fit the 8 of the text encoder")


@each_family
def test_the_update_recomputes_what_was_drawn(load: Load, family: Family) -> None:
    policy = load(family)
    segments = draw(policy)
    assert policy.decisions("image") == policy.steps(segments) == 3
    assert log_ratios(policy, segments).abs().max() == 0
    alone = torch.cat([log_ratios(policy, [one]) for one in segments], 1)  # another batch rounds differently
    assert alone.abs().max() < 1e-5
    policy.guidance_scale = 3.5
    assert log_ratios(policy, segments).abs().max() > 5e-4  # planted


@each_family
def test_bfloat16_draws_what_it_learns(load: Load, family: Family) -> None:
    exact, policy = load(family), load(family, dtype="bfloat16")
    segments = draw(policy)
    assert log_ratios(policy, segments).abs().max() == 0
    assert segments[0].latent_SCHW.dtype == segments[0].logp_S.dtype == torch.float32
    x = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(0))
    velocities = [one.velocity(PROMPTS, x, 0.7, 3.0) for one in (exact, policy)]
    assert velocities[1].dtype == torch.float32
    torch.testing.assert_close(velocities[1], velocities[0], rtol=0.05, atol=0.05)
    assert not torch.equal(*velocities)


@each_family
def test_a_preview_decodes_the_predicted_image(load: Load, family: Family) -> None:
    policy = load(family)
    begun = policy.start(PROMPTS, SEEDS)
    (one, _) = policy.denoise(begun, 1)
    x = torch.stack([segment.latent_SCHW[0] for segment in begun])
    clean = (x - policy.velocity(PROMPTS, x, 1.0, 3.0))[:1].detach()
    z = clean / policy.shapes.codec_scale + policy.shapes.codec_shift
    expected = ((policy.pipe.vae.decode(z).sample[0] / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0)
    (found,) = policy.images([one])
    assert found.shape == (PIXELS, PIXELS, 3)
    assert np.abs(found - expected.detach().numpy()).max() < 0.51
    finished = draw(policy)[0]
    torch.testing.assert_close(finished.clean_CHW, finished.latent_SCHW[-1])


@each_family
def test_a_rollout_follows_from_prompt_and_seed(load: Load, family: Family) -> None:
    policy = load(family)
    whole, parts = draw(policy), policy.denoise(policy.denoise(draw(policy, 1), 2), 4)
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one.latent_SCHW, other.latent_SCHW)
        assert torch.equal(one.logp_S, other.logp_S)
    (alone,) = policy.denoise(policy.start(PROMPTS[1:], SEEDS[1:]), 4)
    torch.testing.assert_close(alone.latent_SCHW, whole[1].latent_SCHW, rtol=1e-4, atol=1e-5)
    begun = policy.start(["a cat", "a cat"], SEEDS)
    assert (begun[0].noise_RCHW != begun[1].noise_RCHW).all()
    assert (begun[0].clean_CHW != begun[1].clean_CHW).all()


def test_the_prompt_changes_the_velocity(load: Load) -> None:
    for family in FAMILIES:
        policy = load(family)
        x = torch.zeros(2, *LATENT)
        v = policy.velocity(PROMPTS, x, 0.5, 1.0)
        assert not torch.allclose(v[0], v[1], rtol=0, atol=1e-4)


def test_prompts_are_encoded_once(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, read = load("sd3"), list[str]()
    encode = policy.pipe.encode_prompt

    def recorded(prompt: str, *arguments: Any, **options: Any) -> Any:
        read.append(prompt)
        return encode(prompt, *arguments, **options)

    monkeypatch.setattr(policy.pipe, "encode_prompt", recorded)
    draw(policy)
    draw(policy)
    assert read == ["", *PROMPTS]
    monkeypatch.setattr("trainer.policy.flow.policy.CACHED_PROMPTS", 2)
    policy.start(["a dog"], SEEDS[:1])
    policy.denoise(policy.start(["a dog"], SEEDS[:1]), 1)
    policy.denoise(policy.start(["a dog"], SEEDS[:1]), 1)
    assert read[3:] == ["a dog"]


@each_family
def test_the_sde_window_limits_decisions(load: Load, family: Family) -> None:
    policy = load(family, sampler=Sampler.of(5, shift=3.0, eta=0.7, window=(1, 2)))
    segments = draw(policy, 5)
    assert policy.decisions("image") == policy.steps(segments) == 2
    assert policy.steps(policy.denoise(policy.start(PROMPTS, SEEDS), 2)) == 1
    assert log_ratios(policy, segments).abs().max() == 0
    policy.keep_reference()
    blank = policy.terms([policy.blank("image")], 0, reference=True)
    assert blank.kl_BD is not None
    assert blank.new_BD.isfinite().all()
    (0.0 * (blank.new_BD + blank.kl_BD).sum()).backward()  # type: ignore[no-untyped-call]


def test_evaluations_draw_without_noise(load: Load) -> None:
    ode = Sampler.of(6, shift=3.0, eta=0.0)
    policy, expected = load("sd3", evaluation=ode), load("sd3", sampler=ode)
    with policy.evaluating():
        assert policy.image_steps == 6
        found = draw(policy, 6)
        assert not policy.steps(found)
    assert policy.image_steps == policy.sampler.steps == 4
    (one, _), (other, _) = found, draw(expected, 6)
    assert torch.equal(one.clean_CHW, other.clean_CHW)


@each_family
def test_the_reference_is_the_policy_before_training(load: Load, family: Family) -> None:
    policies = [load(family), load(family)]
    policies[1].add_adapters(rank=2, alpha=4, targets=("to_q", "to_v"), seed=0, base="x")
    for policy in policies:
        policy.keep_reference()
        segments = draw(policy)
        before = policy.terms(segments, 0, reference=True)
        assert before.kl_BD is not None
        assert before.kl_BD.abs().max() == 0
        with torch.no_grad():
            for parameter in policy.parameter_groups()[0].parameters:
                parameter.add_(0.1)
        after = policy.terms(segments, 0, reference=True)
        assert after.kl_BD is not None
        assert after.kl_BD.min() > 1e-7
        with policy.reference():
            assert torch.equal(policy.terms(segments, 0).new_BD, before.new_BD)


def test_adapters_alone_are_trained(load: Load) -> None:
    policy = load("sd3", dtype="bfloat16")
    policy.add_adapters(rank=2, alpha=4, targets=("attn.to_q", "attn.to_out.0"), seed=0, base="x")
    draws = draw(policy)
    assert log_ratios(policy, draws).abs().max() == 0
    trained = [name for name, one in policy.module.named_parameters() if one.requires_grad]
    assert len(trained) == 2 * 2 * 2  # A and B of two layers in two blocks; attn2 has none
    assert all(".attn.to_" in name and "lora_" in name for name in trained)
    assert {one.dtype for one in policy.parameter_groups()[0].parameters} == {torch.float32}
    policy.terms(draws, 0).new_BD.sum().backward()  # type: ignore[no-untyped-call]
    assert all(one.grad is not None for one in policy.parameter_groups()[0].parameters)
    with pytest.raises(SettingsError, match=r"'q_proj' matches no linear layer of the policy\. Give some of "):
        load("sana").add_adapters(rank=2, alpha=4, targets=("q_proj",), seed=0, base="x")


@each_family
def test_a_saved_policy_is_a_pipeline_of_diffusers(load: Load, family: Family, tmp_path: Path) -> None:
    import diffusers

    policy = load(family)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter.mul_(1.1)
    policy.save(tmp_path)
    again = loading.load(tmp_path, sampler=policy.sampler, guidance_scale=3.0, max_text_length=6)
    assert torch.equal(draw(again)[1].latent_SCHW, draw(policy)[1].latent_SCHW)
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(theirs) is type(policy.pipe)
    for key, value in theirs.transformer.state_dict().items():
        assert torch.equal(value, policy.module.state_dict()[key]), key


def test_adapters_are_saved_merged_and_alone(load: Load, tmp_path: Path) -> None:
    policy = load("sana")
    policy.add_adapters(rank=2, alpha=4, targets=("to_q", "to_out.0"), seed=0, base="x")
    with torch.no_grad():
        for parameter in policy.parameter_groups()[0].parameters:
            parameter.add_(0.1)
    policy.save(tmp_path)
    merged = loading.load(tmp_path, sampler=policy.sampler, guidance_scale=3.0, max_text_length=6)
    torch.testing.assert_close(draw(merged)[0].latent_SCHW, draw(policy)[0].latent_SCHW, rtol=1e-4, atol=1e-4)
    names = sorted(path.name for path in (tmp_path / ADAPTER).iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]


def test_linear_attention_sums_in_float32(load: Load) -> None:
    attn = load("sana").pipe.transformer.transformer_blocks[0].attn1
    x = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    theirs, ours = attn.processor, Float32LinearAttention()
    exact = theirs(attn, x)
    torch.testing.assert_close(ours(attn, x), exact, rtol=1e-5, atol=1e-6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        errors = [float((one(attn, x) - exact).square().mean()) for one in (ours, theirs)]
    assert errors[0] < errors[1]


@each_family
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_counted_activations_are_those_of_autograd(load: Load, family: Family, dtype: Any) -> None:
    policy = load(family, dtype=dtype)
    segments = draw(policy)
    sizes = []
    for chosen in (segments[:1], segments):
        kept: dict[int, Tensor] = {}
        parameters = {one.data_ptr() for one in policy.module.parameters()}

        def pack(tensor: Tensor, kept: dict[int, Tensor] = kept, own: set[int] = parameters) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            policy.terms(chosen, 0)
        sizes.append(sum(one.untyped_storage().nbytes() for one in kept.values()))
    counted = policy.activation_bytes(3, checkpointing=False)
    assert counted == pytest.approx(3 * (sizes[1] - sizes[0]), rel=0.05)
    assert policy.activation_bytes(3, checkpointing=True) < 0.7 * counted


def test_an_exact_velocity_has_the_highest_rank(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load("sana")
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    assert ranking.mean_logp(policy, image, "a cat") != ranking.mean_logp(policy, image, "two dogs")
    clean = policy.encode(image)
    monkeypatch.setattr(policy, "velocity", lambda prompts, x, t, g: (x - clean) / t)
    assert ranking.mean_logp(policy, image, "a cat") == pytest.approx(0, abs=1e-10)


@each_family
def test_an_image_is_encoded_as_diffusers_decodes(load: Load, family: Family) -> None:
    """The codec's own encoder, in the units of the transformer."""
    policy = load(family)
    image = np.random.default_rng(0).integers(0, 256, (PIXELS, PIXELS, 3), np.uint8)
    assert np.array_equal(to_square(image, PIXELS), image)
    found = policy.encode(image)
    assert found.shape == LATENT
    z = found / policy.shapes.codec_scale + policy.shapes.codec_shift
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    encoded = policy.pipe.vae.encode(pixels)
    expected = encoded.latent if family == "sana" else encoded.latent_dist.mode()
    torch.testing.assert_close(z, expected[0].detach())

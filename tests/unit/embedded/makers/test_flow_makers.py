"""The flow models: what their makers train is what the trainer's loader draws with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedded import world
from embedded.makers import codec, flow
from embedded.makers.__main__ import SANA
from embedded.makers.dataset import QUICK
from embedded.makers.drawings import drawings
from trainer.policy.flow import loading, sde
from trainer.policy.flow.segments import Sampler
from trainer.scenarios import compound

PROMPTS = ["a photo of two dogs", "a photo of a red cat. a red cat at the top left", ""]


@pytest.fixture(scope="module")
def maker(toys: Path) -> flow.SanaMaker:
    """The maker with the weights that it wrote."""
    maker = flow.SanaMaker(replace(flow.RECIPE, batch=8), toys.parent / "build", QUICK, toys / SANA)
    state = torch.load(toys.parent / f"build/{SANA}-2.ckpt", weights_only=True)["module"]
    maker.module.load_state_dict({name: value.bfloat16().float() for name, value in state.items()})
    maker.module.eval()
    return maker


@torch.no_grad()
def test_policy_has_the_velocities_that_were_trained(toys: Path, maker: flow.SanaMaker) -> None:
    """Though the pipeline writes an instruction before each prompt, and pads texts to one length."""
    policy = loading.load(toys / SANA, sampler=Sampler.of(4, flow.SHIFT, 0.7), max_text_length=flow.MAX_TEXT)
    assert policy.shapes.resolution == world.SIZE
    x = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = maker.velocity(x, PROMPTS, torch.full((3,), 0.7))
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(policy.velocity(PROMPTS, x, 0.7, 1.0), wanted, atol=1e-5, rtol=1e-4)
    image = drawn_by(policy, "a photo of a dog")
    assert image.shape == (world.SIZE, world.SIZE, 3)


@torch.no_grad()
def test_a_trained_policy_is_read_again(toys: Path, tmp_path: Path) -> None:
    """Though the transformer has positions, which its file does not keep."""
    given: dict[str, Any] = {"sampler": Sampler.of(4, flow.SHIFT, 0.7), "max_text_length": flow.MAX_TEXT}
    policy = loading.load(toys / SANA, **given)
    for parameter in policy.transformer.parameters():
        parameter.mul_(1.01)
    policy.save(tmp_path)
    x = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    again = loading.load(tmp_path, **given)
    assert torch.equal(again.velocity(PROMPTS, x, 0.7, 1.0), policy.velocity(PROMPTS, x, 0.7, 1.0))


def drawn_by(policy: Any, prompt: str) -> np.ndarray:
    begun = policy.start([prompt], [(1, 2)])
    found: np.ndarray = policy.images(policy.denoise(begun, policy.image_steps))[0]
    return found


def test_tokenizer_knows_every_word_of_drawings(toys: Path, maker: flow.SanaMaker) -> None:
    unknown, held_out = maker.tokenizer.unk_token_id, {prompt.text for prompt in world.PROMPTS_HELDOUT}
    for record in maker.texts:
        ids = maker.tokenizer(compound(record["prompt"], record["words"])).input_ids
        assert unknown not in ids
        assert len(ids) <= flow.MAX_TEXT
        assert record["prompt"] not in held_out


def test_mixed_latents_are_a_straight_path() -> None:
    """The data is what `sde.clean` predicts from any time by the velocity that is the target."""
    x_0, noise = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0)).unbind()
    t = torch.tensor([0.1, 0.5, 1.0])
    for one, data, drawn, time in zip(flow.mixed(x_0, noise, t), x_0, noise, t.tolist(), strict=True):
        torch.testing.assert_close(sde.clean(one, drawn - data, time), data, atol=1e-6, rtol=1e-5)


def test_parts_are_the_mean_squared_error(maker: flow.SanaMaker) -> None:
    """The sum of the parts is the loss of the whole batch; with a velocity of 0 that of noise - x_0."""
    found = sum(float(part().detach()) for part in maker.loss(np.random.default_rng(3)))
    transformer = maker.transformer
    kept = transformer.proj_out.weight.detach().clone(), transformer.proj_out.bias.detach().clone()
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    still = sum(float(part().detach()) for part in maker.loss(np.random.default_rng(3)))
    transformer.proj_out.load_state_dict(dict(zip(("weight", "bias"), kept, strict=True)))
    rng = np.random.default_rng(3)
    rows = rng.integers(len(maker.latents), size=8)
    for row in rows:
        flow.text_of(maker.texts[row], rng)
    rng.standard_normal(8, np.float32)
    target = rng.standard_normal(maker.latents[rows].shape, np.float32) - maker.latents[rows]
    assert still == pytest.approx(float(np.square(target).mean()), rel=1e-4)
    assert found != pytest.approx(still, rel=1e-4)


def test_texts_are_dropped_or_followed_by_words() -> None:
    record, rng = {"prompt": "a photo of a dog", "words": "a dog at the top"}, np.random.default_rng(0)
    drawn = [flow.text_of(record, rng) for _ in range(4000)]
    shares = [drawn.count(text) / 4000 for text in ("", "a photo of a dog", "a photo of a dog. a dog at the top")]
    assert shares == pytest.approx([0.1, 0.63, 0.27], abs=0.03)


def test_moments_agree_with_numpy() -> None:
    z = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float() * 2 + 1
    rows = z.transpose(0, 1).flatten(1).double().numpy()
    apart = np.cov(rows, ddof=0) - np.eye(4)
    wanted = np.square(rows.mean(1)).mean() + np.square(apart).sum(1).mean()
    assert float(codec.moments(z)) == pytest.approx(wanted, rel=1e-5)


def test_scaled_latents_have_unit_variance(toys: Path, maker: flow.SanaMaker) -> None:
    """Up to the rounding of the weights to bfloat16 after the measurement."""
    assert float(maker.latents[: codec.MEASURED].astype(np.float32).std()) == pytest.approx(1, abs=0.02)


def test_arrangement_names_things_and_places() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        scene, prompt = world.sample(rng, "position")
        said = world.arrangement(world.render(scene, rng)).split(", ")
        assert len(said) == 2
        assert prompt.geneval is not None
        (other, first), clause = said, prompt.geneval.include[-1]
        assert clause.position is not None
        if clause.position[0] == "above":
            assert "bottom" not in other
            assert "top" not in first
    one = np.zeros((64, 64), bool)
    thing = world.Instance("dog", "red", (4.0, 40.0, 20.0, 60.0), one, None, None, (), None)
    rendered = world.Render(np.zeros((64, 64, 3), np.uint8), one.astype(np.uint8), (thing,))
    assert world.arrangement(rendered) == "a red dog at the bottom left"
    person = replace(thing, class_name="person", color=None, box=(24.0, 24.0, 40.0, 40.0))
    assert world.arrangement(replace(rendered, instances=(person, thing))).startswith("a person in the middle, ")
    mixed = "a red dog at the bottom left, a person in the middle, a cup at the top, a tan cup at the left"
    ordered = "a cup at the top, a tan cup at the left, a person in the middle, a red dog at the bottom left"
    assert world.in_reading_order(mixed) == ordered


def test_drawings_are_described_by_all_labels(toys: Path) -> None:
    data = drawings(toys.parent / "build", QUICK)
    assert len({len(values) for values in data.values()}) == 1
    shown = data["front"] > 0
    assert ((data["patch"] > 0) <= shown).all()
    assert ((data["tint"] > 0) <= shown).all()

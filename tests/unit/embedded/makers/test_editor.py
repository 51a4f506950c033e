"""The policy that reads a source image: what its maker trains is what the trainer's loader draws with."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from embedded import world
from embedded.makers import editor, flow
from embedded.makers.__main__ import EDITOR, SANA, make
from embedded.makers.dataset import QUICK
from trainer.policy.flow import edits, loading
from trainer.policy.flow.segments import Sampler

PROMPTS = ["the dog should be red", "a photo of a red cat. a red cat at the top left", ""]


@pytest.fixture(scope="module")
def maker(toys: Path) -> editor.EditorMaker:
    """The maker with the weights that it wrote, of which those that read the source are no longer 0."""
    build = toys.parent / "build"
    make(EDITOR, toys, build, quick=True)
    maker = editor.EditorMaker(replace(editor.RECIPE, batch=8), build, QUICK, toys / SANA)
    state = torch.load(build / f"{EDITOR}.ckpt", weights_only=True)["module"]
    maker.module.load_state_dict({name: value.bfloat16().float() for name, value in state.items()})
    maker.module.eval()
    return maker


@torch.no_grad()
def test_policy_has_the_velocities_that_were_trained(toys: Path, maker: editor.EditorMaker) -> None:
    """Those of edits, and those of images without source."""
    path = toys.parent / "build" / EDITOR
    policy = loading.load(
        path, sampler=Sampler.of(4, flow.SHIFT, 0.7), max_text_length=flow.MAX_TEXT, guidance_scale=1.0, has_edits=True
    )
    x, sources = torch.randn(2, 3, 16, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    references, t = edits.references_of(maker.transformer), torch.full((3,), 0.7)
    assert references is not None
    wanted = []
    for given in (sources, torch.zeros_like(sources)):
        with references.given(given):
            wanted.append(maker.velocity(x, PROMPTS, t))
    torch.testing.assert_close(policy.edit_velocity(PROMPTS, sources, x, 0.7), wanted[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(policy.velocity(PROMPTS, x, 0.7, 1.0), wanted[1], atol=1e-5, rtol=1e-4)
    assert (wanted[0] - wanted[1]).abs().max() > 1e-4
    assert loading.load(path, sampler=policy.sampler, max_text_length=flow.MAX_TEXT).shapes == policy.shapes


def test_pairs_are_edits_or_share_a_backdrop(maker: editor.EditorMaker) -> None:
    unknown, held_out = maker.tokenizer.unk_token_id, {prompt.text for prompt in world.PROMPTS_HELDOUT}
    asked: Counter[str] = Counter()
    for images, records in zip(maker.data["image"], maker.texts, strict=True):
        assert (images[0] != images[1]).any()
        for record in records:
            instruction = not record["asked"].startswith(record["prompt"])
            asked["edit" if instruction else "redraw"] += 1
            assert unknown not in maker.tokenizer(record["asked"]).input_ids
            assert record["prompt"] not in held_out
        corners = images[:, :2, :2].astype(int)
        assert np.abs(corners[0] - corners[1]).mean() < 40  # up to the light
    assert min(asked.values()) > 30


def test_examples_are_drawn_in_their_shares(maker: editor.EditorMaker) -> None:
    """A quarter is without source; of the rest .15 stay, and text, source and both are dropped in .05 each."""
    rng = np.random.default_rng(0)
    drawn = [maker.example(rng) for _ in range(6000)]
    without = np.mean([one.source is None for one in drawn])
    assert without == pytest.approx(0.25 + 0.75 * 0.1, abs=0.02)
    with_source = [one for one in drawn if one.source is not None]
    assert np.mean([one.text == "" for one in with_source]) == pytest.approx(0.05 / 0.9, abs=0.02)
    kept = [one for one in with_source if one.source == one.target]
    assert len(kept) / len(with_source) == pytest.approx(0.15, abs=0.02)
    for one in with_source:
        record = maker.texts[one.target // 2][one.target % 2]
        assert one.source in (one.target, one.target ^ 1)
        assert one.text in ("", record["prompt"] if one.source == one.target else record["asked"])


def test_a_source_that_is_read_wrongly_changes_the_loss(maker: editor.EditorMaker) -> None:
    references = edits.references_of(maker.transformer)
    assert references is not None
    with torch.no_grad():
        found = float(maker.loss(np.random.default_rng(1)))
        references.ref_linear.weight.add_(0.5)
        other = float(maker.loss(np.random.default_rng(1)))
        references.ref_linear.weight.sub_(0.5)
    assert abs(other - found) > 1e-4

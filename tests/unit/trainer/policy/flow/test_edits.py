"""A SANA transformer that reads a source image: guidance, noise, its reference, and its files."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from synod.errors import SettingsError
from tests.unit.trainer.policy.flow.conftest import Load
from tests.unit.trainer.tiny_flow import LATENT, PIXELS, Family
from trainer.policy import registry
from trainer.policy.flow import edits, sde
from trainer.policy.flow.policy import FlowPolicy
from trainer.settings import read_policy
from trainer.types import Condition

SOURCE, OTHER = (np.random.default_rng(i).integers(0, 256, (PIXELS, PIXELS, 3), np.uint8) for i in range(2))
SEEDS = [(0, 0, 0, i) for i in range(3)]
EDITS = [Condition("two red cats", SOURCE)] * 3


@pytest.fixture
def editor(load: Load) -> FlowPolicy:
    """A policy whose layers for the source have been trained."""
    policy = load("sana", has_edits=True)
    move(policy)
    return policy


def move(policy: FlowPolicy) -> None:
    added = edits.references_of(policy.transformer)
    assert added is not None
    with torch.no_grad():
        added.ref_linear.weight.add_(torch.eye(16))


def log_ratio(policy: FlowPolicy, segments: Any) -> float:
    terms = [policy.terms(segments, step) for step in range(policy.steps(segments))]
    return float(torch.stack([(one.new_BD - one.old_BD).detach().abs().max() for one in terms]).max())


@torch.no_grad()
def branch(policy: FlowPolicy, prompts: list[str], x: Tensor, source: Tensor | None) -> Tensor:
    return policy._predict(prompts, x, 0.7, source)


def test_a_new_editor_draws_what_the_pipeline_draws(load: Load) -> None:
    plain, new = load("sana"), load("sana", has_edits=True)
    x = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(0))
    prompts = ["a cat", "two dogs"]
    with torch.no_grad():
        assert torch.equal(*(one.velocity(prompts, x, 0.7, 3.0) for one in (plain, new)))
        assert torch.equal(new.edit_velocity(prompts, x, x, 0.7), new.velocity(prompts, x, 0.7, 3.0))


@pytest.mark.parametrize("g_ref", [1.0, 1.5])
def test_edits_have_guidance_in_two_ways(editor: FlowPolicy, g_ref: float) -> None:
    editor.guidance_reference = g_ref
    x, source = torch.randn(2, 2, *LATENT, generator=torch.Generator().manual_seed(0))
    prompts = ["a cat", "two dogs"]
    u, r, c = (branch(editor, *rows) for rows in ((["", ""], x, None), (["", ""], x, source), (prompts, x, source)))
    assert all((one - other).abs().max() > 1e-3 for one, other in ((u, r), (r, c)))
    with torch.no_grad():
        found = editor.edit_velocity(prompts, source, x, 0.7)
    torch.testing.assert_close(found, sde.guided_edit(u, r, c, g_ref, 3.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("g_ref", [1.0, 1.5])
def test_an_edit_is_learnt_as_it_was_sampled(editor: FlowPolicy, g_ref: float) -> None:
    """UniRL-Zero's public code samples an edit at guidance 3.0 and learns it at 3.5."""
    editor.guidance_reference = g_ref
    editor.keep_reference()
    images = editor.denoise(editor.edit(EDITS, SEEDS), 4)
    assert log_ratio(editor, images) == 0
    kl = editor.terms(images, 0, reference=True).kl_BD
    assert kl is not None
    assert kl.abs().max() == 0
    editor.guidance_scale = 3.5
    assert log_ratio(editor, images) > 1e-3


def test_the_source_is_noised_by_the_key(editor: FlowPolicy) -> None:
    one, two, three = editor.edit(EDITS, SEEDS)
    (again,) = editor.edit(EDITS[:1], SEEDS[1:2])
    latent = editor.encode(SOURCE)
    assert one.source_CHW is not None
    assert torch.equal(again.source_CHW, two.source_CHW)  # type: ignore[arg-type]
    noise = [(segment.source_CHW - 0.8 * latent) / 0.2 for segment in (one, two, three)]  # type: ignore[operator]
    assert all((a - b).abs().max() > 0.1 for a, b in ((noise[0], noise[1]), (noise[1], noise[2])))
    assert (noise[0] - one.latent_SCHW[0]).abs().max() > 0.1  # not that of the image
    assert 0.7 < float(torch.stack(noise).std()) < 1.3
    drawn = [editor.denoise(editor.edit([Condition("a cat", s)], SEEDS[:1]), 4)[0].clean_CHW for s in (SOURCE, OTHER)]
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3


def test_the_reference_has_its_own_layers(editor: FlowPolicy) -> None:
    editor.keep_reference()
    images = editor.denoise(editor.edit(EDITS, SEEDS), 4)
    move(editor)
    kl = editor.terms(images, 0, reference=True).kl_BD
    assert kl is not None
    assert (kl > 0).all()
    with editor.reference():
        assert log_ratio(editor, images) == 0
    (group,) = editor.parameter_groups()
    added = edits.references_of(editor.transformer)
    assert added is not None
    assert {id(p) for p in added.parameters()} <= {id(p) for p in group.parameters}


def test_an_editor_is_saved_next_to_its_pipeline(editor: FlowPolicy, load: Load, tmp_path: Path) -> None:
    import diffusers

    editor.save(tmp_path)
    diffusers.SanaTransformer2DModel.from_pretrained(tmp_path / "transformer")  # has no other weights
    settings = {"family": "flow", "model": str(tmp_path), "max_text_length": 6, "edits": True}
    sampler = {"denoising_steps": 4, "guidance_scale": 3.0, "guidance_reference": 1.5}
    again = registry.load(read_policy({**settings, "sampler": sampler}))
    assert isinstance(again, FlowPolicy)
    assert again.guidance_reference == 1.5
    editor.guidance_reference = 1.5
    ours, theirs = (one.denoise(one.edit(EDITS, SEEDS), 4)[0].clean_CHW for one in (editor, again))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_a_trained_editor_is_fetched_from_the_hub(
    editor: FlowPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its weights are fetched, listed and checked; a pipeline without any gets new layers, and says so."""
    editor.save(tmp_path / "published")

    def download(name: str, *, allow_patterns: list[str], **_: object) -> str:
        found = tmp_path / "cache"
        for file in (tmp_path / "published").rglob("*"):
            path = file.relative_to(tmp_path / "published")
            if file.is_file() and any(fnmatch(str(path), one) for one in allow_patterns):
                (found / path).parent.mkdir(parents=True, exist_ok=True)
                (found / path).write_bytes(file.read_bytes())
        return str(found)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    settings = read_policy({"family": "flow", "model": "org/editor", "max_text_length": 6, "edits": True})
    assert [one.folder for one in registry.FAMILIES["flow"].sources(settings)][-1] == edits.EDITS
    again: Any = registry.load(settings)
    ours, theirs = (edits.references_of(one.transformer) for one in (editor, again))
    assert ours is not None
    assert theirs is not None
    assert torch.equal(theirs.ref_linear.weight, ours.ref_linear.weight)
    assert "new" not in capsys.readouterr().err
    save_file({"other": torch.zeros(1)}, tmp_path / "published/edits/model.safetensors")
    with pytest.raises(SettingsError, match="edits lacks ref_embed"):
        registry.FAMILIES["flow"].check(settings, ())
    for folder in ("published", "cache"):
        shutil.rmtree(tmp_path / folder / "edits")
    assert edits.EDITS not in [one.folder for one in registry.FAMILIES["flow"].sources(settings)]
    registry.FAMILIES["flow"].check(settings, ())
    registry.load(settings)
    assert "org/editor has no directory 'edits': the layers for sources are new" in capsys.readouterr().err


def test_adapters_may_be_on_the_layers_of_the_source(editor: FlowPolicy) -> None:
    editor.add_adapters(rank=2, alpha=4, targets=("to_q", "ref_linear"), seed=0, base="x")
    images = editor.denoise(editor.edit(EDITS, SEEDS), 4)
    terms = editor.terms(images, 0)
    assert (terms.new_BD - terms.old_BD).abs().max() == 0
    terms.new_BD.sum().backward()  # type: ignore[no-untyped-call]
    found = {n: p.grad for n, p in editor.module.named_parameters() if "ref_linear.lora_B" in n}
    assert found
    assert all(grad is not None and grad.abs().max() > 0 for grad in found.values())


def test_adapters_must_not_freeze_new_layers(load: Load, editor: FlowPolicy) -> None:
    """They would be frozen at zero, and no edit would ever read its source."""
    new = load("sana", has_edits=True)
    with pytest.raises(SettingsError, match="lora freezes them: x has no directory 'edits' with trained ones"):
        edits.check_adapters(new.transformer, ("to_q",), "x")
    edits.check_adapters(new.transformer, ("to_q", "references.ref_linear"), "x")
    edits.check_adapters(editor.transformer, ("to_q",), "x")
    edits.check_adapters(load("sana").transformer, ("to_q",), "x")


def test_only_sana_reads_a_source(pipelines: dict[Family, Path], tmp_path: Path) -> None:
    """By the configuration, before weights are read."""
    (tmp_path / "sd3").mkdir()
    for file in pipelines["sd3"].rglob("*.json"):
        copied = tmp_path / "sd3" / file.relative_to(pipelines["sd3"])
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(file.read_bytes())
    settings = read_policy({"family": "flow", "model": str(tmp_path / "sd3"), "edits": True})
    for called in (registry.load, lambda chosen: registry.FAMILIES["flow"].check(chosen, ())):
        with pytest.raises(
            SettingsError, match=r"edits = true adds layers to a SanaTransformer2DModel, but .* has a SD3"
        ):
            called(settings)

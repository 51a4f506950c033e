"""`warm` and `verify` for the policy: its parts, what does not fit, and the order of prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synod import hub
from synod.images import encode_png
from trainer import models
from trainer.__main__ import main
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.ranking import mean_logp
from trainer.settings import TrainerSettings

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config(settings_from: Callable[..., TrainerSettings], world_dir: Path, policy: ShowO) -> Path:
    """A TOML whose policy is the tiny one, in the directory `model`."""
    settings_from()
    policy.save(world_dir / "model")
    return world_dir / "train.toml"


def table(printed: str) -> list[list[str]]:
    """The rows of `warm`, without header and last line."""
    lines = printed.splitlines()
    assert lines[0].split() == ["MODEL", "SOURCE", "REVISION", "SIZE", "DIGEST", "SECONDS"]
    return [line.split() for line in lines[1:-1]]


def test_warm_lists_the_model_that_has_all_parts(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["warm", str(config)]) == 0
    printed = capsys.readouterr().out
    model = str(config.parent / "model")
    [row] = table(printed)
    assert row[:3] == ["policy.model", model, "local"]
    assert row[5] == hub.digest(model)[:16]
    assert printed.splitlines()[-1] == "the policy's weights, tokenizers and config.json fit each other"


def test_warm_downloads_each_part_at_its_revision(
    config: Path, policy: ShowO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "hub/snapshots/c0ffee"
    policy.save(model)
    (model / "vq").rename(tmp_path / "beef")
    words = tmp_path / "f00d"
    words.mkdir()
    for file in model.glob("tokenizer*"):
        file.rename(words / file.name)
    stored = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**stored, "_class_name": "Showo", "llm_model_path": "org/words"}))
    folders = {"org/show-o": model, "showlab/magvitv2": tmp_path / "beef", "org/words": words}
    calls: set[tuple[str, str | None]] = set()

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        calls.add((name, revision))
        assert name != "org/words" or allow_patterns[-1] == "*.model", "a tokenizer needs no weights"
        return str(folders[name])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setenv("SYNOD__TRAINER__POLICY__MODEL", "org/show-o@v1")
    assert main(["warm", str(config)]) == 0
    assert [row[:3] for row in table(capsys.readouterr().out)] == [
        ["policy.model", "org/show-o@v1", "c0ffee"],
        ["policy.vq", "showlab/magvitv2", "beef"],
        ["policy.tokenizer", "org/words", "f00d"],
    ]
    assert calls == {("org/show-o", "v1"), ("showlab/magvitv2", None), ("org/words", None)}


@pytest.mark.parametrize("command", ["warm", "verify"])
def test_what_does_not_fit_is_refused(config: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    weights = config.parent / "model/pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    assert main([command, str(config)]) == 1
    assert "cannot be read safely" in capsys.readouterr().err
    weights.unlink()
    assert main([command, str(config)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"synod {command}: {config.parent / 'model'} has no weights")
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["warm", "verify"])
def test_a_concept_that_the_policy_would_split(
    config: Path, world_dir: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    info = json.loads((world_dir / "concepts/bo/info.json").read_text())
    (world_dir / "concepts/bo/info.json").write_text(json.dumps({**info, "name": "<unheard>"}))
    assert main([command, str(config)]) == 1
    assert "has no token for 1 of the concepts, <unheard>" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    config: Path, policy: ShowO, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    policy.phi.lm_head.bias.data[3] = value
    policy.save(config.parent / "model")
    assert main(["verify", str(config)]) == 1
    assert "NaN or infinity in showo.lm_head.bias" in capsys.readouterr().err


def write_pairs(folder: Path, image: Any, better: str, worse: str) -> Path:
    (folder / "image.png").write_bytes(encode_png(image))
    items = {side: {"image": "image.png", "prompt": text} for side, text in (("better", better), ("worse", worse))}
    lines = [
        {"name": "policy's", "scorers": ["ber", "policy"], **items},
        {"name": "ber's", "scorers": ["ber"], **items},
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "pairs.jsonl"


def test_verify_ranks_prompts_of_an_image(
    config: Path, policy: ShowO, image: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = sorted(("a red cat", "two dogs on grass"), key=lambda prompt: mean_logp(policy, image, prompt))
    worse, better = prompts
    path = write_pairs(config.parent, image, better, worse)
    assert main(["verify", str(config), "--pairs", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    size = sum(parameter.numel() for parameter in policy.module.parameters())
    assert lines[0] == f"policy: {size:,} values in {len(policy.module.state_dict())} tensors, all finite"
    assert lines[2].split()[-3:] == [f"{mean_logp(policy, image, text):.4f}" for text in (better, worse)] + ["holds"]
    assert lines[3:] == ["1 of 1 relations hold"]
    write_pairs(config.parent, image, worse, better)
    config.write_text(f'pairs = "./pairs.jsonl"\n{config.read_text()}')
    assert main(["verify", str(config)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 1 relations hold"


def test_verify_without_pairs_only_loads(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(config)]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("policy: there is no pair to rank")
    config.write_text(f'pairs = "./lost.jsonl"\n{config.read_text()}')
    assert main(["verify", str(config)]) == 1
    assert "pairs: './lost.jsonl': no such file" in capsys.readouterr().err


def test_mean_logp_against_a_loop(policy: ShowO) -> None:
    """Of an image that is not square: Show-o resizes and crops it."""
    image = np.random.default_rng(1).integers(0, 256, (20, 8, 3), dtype=np.uint8)
    codes = policy.vq.encode([image[6:14]])
    everywhere = torch.ones_like(codes, dtype=torch.bool)
    guided = policy.image_logp(["a red cat"], codes, everywhere, everywhere)
    policy.sampling = replace(policy.sampling, guidance_scale=0.0)
    plain = policy.image_logp(["a red cat"], codes, everywhere, everywhere).detach()
    assert not torch.allclose(guided, plain)
    expected = sum(float(row[code]) for row, code in zip(plain, codes[0], strict=True)) / 16
    assert mean_logp(policy, image, "a red cat") == pytest.approx(expected, abs=1e-5)


def test_embedded_policy_ranks_the_shipped_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["verify", str(ROOT / "deploy/configs/embedded.toml")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 of 4 relations hold"

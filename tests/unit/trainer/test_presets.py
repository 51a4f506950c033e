"""The settings in deploy/configs that train on prompts, whole: two steps of a small policy on rewards over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import tiny_vlm
from tests.unit.trainer import reward_services
from tests.unit.trainer.loops import MakePolicy, lines
from tests.unit.trainer.reward_services import Judge, brightness_or_length, serve
from tests.unit.trainer.tiny_flow import write_pipeline
from trainer import run
from trainer.dry_run import dry_run
from trainer.evaluate import command
from trainer.policy import registry
from trainer.settings import load

CONFIGS = Path(__file__).parents[3] / "deploy/configs"
SMALL = {
    "STEPS": "2",
    "PROMPTS_PER_STEP": "2",
    "EVALUATE__PROMPTS": "2",
    "POLICY__SAMPLER__DENOISING_STEPS": "5",
    "POLICY__SAMPLER__MAX_NEW_TOKENS": "4",
}


@pytest.mark.parametrize("name", ["mask_grpo", "prompts", "sync_r1_paper"])
def test_shipped_settings_train_a_small_policy(
    name: str, make_policy: MakePolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_policy().save(tmp_path / "model")
    served = [{"name": one, "needs": ["image", "prompt"]} for one in ("ber", "clip_t", "image_reward")]
    monkeypatch.setitem(reward_services.CATALOGUE, "scorers", served)
    with serve(Judge()) as url:
        small = {
            **SMALL,
            "REWARDS__URL": url,
            "RUN_DIR": str(tmp_path / "run"),
            "POLICY__MODEL": str(tmp_path / "model"),
            "POLICY__VQ": str(tmp_path / "model/vq"),
        }
        settings = load(CONFIGS / f"{name}.toml", {f"SYNOD__TRAINER__{key}": value for key, value in small.items()})
        assert run.run(settings) == 0
    records = lines(settings.run_dir)
    assert [one["step"] for one in records] == [0, 1]
    for one in records:
        assert one["pathways"] == ["none", "none"]
        assert one["components"].keys() == settings.rewards.scorers.keys()
        assert one["loss_image"] is not None
        assert one["grad_norm"] > 0
        assert one["loss_text"] is None  # a prompt is drawn as it is
    kl = {one["kl_image"] for one in records}
    assert (max(kl) > 0) is settings.needs_reference
    evaluation = settings.run_dir / "evaluation"
    assert (evaluation / "before.json").exists()
    assert (evaluation / "after.json").exists()


@pytest.mark.parametrize("name", ["gvu_embedded", "gvu_train"])
def test_the_settings_of_gvu_train_a_small_policy(
    name: str,
    make_policy: MakePolicy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On its own reward, with GenEval's score watched: a dry run, and two steps."""
    make_policy().save(tmp_path / "model")
    monkeypatch.setitem(reward_services.CATALOGUE, "scorers", [{"name": "geneval", "needs": ["image", "geneval"]}])
    with serve(Judge()) as url:
        small = {
            **SMALL,
            "REWARD_BATCH_SIZE": "4",
            "SCREEN__GROUP_SIZE": "4",
            "REWARDS__URL": url,
            "RUN_DIR": str(tmp_path / "run"),
            "POLICY__MODEL": str(tmp_path / "model"),
            "POLICY__VQ": str(tmp_path / "model/vq"),
        }
        settings = load(CONFIGS / f"{name}.toml", {f"SYNOD__TRAINER__{key}": value for key, value in small.items()})
        assert dry_run(settings) == 0
        assert run.run(settings) == 0
    assert "intrinsic: 0." in capsys.readouterr().out
    for one in lines(settings.run_dir):
        assert set(one["components"]) == {"geneval", "intrinsic"}
        assert one["reward_mean"] == pytest.approx(one["components"]["intrinsic"])  # the other has weight 0
        assert (one["pathways"], one["loss_text"]) == (["none", "none"], None)
        assert one["grad_norm"] > 0
        assert one["ratio_max_image"] == 1.0  # of the distribution that was sampled
    assert one["kl_image"] > 0


UNIRL = {
    "unirl_zero_3": {"geneval": "image"},
    "unirl_zero_4": {"clip_direction": "image", "quality": "image", "clip_i": "cycled"},
    "unirl_zero_5": {"geneval": "image", "format": "answer"},
    "unirl_zero_6": {"geneval": "image", "reflection": "answer"},
}


@pytest.mark.parametrize("name", list(UNIRL))
def test_the_settings_of_unirl_zero_train_small_models(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the models, their sizes, and how much is drawn: ratios of images are exactly 1 in every scenario."""
    needs = {
        "geneval": ["image", "geneval"],
        "clip_direction": ["image", "prompt", "references", "source_prompt"],
        "clip_i": ["image", "references"],
        "quality": ["image"],
        "format": ["reasoning"],
        "reflection": ["reasoning"],
    }
    monkeypatch.setitem(reward_services.CATALOGUE, "scorers", [{"name": n, "needs": of} for n, of in needs.items()])
    words = ("a", "photo", "of", "image", "this", "prompt", "answer", "Yes", "No")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny_vlm.qwen(tmp_path / "words", words)
    has_answers = name in ("unirl_zero_5", "unirl_zero_6")
    small = {
        "STEPS": "2",
        "PROMPTS_PER_STEP": "1",
        "REWARD_BATCH_SIZE": "2",
        "SCREEN__GROUP_SIZE": "4",
        "LOSS__MICRO_BATCH": "2",
        "POLICY__SAMPLER__DENOISING_STEPS": "4",
        "POLICY__MAX_TEXT_LENGTH": "8",
        "POLICY__DTYPE": "float32",
        "RUN_DIR": str(tmp_path / "run"),
        "POLICY__MODEL": str(write_pipeline(tmp_path / "model", "sana")),
    }
    if has_answers:
        small |= {"POLICY__LANGUAGE__MODEL": str(tmp_path / "words"), "POLICY__LANGUAGE__MAX_NEW_TOKENS": "4"}
    with serve(Judge(brightness_or_length)) as url:
        environ = {f"SYNOD__TRAINER__{key}": value for key, value in {**small, "REWARDS__URL": url}.items()}
        settings = load(CONFIGS / f"{name}.toml", environ)
        assert settings.rewards.results == UNIRL[name]
        assert run.run(settings, evaluated=False) == 0
    for one in lines(settings.run_dir):
        assert set(one["components"]) == set(UNIRL[name])
        assert one["grad_norm"] > 0
        assert one["ratio_max_image"] == 1.0
        assert (one["loss_text"] is not None) == (one["reply_length"] is not None) == has_answers
        if has_answers:
            assert one["ratio_max_text"] == pytest.approx(1.0, abs=1e-4)  # one pass against one token at a time
    assert lines(settings.run_dir)[1]["kl_image"] > 0


def test_the_settings_of_flow_grpo_train_a_small_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the model, its size, and how many images are drawn."""
    served = [{"name": one, "needs": ["image", "prompt"]} for one in ("pickscore", "image_reward")]
    monkeypatch.setitem(reward_services.CATALOGUE, "scorers", served)
    with serve(Judge()) as url:
        small = {
            "STEPS": "2",
            "PROMPTS_PER_STEP": "2",
            "REWARD_BATCH_SIZE": "2",
            "SCREEN__GROUP_SIZE": "4",
            "LOSS__MICRO_BATCH": "2",
            "EVALUATE__PROMPTS": "2",
            "REWARDS__URL": url,
            "RUN_DIR": str(tmp_path / "run"),
            "POLICY__MODEL": str(write_pipeline(tmp_path / "model", "sd3")),
            "POLICY__RESOLUTION": "8",
        }
        path = CONFIGS / "sd35_flow_grpo.toml"
        settings = load(path, {f"SYNOD__TRAINER__{key}": value for key, value in small.items()})
        assert run.run(settings) == 0
    for one in lines(settings.run_dir):
        assert one["grad_norm"] > 0
        assert one["ratio_max_image"] == 1.0
        assert one["loss_text"] is None
    assert lines(settings.run_dir)[1]["kl_image"] > 0
    subject = command.resolve(str(settings.run_dir), "geneval").policy
    assert (subject.family, subject.lora) == ("flow", None)  # the trained pipeline, with merged adapters
    assert command.resolve(subject.model, "geneval").policy.family == "flow"
    assert registry.load(subject).image_steps == 10

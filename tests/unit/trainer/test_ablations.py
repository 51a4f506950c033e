"""deploy/configs/ablations: what each changes of embedded.toml, and a dry run of a small policy by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.settings import load as load_service
from tests.unit.trainer import reward_services
from tests.unit.trainer.loops import MakePolicy
from tests.unit.trainer.reward_services import Judge, serve
from tests.unit.trainer.tiny_run import TINY, make_settings
from trainer.__main__ import main
from trainer.checkpoint import flattened
from trainer.settings import load

CONFIGS = Path(__file__).parents[3] / "deploy/configs"
CHANGES: dict[str, dict[str, Any]] = {
    "without_und": {"data.pathways": [], "rewards.ensemble": "sync_r1_without_tier"},
    "without_via": {"data.pathways": ["textual"]},
    "without_tia": {"data.pathways": ["visual"]},
    "without_dgs": {"screen.select": "first_above", "screen.audit": 0.0},
    "tier_ber": {"rewards.ensemble": "tier_ber"},
    "tier_der": {"rewards.ensemble": "tier_der"},
    "tier_ber_der": {"rewards.ensemble": "tier_ber_der"},
    "sync_r1": {},
}
WEIGHTS = {
    "tier_ber": {"tier": 0.4, "ber": 0.6},
    "tier_der": {"tier": 0.4, "der": 0.6},
    "tier_ber_der": {"tier": 0.4, "ber": 0.3, "der": 0.3},
}


def test_every_file_changes_what_it_says() -> None:
    files = {path.stem: path for path in (CONFIGS / "ablations").glob("*.toml")}
    assert files.keys() == CHANGES.keys()
    whole = flattened(load(CONFIGS / "embedded.toml", {}).model_dump(mode="json"))
    for name, path in files.items():
        found = flattened(load(CONFIGS / "embedded.toml", {}, [path]).model_dump(mode="json"))
        assert {key: value for key, value in found.items() if value != whole[key]} == CHANGES[name], name


@pytest.mark.parametrize("config", ["embedded", "sync_r1", "one_gpu"])
def test_their_ensembles_are_served(config: str) -> None:
    """TIER has .4 and what is left shares .6; by kind there is eq. 34 alone."""
    served = load_service(CONFIGS / f"{config}.toml", {}).ensembles
    assert {name: served[name].weights for name in WEIGHTS} == WEIGHTS
    assert all(served[name].clip_at_zero for name in (*WEIGHTS, "sync_r1", "sync_r1_without_tier"))
    for kind, weights in served["sync_r1_without_tier"].by_kind.items():
        whole = {name: weight for name, weight in served["sync_r1"].by_kind[kind].items() if weight}
        assert {"tier": 0.4, **weights} == whole


def test_a_small_policy_draws_and_updates_by_each(
    make_policy: MakePolicy, world_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`synod train CONFIG --with FILE --dry-run`: one group of each arm, with the reward that the arm names."""
    make_policy().save(world_dir / "model")
    ensembles = load_service(CONFIGS / "embedded.toml", {}).ensembles
    served = {name: one.model_dump(mode="json") for name, one in ensembles.items()}
    needs = {"tier": ["reasoning"], "ber": ["image", "prompt"], "der": ["image", "references", "concept"]}
    needs["fer"] = needs["der"]
    monkeypatch.setitem(reward_services.CATALOGUE, "ensembles", served)
    monkeypatch.setitem(reward_services.CATALOGUE, "scorers", [{"name": n, "needs": need} for n, need in needs.items()])
    make_settings(world_dir, TINY)
    small = {"SCREEN__GROUP_SIZE": "2", "SCREEN__MAX_PREVIEWS": "4", "POLICY__SAMPLER__DENOISING_STEPS": "3"}
    for key, value in small.items():
        monkeypatch.setenv(f"SYNOD__TRAINER__{key}", value)
    for name, changes in CHANGES.items():
        judge = Judge()
        with serve(judge) as url:
            monkeypatch.setenv("SYNOD__TRAINER__REWARDS__URL", url)
            path = CONFIGS / f"ablations/{name}.toml"
            assert main([str(world_dir / "train.toml"), "--with", str(path), "--dry-run"]) == 0, capsys.readouterr().err
        assert {spec.ensemble for spec, _ in judge.asked} == {changes.get("rewards.ensemble", "sync_r1")}
        asked = [item for _, items in judge.asked for item in items]
        assert {item.reasoning is None for item in asked} == {changes.get("data.pathways") == []}
        assert all(item.concept is not None and item.references for item in asked)
        drawn = "group: 2 of 2 rollouts" if name == "without_dgs" else "group: 2 of "
        assert drawn in capsys.readouterr().out

"""The trainer's settings: defaults are the paper's values, and a mistake is an error with a remedy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from services.scorers import registry
from services.settings import load as load_service
from synod.errors import SettingsError
from trainer import update
from trainer.data.source import wanted_rewards
from trainer.rewards.served import Served
from trainer.settings import TrainerSettings, load

ROOT = Path(__file__).parents[4]
Make = Callable[..., TrainerSettings]


GDPO = "[trainer.rewards]\nscorers = { a = 1.0 }\naggregation = 'gdpo'\n"
SHIPPED = [path for path in sorted((ROOT / "deploy/configs").glob("*.toml")) if "[trainer]" in path.read_text()]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_toml_loads(path: Path) -> None:
    settings = load(path, {})
    assert settings.run_dir.is_absolute()
    service = load_service(path, {})
    needs = {name: registry.spec(name, one).needs for name, one in service.scorers.items()}
    ensembles = {name: one.model_dump(mode="json") for name, one in service.ensembles.items()}
    assert Served(needs, ensembles).problems(wanted_rewards(settings)) == []


def test_defaults_are_table_4_of_the_paper(settings_from: Make) -> None:
    settings = settings_from()
    assert (settings.steps, settings.prompts_per_step, settings.screen.group_size) == (100, 1, 9)
    assert (settings.optimizer.lr, update.MAX_GRAD_NORM, settings.loss.image.clip) == (1e-6, 1.0, 0.2)
    assert (settings.loss.image.beta, settings.loss.text.alpha, settings.loss.image.alpha) == (0.01, 0.4, 0.6)
    sampler = settings.policy.sampler
    assert (sampler.guidance_scale, sampler.denoising_steps, settings.screening_step) == (5.0, 50, 10)
    named = settings_from("[trainer.screen]\nthreshold = 'quantile'\n").screen
    assert (named.select, named.target_pass_rate, named.audit) == ("first_above", 0.25, 0.1)


def test_auto_is_the_screen_unless_a_rule_is_named(settings_from: Make) -> None:
    """A threshold names the rule that has one; the other rules have none. Those that reject previews are audited."""
    screens = {
        text: settings_from(f"[trainer.screen]\n{text}\n[trainer.loss]\nbaseline = 'population'\n").screen
        for text in ("", "threshold = 'none'", "select = 'best_and_worst'", "select = 'extremes'", "audit = 0.5")
    }
    assert [(one.select, one.threshold, one.audit) for one in screens.values()] == [
        ("auto", "none", 0.2),
        ("first_above", "none", 0.0),
        ("best_and_worst", "none", 0.1),
        ("extremes", "none", 0.0),
        ("auto", "none", 0.5),
    ]
    assert settings_from("[trainer.screen]\nselect = 'first_above'\n").screen.threshold == "quantile"
    for rule in ("auto", "extremes"):  # the limit of previews is not theirs
        assert settings_from(f"[trainer.screen]\nselect = '{rule}'\ngroup_size = 150\n").screen.images == 300
    for steps, predicted in (("50", (10, 25)), ("4", (1, 2)), ("2", (1,))):
        assert settings_from(POLICY__SAMPLER__DENOISING_STEPS=steps).predicted_steps == predicted
    assert settings_from(REWARDS__SURROGATE="known").predicted_steps == ()


def test_paper_toml_has_the_papers_form() -> None:
    paper = load(ROOT / "deploy/configs/sync_r1_paper.toml", {})
    assert (paper.policy.positions, paper.loss.scale, paper.loss.baseline) == ("all", "paper_sum", "group")
    assert (paper.screen.threshold, paper.screen.target_pass_rate) == ("paper", 0.25)
    assert (paper.screen.select, paper.rewards.surrogate) == ("first_above", "ber")
    tier = load_service(ROOT / "deploy/configs/sync_r1_paper.toml", {}).scorers["tier"]
    assert tier.kind == "tier"
    assert tier.mode == "paper_clipped"


def test_paths_resolve_from_the_tomls_folder(settings_from: Make, world_dir: Path) -> None:
    settings = settings_from()
    assert settings.policy.model == str(world_dir / "model")
    assert settings.data.prompts == world_dir / "prompts.jsonl"
    assert settings.run_dir == world_dir / "run"  # it need not be there yet
    assert settings_from(POLICY__MODEL="showlab/show-o-512x512").policy.model == "showlab/show-o-512x512"


def test_the_environment_overrides(settings_from: Make) -> None:
    settings = settings_from(
        "[trainer.screen]\nthreshold = 'none'\n", STEPS="5", LOSS__TEXT__BETA="0.5", LOSS__IMAGE__BETA="0.5"
    )
    assert (settings.steps, settings.loss.text.beta, settings.screen.threshold) == (5, 0.5, "none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trainer.loss]\nclipp = 0.1\n", "trainer.loss.clipp: unknown key"),
        ("[trainer.loss]\nscale = 'some'\n", "trainer.loss.scale"),
        ("[trainer.loss.text]\nbeta = nan\n", "trainer.loss.text.beta"),
        ("[trainer.loss]\nloss_step_fraction = 0\n", "loss_step_fraction"),
        ("[trainer.screen]\naudit = 0\n", "audit 0 measures nothing, so select 'auto' cannot decide"),
        ("[trainer.screen]\nmax_previews = 36\n", "max_previews 36 is for another rule: select 'auto' draws twice"),
        (GDPO, "screen.select 'auto' predicts a weighted sum, but rewards.aggregation is 'gdpo'"),
        ("[trainer.screen]\nthreshold = 'power'\nmax_previews = 8\n", "max_previews 8 is below group_size 9"),
        ("[trainer.screen]\nfinished = 18\n", "finished 18 is for select 'extremes'"),
        (
            '[trainer.screen]\nselect = "extremes"\nthreshold = "quantile"\n',
            "threshold 'quantile' screens previews; give threshold 'none'",
        ),
        (
            '[trainer.screen]\nselect = "extremes"\nthreshold = "none"\nfinished = 8\n',
            "finished 8 is below group_size 9; finish at least the group",
        ),
        ("[trainer.screen]\nthreshold = 'power'\nscreen_fraction = 0.001\n", "leaves no step before or after it"),
        ("[trainer.screen]\nthreshold = 'power'\nscreen_fraction = 0.999\n", "leaves no step before or after it"),
        ("[trainer.screen]\nthreshold = 'logodds'\n", "trainer.screen.threshold"),
        ("[trainer.loss]\nnormalise = 'std'\n", "trainer.loss.normalise"),
        (
            "[trainer.screen]\ngroup_size = 3\n[trainer.loss]\nnormalise = 'group_std'\n",
            "the deviation of 3 rewards, which gives two rewards +-.707 whatever their difference; give a "
            "screen.group_size of at least 4",
        ),
        (
            GDPO + "[trainer.screen]\nselect = 'extremes'\ngroup_size = 2\nfinished = 2\n",
            "rewards.aggregation 'gdpo' divides by the deviation of 2 rewards, which gives two rewards +-.707 whatever "
            "their difference; give a screen.group_size of at least 4, or rewards.aggregation 'sum'",
        ),
        ("[trainer.loss]\nadvantage_clamp = 0\n", "trainer.loss.advantage_clamp"),
        ("[trainer.loss]\nstep_scale = 'w'\n", "trainer.loss.step_scale"),
        (GDPO + "[trainer.loss]\nnormalise = 'batch_std'\n", "gdpo, with loss.normalise 'batch_std' and"),
        (GDPO + "[trainer.loss]\nbaseline = 'population'\n", "loss.baseline 'population'; it centres"),
        ("[trainer.rewards]\nurl = 'localhost:8000'\n", "trainer.rewards.url"),
        ("[trainer.policy.sampler]\ndenoising_steps = 1\n", "denoising_steps"),
        ({"POLICY__MODEL": "./gone"}, "'./gone': no such file or directory"),
        ({"POLICY__VQ": "/no/vq"}, "trainer.policy.vq: '/no/vq': no such file or directory"),
        ({"DATA__PROMPTS": "gone.jsonl"}, "trainer.data.prompts: 'gone.jsonl': no such file"),
        ({"DATA__HELDOUT": "concepts"}, "trainer.data.heldout: 'concepts': no such file"),
        ({"DATA__CONCEPTS": "gone"}, "trainer.data.concepts: 'gone': no such directory"),
        ({"STEPS__MORE": "1"}, "SYNOD__TRAINER__STEPS__MORE: 'steps' is a value, not a table"),
    ],
)
def test_a_mistake_is_named(settings_from: Make, text: str | dict[str, str], message: str) -> None:
    """In the TOML, or in the environment."""
    with pytest.raises(SettingsError) as caught:
        settings_from(text) if isinstance(text, str) else settings_from(STEPS="3", **text)
    assert message in str(caught.value)


def test_groups_of_two_take_the_papers_form(settings_from: Make) -> None:
    small = "[trainer.screen]\ngroup_size = 2\n[trainer.loss]\nnormalise = 'group_std_paper'\n"
    assert settings_from(small).screen.group_size == 2


def test_a_file_without_the_table_names_the_missing_key(tmp_path: Path) -> None:
    path = tmp_path / "service.toml"
    path.write_text("[server]\nport = 8000\n")
    with pytest.raises(SettingsError, match=r"trainer\.run_dir: Field required"):
        load(path, {})


def test_the_service_ignores_the_trainers_table(tmp_path: Path) -> None:
    path = tmp_path / "both.toml"
    path.write_text(
        '[scorers.der]\nkind = "der"\nmodel = "facebook/dinov2-base"\n[trainer]\nrun_dir = 3\nnew = "knob"\n'
    )
    assert load_service(path, {}).scorers["der"].kind == "der"


@pytest.mark.slow
def test_settings_load_without_torch() -> None:
    program = "import sys, trainer.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0

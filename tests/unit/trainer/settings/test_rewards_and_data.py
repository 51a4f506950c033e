"""The tables [trainer.data] and [trainer.rewards]: which task, which reward, and every mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from synod.errors import SettingsError
from tests.unit.trainer.tiny_run import make_settings
from trainer.data.source import GENEVAL, PromptTasks, SyncR1Tasks, heldout_tasks, training_tasks, wanted_rewards
from trainer.rewards.served import Served
from trainer.settings import PromptSettings, SyncR1Settings, TrainerSettings, load
from trainer.types import RewardSpec

Make = Callable[..., TrainerSettings]


@pytest.fixture
def plain(tmp_path: Path) -> Make:
    """`plain(data, rewards)`: settings with these lines in the two tables, and a text file of three prompts."""
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na cat\n")
    (tmp_path / "model").mkdir(exist_ok=True)

    def make(data: str = "", rewards: str = "scorers = { pickscore = 1.0 }", more: str = "") -> TrainerSettings:
        path = tmp_path / "train.toml"
        path.write_text(
            f'[trainer]\nrun_dir = "run"\n[trainer.policy]\nmodel = "./model"\n[trainer.data]\n'
            f'prompts = "prompts.txt"\n{data}\n[trainer.rewards]\n{rewards}\n{more}\n'
        )
        return load(path, {})

    return make


def test_plain_prompts_are_the_default_task(plain: Make) -> None:
    settings = plain()
    assert isinstance(settings.data, PromptSettings)
    assert (settings.data.heldout, settings.data.column) == (None, "prompt")
    said: list[str] = []
    source = training_tasks(settings, said.append)
    assert isinstance(source, PromptTasks)
    assert {task.prompt.text for step in range(2) for task in source.tasks(step)} == {"a cat", "a dog"}
    assert source.reward == RewardSpec({"pickscore": 1.0})
    assert len(said) == 1
    assert "1 of 3 prompts repeat" in said[0]
    with pytest.raises(SettingsError, match=r"names no held-out prompts; give heldout = a file"):
        heldout_tasks(settings, 0, 1)


def test_held_out_prompts_use_the_same_reward(plain: Make, tmp_path: Path) -> None:
    (tmp_path / "held.jsonl").write_text('{"prompt": "a fish"}\n{"prompt": "a fish"}\n')
    tasks = heldout_tasks(plain('heldout = "held.jsonl"'), 0, 3)
    assert [(task.prompt.text, task.reward) for task in tasks] == [("a fish", RewardSpec({"pickscore": 1.0}))] * 3


def test_settings_survive_json(settings_from: Make, plain: Make) -> None:
    for settings in (
        plain(
            'column = "text"',
            'scorers = { a = 1.0, b = -2.5 }\naggregation = "gdpo"',
            "[trainer.screen]\nselect = 'extremes'",
        ),
        settings_from(),
    ):
        assert TrainerSettings.model_validate(json.loads(settings.model_dump_json())) == settings


def test_sync_r1_is_rewarded_by_its_ensemble(settings_from: Make) -> None:
    assert isinstance(settings_from().data, SyncR1Settings)
    assert settings_from().rewards.ensemble == "sync_r1"
    assert settings_from("[trainer.rewards]\nensemble = 'mine'\n").rewards.ensemble == "mine"
    source = training_tasks(settings_from("[trainer.rewards]\nscorers = { ber = 1.0 }\n", DATA__GENEVAL_SHARE="0.5"))
    assert isinstance(source, SyncR1Tasks)
    rewards = [task.reward for step in range(4) for task in source.tasks(step)]
    assert [rewards.count(one) for one in (GENEVAL, RewardSpec({"ber": 1.0}))] == [2, 2]


@pytest.mark.parametrize(
    ("data", "rewards", "message"),
    [
        (
            "",
            "",
            "trainer.rewards: neither scorers nor terms nor an ensemble; give weights, such as scorers = { pick",
        ),
        ("", "scorers = {}", "trainer.rewards: neither scorers nor terms nor an ensemble"),
        (
            "",
            "scorers = { a = 1.0 }\nensemble = 'e'",
            "trainer.rewards: both scorers and ensemble; give one of",
        ),
        (
            "",
            "scorers = { a = 0.0, b = 0 }",
            "trainer.rewards: every weight of a, b is 0; give at least one of them a nonzero weight",
        ),
        ("", "terms = [{ scorer = 'a', weight = 0 }]", "trainer.rewards: every weight of a is 0"),
        ("", "terms = [{ scorer = 'a' }, { scorer = 'a' }]", "trainer.rewards: terms names scorer a twice; give the"),
        ("", "terms = [{ scorer = 'a' }]\nensemble = 'e'", "trainer.rewards: both terms and ensemble; give one of"),
        (
            "",
            "terms = [{ scorer = 'a', of = 'reply' }]",
            "trainer.rewards.terms.0.of: Input should be 'image', 'an",
        ),
        ("", "scorers = { a = nan }", "trainer.rewards.scorers.a: Input should be a finite number (given: nan)"),
        (
            "",
            "scorers = { a = 1.0, b = inf }",
            "trainer.rewards.scorers.b: Input should be a finite number (given: inf)",
        ),
        ("", "scorers = { a = 'x' }", "trainer.rewards.scorers.a: Input should be a valid number"),
        ("", "scorers = ['a']", "trainer.rewards.scorers: Input should be a valid dictionary"),
        ("", "ensemble = ''", "trainer.rewards.ensemble: String should have at least 1 character"),
        (
            "",
            "ensemble = 'e'\naggregation = 'gdpo'",
            "aggregation 'gdpo' needs scorers, but ensemble 'e' is combined by",
        ),
        (
            "",
            "scorers = { a = 1.0 }\naggregation = 'max'",
            "trainer.rewards.aggregation: Input should be 'sum' or 'gdpo'",
        ),
        ("", "scorers = { a = 1.0 }\nsurrogate = ''", "trainer.rewards.surrogate: String should have at least 1 char"),
        ("task = 'prompt'", "ensemble = 'e'", "trainer.data: Input tag 'prompt' found"),
        (
            "concepts = '.'",
            "ensemble = 'e'",
            "trainer.data: 'concepts' belongs to Sync-R1's task; add task = \"sync_r1\"",
        ),
        ("geneval_share = 0.1", "ensemble = 'e'", "trainer.data: 'geneval_share' belongs to Sync-R1's task"),
        ("colum = 'x'", "ensemble = 'e'", "trainer.data.colum: unknown key"),
        ("column = ''", "ensemble = 'e'", "trainer.data.column: String should have at least 1 character"),
        ("heldout = 'gone.txt'", "ensemble = 'e'", "trainer.data.heldout: 'gone.txt': no such file"),
        ("task = 'sync_r1'\nheldout = 'prompts.txt'", "", "trainer.data.concepts: Field required"),
        ("task = 'sync_r1'\ncolumn = 'x'", "", "trainer.data.column: unknown key"),
    ],
)
def test_a_mistake_is_named(plain: Make, data: str, rewards: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        plain(data, rewards)
    assert message in str(caught.value)


def test_the_tables_must_be_tables(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    for text, message in (
        ("trainer = 3", "trainer: Input should be a valid dictionary"),
        ("[trainer]\ndata = 3", "trainer.data: Unable to extract tag"),
        ("[trainer]\nrewards = 3", "trainer.rewards: Input should be a valid dictionary"),
        ("[trainer]\nsteps = 1", "trainer.data: Field required"),
    ):
        path.write_text(text)
        with pytest.raises(SettingsError) as caught:
            load(path, {})
        assert message in str(caught.value)


def test_wanted_rewards_have_their_inputs(settings_from: Make, plain: Make, tmp_path: Path) -> None:
    named = plain(rewards="scorers = { pickscore = 1.0 }\nsurrogate = 'ber'")
    found = [(one.role, dict(one.spec.scorers), sorted(one.inputs)) for one in wanted_rewards(named)]
    assert found == [
        ("scorer", {"pickscore": 1.0}, ["image", "prompt"]),
        ("surrogate", {"ber": 1.0}, ["image", "prompt"]),
    ]
    unscreened = plain(more="[trainer.screen]\nthreshold = 'none'")
    assert [one.role for one in wanted_rewards(unscreened)] == ["scorer"]
    line = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "two dogs"}
    (tmp_path / "held.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "geneval.jsonl").write_text(json.dumps(line) + "\n")
    mixed = wanted_rewards(plain('heldout = "held.jsonl"'))  # the training prompts have no metadata
    assert "geneval" not in mixed[0].inputs
    settings = plain('heldout = "held.jsonl"', "scorers = { pickscore = 1.0 }\nsurrogate = 'ber'")
    data = settings.data.model_copy(update={"prompts": tmp_path / "geneval.jsonl"})
    whole = wanted_rewards(settings.model_copy(update={"data": data}))
    assert [sorted(one.inputs) for one in whole] == [["geneval", "image", "prompt"], ["image", "prompt"]]
    shares = {
        share: wanted_rewards(settings_from(DATA__GENEVAL_SHARE=share, REWARDS__SURROGATE="ber"))
        for share in ("0", "0.5", "1")
    }
    assert [[one.spec.ensemble or dict(one.spec.scorers) for one in found] for found in shares.values()] == [
        ["sync_r1", {"ber": 1.0}],
        ["sync_r1", {"geneval": 1.0}, {"ber": 1.0}],
        [{"geneval": 1.0}, {"ber": 1.0}],
    ]
    assert sorted(shares["0"][0].inputs) == ["concept", "image", "prompt", "reasoning", "references"]


def test_without_pathways_tier_is_not_wanted(settings_from: Make) -> None:
    """And the prompts have no answer to score."""
    settings = settings_from(DATA__PATHWAYS="[]", REWARDS__SURROGATE="ber")
    (wanted, surrogate) = wanted_rewards(settings)
    assert wanted.spec.ensemble == "sync_r1_without_tier"
    assert sorted(wanted.inputs) == ["concept", "image", "prompt", "references"]
    assert surrogate.role == "surrogate"
    served = Served({"tier": ["reasoning"]}, {"mine": {"by_kind": {"animal": {"tier": 0.4}}}})
    named = settings_from('[trainer.rewards]\nensemble = "mine"', DATA__PATHWAYS="[]", SCREEN__THRESHOLD="none")
    assert served.problems(wanted_rewards(named)) == [
        "'tier' of ensemble 'mine' needs reasoning, but these prompts give only concept, image, prompt, references"
    ]
    with pytest.raises(SettingsError, match=r"'known' screens answers, but these data\.pathways have none"):
        settings_from(DATA__PATHWAYS="[]", REWARDS__SURROGATE="known")


def test_pathways_and_template_reach_the_tasks(settings_from: Make) -> None:
    template = '"{prompt} | {facts}"'
    settings = settings_from(DATA__PATHWAYS='["textual"]', DATA__TEXTUAL_TEMPLATE=template, PROMPTS_PER_STEP="8")
    tasks = training_tasks(settings).tasks(0)
    assert all(task.query and task.query.text.startswith(f"{task.prompt.text} | <bo> has a ") for task in tasks)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("pathways = ['visual', 'visual']", "data.pathways: pathways ['visual', 'visual']: a pathway is given twice"),
        ("pathways = ['audio']", "data.pathways.0: Input should be 'visual' or 'textual'"),
        ("textual_template = 'public'", "data.textual_template: the template lacks {facts} and {prompt}; give a text"),
        ("textual_template = '{facts} {prompt} {fact}'", "the template has an unknown {fact}; give"),
        ("textual_template = '{facts} {prompt.text}'", "give a text with {facts}, {prompt} and, if wanted, {name}, or"),
        ("textual_template = '{facts} {prompt} }'", "the template is malformed (Single '}' encountered in format str"),
    ],
)
def test_a_mistake_of_the_pathways_is_named(world_dir: Path, data: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_settings(world_dir, data)
    assert message in str(caught.value)


def test_surrogates_of_the_reward_want_no_scorer(settings_from: Make, plain: Make) -> None:
    """ "known" wants a scorer of text where there are answers, which plain prompts do not have."""
    for surrogate, known in (("known", [True, False]), ("known+predicted", [False, False])):
        found = wanted_rewards(settings_from(DATA__GENEVAL_SHARE="0.5", REWARDS__SURROGATE=surrogate))
        assert [one.role for one in found] == ["scorer", "scorer"]
        assert [one.known for one in found] == known
    rewards = "scorers = { pickscore = 1.0 }\nsurrogate = 'known'"
    with pytest.raises(SettingsError, match=r"surrogate 'known' screens answers, but data\.task 'prompts' has none"):
        plain(rewards=rewards)
    plain(rewards=rewards, more="[trainer.screen]\nthreshold = 'none'")

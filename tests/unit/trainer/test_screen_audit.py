"""The audit in a run: it changes no rollout and no weight, and survives a resume and an exchange."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from synod.errors import SettingsError
from tests.unit.trainer.loops import MakePolicy, MakeSettings, draw, equal, lines, run_loop, same_images, weights
from tests.unit.trainer.reward_services import Judge, brightness
from trainer.algorithms.audit import Audit, Correlation, Observed
from trainer.algorithms.costs import Costs, Work
from trainer.groups import from_document, to_document
from trainer.policy.show_o.policy import ShowO
from trainer.report.page import audit, write_report
from trainer.screen_audit import JUDGED, audit_line, audit_record, doubts, update_audits, update_costs

STEPS = {"STEPS": "4", "PROMPTS_PER_STEP": "3", "DATA__GENEVAL_SHARE": "0.34"}
NEW = ("audit", "denoising_steps", "denoising_steps_saved_ratio")


def test_an_audit_changes_no_update(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    """Weights and metrics are those of the run without it, bit for bit."""
    found = []
    for share in ("0", "0.5", "1"):
        settings = tiny_settings(**STEPS, SCREEN__AUDIT=share, RUN_DIR=f'"audit-{share}"')
        policy = make_policy()
        state = run_loop(settings, make_policy, Judge(), policy)
        found.append((weights(policy), lines(settings.run_dir, *NEW), state))
    (before, plain, off), *others = found
    assert off.audits == {}
    for after, audited, state in others:
        assert equal(before, after)
        assert audited == plain
        assert set(state.audits) == {"visual", "textual", "none"}
        assert sum(one.audited for one in state.audits.values()) > 0


def test_audited_rollouts_are_rejected_ones_that_are_finished(policy: ShowO, tiny_settings: MakeSettings) -> None:
    """With the share 1 every rejected preview, and each one's image is that of a run that keeps it."""
    settings, judge = tiny_settings(SCREEN__AUDIT="1", SCREEN__GROUP_SIZE="2"), Judge()
    (group,), _ = draw(policy, judge, settings, threshold=0.4)
    previews = group.previews
    assert set(previews.audited) == set(range(len(previews.scores))) - set(previews.screened.indices)
    assert previews.audited
    items = [item for _, asked in judge.asked for item in asked]
    all_kept = tiny_settings(SCREEN__THRESHOLD="none", SCREEN__GROUP_SIZE=str(len(previews.scores)))
    (whole,), _ = draw(policy, Judge(), all_kept)
    order = [*previews.screened.indices, *previews.audited]
    assert same_images([item.image for item in items], [whole.images[i] for i in order])
    assert [reward.value for reward in group.audit] == [brightness(item) for item in items[len(group.rewards) :]]
    assert len(group.rollouts) == len(group.rewards) == 2
    found = from_document(previews.task, json.loads(json.dumps(to_document(group))))
    assert (found.audit, found.previews.audited) == (group.audit, previews.audited)


def test_the_share_decides_which_are_audited(policy: ShowO, tiny_settings: MakeSettings) -> None:
    """A larger share audits the same and more; the same key audits the same."""
    scores = iter([0.0] * 10**4)
    found: list[set[int]] = []
    for share in ("0.3", "0.3", "0.7", "1"):
        settings = tiny_settings(SCREEN__AUDIT=share)
        (group,), _ = draw(policy, Judge(surrogate=lambda item: next(scores)), settings, threshold=0.5)
        found.append(set(group.previews.audited))
    assert found[0] == found[1] <= found[2] <= found[3]
    assert 0 < len(found[2]) < len(found[3]) == 8


def test_each_group_is_audited_by_numbers_of_its_own(policy: ShowO, tiny_settings: MakeSettings) -> None:
    settings = tiny_settings(SCREEN__AUDIT="0.5", PROMPTS_PER_STEP="3", DATA__GENEVAL_SHARE="1")
    groups, _ = draw(policy, Judge(surrogate=lambda item: 0.0), settings, threshold=0.5)
    assert len({group.previews.audited for group in groups}) == 3


def test_an_audited_reward_stands_for_those_that_were_not(policy: ShowO, tiny_settings: MakeSettings) -> None:
    """Its weight is 1 over the share; a group without a screen is left out."""
    settings = tiny_settings(SCREEN__AUDIT="0.5", SCREEN__GROUP_SIZE="2")
    (group,), _ = draw(policy, Judge(), settings, threshold=0.45)
    previews = group.previews
    rewards = dict(zip(previews.screened.indices, group.rewards, strict=True))
    rewards |= zip(previews.audited, group.audit, strict=True)
    seen = [
        Observed(
            score, value, 1.0 if i in previews.screened.indices else 2.0, i in previews.screened.indices, score <= 0.45
        )
        for i, reward in rewards.items()
        if (score := previews.scores[i]) is not None and (value := reward.value) is not None
    ]
    drawn, pathway = previews.screened.drawn, previews.task.pathway
    expected = Audit().add(previews.scores, previews.screened.indices, seen, population=False)
    answers = previews.task.query is not None
    expected = replace(
        expected,
        work=Work(drawn * answers, drawn * 1 + 2 * 3, drawn + 2, drawn, 2, 2),
        plain=Work(2 * answers, 2 * 4, 2, 0, 2, 2),
    )
    assert update_audits({}, [group], settings) == {pathway: expected}
    assert {one.weight for one in seen} == {1.0, 2.0}
    (unscreened,), _ = draw(policy, Judge(), tiny_settings(SCREEN__THRESHOLD="none"))
    assert update_audits({}, [unscreened], settings) == {}


def test_a_resumed_audit_is_that_of_a_whole_run(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    """Its sums, without the seconds."""
    options: dict[str, Any] = {**STEPS, "SCREEN__AUDIT": "0.5"}
    whole = run_loop(tiny_settings(**options), make_policy, Judge())
    for steps in ("2", "4"):
        parts = run_loop(tiny_settings(**options | {"STEPS": steps}, RUN_DIR='"parts"'), make_policy, Judge())
    assert parts.audits == whole.audits
    assert parts.costs.done == whole.costs.done
    assert parts.costs.seconds.rollouts > 0


def test_the_figures_are_reported(make_policy: MakePolicy, tiny_settings: MakeSettings, world_dir: Path) -> None:
    """In every line of metrics.jsonl, on the page, and in a line for people."""
    settings = tiny_settings(**STEPS, SCREEN__AUDIT="0.5")
    state = run_loop(settings, make_policy, Judge())
    records = [json.loads(text) for text in (settings.run_dir / "metrics.jsonl").read_text().splitlines()]
    last = records[-1]
    assert last["audit"] == json.loads(json.dumps(audit_record(state.audits, state.costs)["audit"]))
    assert set(last["signal_per_second"]) == set(last["audit"]) == {"visual", "textual", "none"}
    assert sum(one["groups"] for one in last["audit"].values()) == 4 * 3
    assert [pathway for pathway, _ in audit(records)] == [
        {"none": "no reasoning"}.get(pathway, pathway) for pathway in last["audit"]
    ]
    assert "Audit of the screen" in write_report(settings.run_dir).read_text()
    assert "textual: rank correlation" in (audit_line(state.audits, state.costs) or "")
    assert audit_line({}, Costs()) is None
    assert audit([]) == audit([{"step": 0}]) == []
    assert "not measured" in (audit_line({"none": Audit()}, Costs()) or "")


@pytest.mark.parametrize(("sign", "is_said"), [((1, 1, 1, 1), False), ((1, 1, 1, -1), False), ((1, -1, 1, -1), True)])
def test_a_poor_surrogate_is_reported_once(sign: tuple[int, ...], is_said: bool) -> None:
    """Groups of two rollouts whose scores order the rewards rightly or not: correlations of 1, .5 and 0."""
    spearman, groups = Correlation(), [*sign * (JUDGED // len(sign))]
    for one in groups:
        spearman = spearman.add([0.25, 0.75], [0.5 - 0.25 * one, 0.5 + 0.25 * one], [1.0, 1.0], 2)
    few, enough = ({"visual": Audit(spearman=spearman, groups=count)} for count in (JUDGED - 1, JUDGED))
    assert spearman.value == pytest.approx(sum(groups) / len(groups))
    said = list(doubts(few, enough, Costs()))
    assert len(said) == is_said
    assert all(f"rank correlation of {spearman.value:.2f} ± 0.2" in line for line in said)
    assert all("in 20 groups" in line and 'select = "auto"' in line for line in said)
    assert list(doubts({}, few, Costs())) == list(doubts(enough, enough, Costs())) == []


def test_costs_are_of_all_ranks(policy: ShowO, tiny_settings: MakeSettings) -> None:
    """Two ranks; the first group was replaced, so that it was finished and not in the update."""
    settings = tiny_settings(PROMPTS_PER_STEP="2", DATA__GENEVAL_SHARE="0")
    groups, _ = draw(policy, Judge(), settings)
    seconds = [
        {"reason": 1.0, "preview": 2.0, "decode": 0.5, "finish": 3.0, "audit": 9.0, "total": 20.0},
        {"preview": 1.0, "surrogate": 0.25, "reward_wait": 1.0, "update": 4.0, "total": 20.0},
    ]
    found = update_costs(Costs(Work(answers=1.0), Work(answers=1)), groups, 1, seconds, settings)
    assert found.seconds == Work(2.0, 6.0, 0.5, 0.25, 1.0, 4.0)
    assert found.done == Work(answers=9, steps=8 * 4, images=16, scores=8, rewards=8, rollouts=4)


def test_reading_by_the_policy_itself_costs_time(policy: ShowO, tiny_settings: MakeSettings) -> None:
    """That of previews is scoring, that of finished images rewarding, without the share of audited ones."""
    settings = tiny_settings()
    (group,), _ = draw(policy, Judge(), settings)
    assert len(group.rewards) == 4
    seconds = [{"surrogate": 0.25, "read_previews": 1.0, "reward_wait": 0.5, "intrinsic": 6.0, "total": 9.0}]
    found = update_costs(Costs(), [group], 0, seconds, settings).seconds
    assert (found.scores, found.rewards) == (1.25, 6.5)
    audited = replace(group, audit=group.rewards[:2])
    assert update_costs(Costs(), [audited], 0, seconds, settings).seconds.rewards == pytest.approx(0.5 + 6 * 4 / 6)


def test_an_audit_without_a_screen_is_refused(tiny_settings: MakeSettings) -> None:
    with pytest.raises(SettingsError, match=r"audit 0\.5 measures a screen, but threshold 'none'"):
        tiny_settings(SCREEN__AUDIT="0.5", SCREEN__THRESHOLD="none")

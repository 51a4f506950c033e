"""Paired differences against numpy and by hand; missing scores drop pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synod.errors import SettingsError
from trainer.evaluate.compare import (
    Evaluation,
    Paired,
    Row,
    Summary,
    hacking,
    paired,
    paired_heldout,
    right,
    summary,
)

CONDITIONS = {"seed": 0}
FACTS = ("<bo> has a red hat", "<bo> has a blue kite", "<bo> has a red hat and a scarf")
scores = st.lists(st.none() | st.floats(-2, 2), max_size=12)


def row(reward: float | None, pathway: str = "none", tag: str = "colors", **more: object) -> Row:
    fields: dict[str, object] = {"answer": "", "components": {}, "right": None}
    return Row(f"k/{pathway}", pathway, tag, "a prompt", reward=reward, **{**fields, **more})  # type: ignore[arg-type]


def of(*rows: Row) -> Evaluation:
    return Evaluation(CONDITIONS, rows)


@given(values=scores)
def test_summary_agrees_with_numpy(values: list[float | None]) -> None:
    measured = [value for value in values if value is not None]
    found = summary(values)
    assert found.n == len(measured)
    assert (found.mean is None) == (not measured)
    assert (found.stderr is None) == (len(measured) < 2)
    if found.mean is not None:
        assert found.mean == pytest.approx(np.mean(measured))
    if found.stderr is not None:
        assert found.stderr == pytest.approx(np.std(measured, ddof=1) / np.sqrt(len(measured)), abs=1e-12)


def test_a_pair_by_hand() -> None:
    before, after = of(row(0.25), row(0.5), row(None), row(0.75), row(None)), of(*map(row, (0.5, 0.5, 1.0, None, None)))
    # two pairs, differences .25 and 0: mean .125, standard error (.25 / sqrt 2) / sqrt 2 = .125
    sides = Summary(0.375, 0.125, 2), Summary(0.5, 0.0, 2)
    assert paired(before, after)["reward"] == Paired(*sides, 0.125, pytest.approx(0.125), 2, 3)


@pytest.mark.parametrize(
    ("rewards", "stderr"),
    [
        ((0.2, 0.2, 0.0, 0.0), 0.1),  # images of a prompt change alike: sqrt(2 (.2^2 + .2^2)) / 4
        ((0.2, 0.0, 0.2, 0.0), 0.2 / 3**0.5 / 2),  # prompts change alike: only the independent error
    ],
)
def test_the_error_allows_for_images_of_a_prompt_to_change_alike(rewards: tuple[float, ...], stderr: float) -> None:
    prompts = ("a dog", "a dog", "a cat", "a cat")
    after = of(*(replace(row(reward), prompt=prompt) for reward, prompt in zip(rewards, prompts, strict=True)))
    before = of(*(replace(one, reward=0.0) for one in after.rows))
    change = paired(before, after)["reward"]
    assert (change.difference, change.stderr) == (pytest.approx(0.1), pytest.approx(stderr))


@settings(max_examples=40)
@given(values=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=9), lost=st.integers(0, 8))
def test_difference_is_antisymmetric(values: list[tuple[float, float]], lost: int) -> None:
    before, after = of(*(row(a) for a, _ in values)), of(*(row(b) for _, b in values))
    one, other = paired(before, after)["reward"], paired(after, before)["reward"]
    assert one.difference is not None
    assert one.before.mean is not None
    assert one.after.mean is not None
    assert one.difference == pytest.approx(one.after.mean - one.before.mean, abs=1e-12)
    assert other == Paired(one.after, one.before, pytest.approx(-one.difference), pytest.approx(one.stderr), one.n, 0)
    lost %= len(values)
    fewer = paired(of(*(replace(r, reward=None) if i == lost else r for i, r in enumerate(before.rows))), after)
    without = [pair for i, pair in enumerate(values) if i != lost]
    assert fewer["reward"].dropped == 1
    assert fewer["reward"].difference == pytest.approx(np.mean([b - a for a, b in without]), abs=1e-12)


def test_measures_read_their_own_rows() -> None:
    before = of(
        row(0.4, "visual", "plain", components={"ber": 0.1, "fer": 0.3}, right=False),
        row(0.6, "textual", "dense", components={"ber": 0.3, "tier": 0.5}, right=True),
        row(None, "textual", "dense", components={"tier": 0.7}, right=False),
        row(1.0, components={"geneval": 1.0}),
        row(0.5, tag="position", components={"geneval": 0.5}),
    )
    after = of(
        row(0.5, "visual", "plain", components={"ber": 0.3, "der": 0.2}, right=True),
        row(0.6, "textual", "dense", components={"ber": 0.5, "tier": 0.5}, right=True),
        row(None, "textual", "dense", components={"tier": 0.9}, right=True),
        row(0.5, components={"geneval": 0.5}),
        row(None, tag="position"),
    )
    found = {name: (p.before.mean, p.after.mean, p.n, p.dropped) for name, p in paired(before, after).items()}
    assert found == {
        "reward": (pytest.approx(2 / 3), pytest.approx(1.6 / 3), 3, 2),
        "reward visual": (0.4, 0.5, 1, 0),
        "reward textual": (0.6, 0.6, 1, 1),
        "instruct": (0.0, 1.0, 1, 0),
        "attribute": (0.5, 1.0, 2, 0),
        "ber": (pytest.approx(0.2), pytest.approx(0.4), 2, 0),
        "der": (None, None, 0, 1),
        "fer": (None, None, 0, 1),
        "geneval": (1.0, 0.5, 1, 1),
        "tier": (pytest.approx(0.6), pytest.approx(0.7), 2, 0),
        "correct": (1.0, 0.0, 1, 1),
        "geneval colors": (1.0, 0.5, 1, 0),
        "geneval position": (None, None, 0, 1),
    }


def test_image_parts_and_official_verdicts_are_compared() -> None:
    """The image part is a measure of its own only where some term was fixed; verdicts only where one was given."""
    before = of(row(0.6, "textual", image_part=0.2), row(0.5, image_part=0.5, official=0.0), row(0.3))
    after = of(row(0.5, "textual", image_part=0.3), row(1.0, image_part=1.0, official=1.0), row(0.4))
    found = paired(before, after)
    assert (found["image part"].difference, found["image part"].n) == (pytest.approx(0.3), 2)
    assert (found["official"].difference, found["official"].n, found["official"].dropped) == (1.0, 1, 0)
    plain = of(row(0.5, image_part=0.5))
    assert not {"image part", "official"} & set(paired(plain, plain))


def test_only_rewards_of_geneval_alone_count_as_correct() -> None:
    plain = of(row(21.5, tag="prompt", components={"hps": 21.5}))  # above 1, but not a GenEval score
    mixed = of(row(1.0, components={"geneval": 1.0, "hps": 20.0}))
    for evaluation in (plain, mixed):
        assert not {name for name in paired(evaluation, evaluation) if name.startswith(("correct", "geneval "))}


def test_scorers_not_trained_on_are_compared_apart() -> None:
    before = of(row(0.2, heldout={"hps": 1.0, "iqa": 3.0}, heldout_reward=4.0), row(0.3, heldout={"hps": 2.0}))
    after = of(row(0.4, heldout={"hps": 2.0, "iqa": 2.0}, heldout_reward=4.0), row(0.3, heldout={"hps": 2.0}))
    found = {name: (p.difference, p.n, p.dropped) for name, p in paired_heldout(before, after).items()}
    assert found == {"reward": (0.0, 1, 1), "hps": (0.5, 2, 0), "iqa": (-1.0, 1, 1)}
    assert "hps" not in paired(before, after)
    assert paired_heldout(of(row(0.5)), of(row(0.6))) == {}


@pytest.mark.parametrize(
    ("trained", "heldout", "warns"),
    [(0.2, -0.3, True), (0.2, 0.3, False), (-0.2, -0.3, False), (0.001, -0.3, False), (0.2, -0.001, False)],
)
def test_a_trained_reward_up_and_another_down_warns(trained: float, heldout: float, warns: bool) -> None:
    """Changes have a spread of 0.01 over nine images: 0.001 is within two standard errors."""
    noise = [0.01 * (i - 4) for i in range(9)]
    before = of(*(row(0.5, heldout={"hps": 0.5}, heldout_reward=0.5) for _ in noise))
    after = of(
        *(row(0.5 + trained + e, heldout={"hps": 0.5}, heldout_reward=0.5 + heldout - e) for e in noise),
    )
    found = hacking(before, after)
    assert (found is not None) == warns
    if found is not None:
        assert "the trained reward rose by 0.200 ± 0.009" in found
        assert "fell by 0.300 ± 0.009" in found
    assert hacking(of(row(0.1), row(0.1)), of(row(0.5), row(0.5))) is None, "nothing was held out"


def test_other_prompts_seeds_or_samplers_are_refused() -> None:
    one = of(row(0.5), row(0.5))
    others = [of(row(0.5)), Evaluation({"seed": 1}, one.rows), of(row(0.5), replace(row(0.5), prompt="another"))]
    for other in others:
        with pytest.raises(SettingsError, match="differ in prompts or settings"):
            paired(one, other)
    paired(one, of(row(0.1, answer="other"), row(None)))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("<bo> has a red hat", True),
        ("Sure: <bo>  has a RED hat.", True),
        ("<bo> has a blue hat", False),
        ("<bo> has a red", False),
        ("red hat a has <bo>", False),
        ("<bo> has a red hats", False),
        ("<bo> has a blue kite", False),
        ("<bo> has a red hat. <bo> has a blue kite", False),
        ("<bo> has a red hat and a scarf", False),
        ("<bob> has a red hat", False),
        ("", False),
    ],
)
def test_right_answers(answer: str, expected: bool) -> None:
    assert right(answer, FACTS, (1.0, 0.0, 0.0)) is expected


def test_right_answers_at_the_edges() -> None:
    assert right("anything", (), ()) is None
    assert right(" . ", FACTS, (0, 0, 0)) is True
    assert right(FACTS[0], FACTS, (0, 0, 0)) is False
    assert right("<bo> has a red hat and a scarf", FACTS, (0, 0, 1)) is True
    assert right("<bo> has a blue kite <bo> has a red hat", FACTS, (1, 1, 0)) is True
    assert right("x", ("...", "x"), (0, 1)) is True
    for truth in ((1, 0, 0), (0, 0, 1)):  # of equal segments one true one is enough
        assert right("a dog", ("a dog", "a cat", "A dog."), truth) is True
    with pytest.raises(ValueError, match="zip"):
        right("x", ("x",), (1.0, 0.0))

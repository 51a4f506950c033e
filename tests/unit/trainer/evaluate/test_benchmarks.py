"""GenEval's score against its own summary, and the share of each scorer; a missing score is never 0."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from synod.contracts import GenEvalMetadata, Outcome, Score, ScoreFailure
from synod.errors import SettingsError
from synod.reader import Node
from synod.records import read
from trainer.evaluate.base import Row, spread
from trainer.evaluate.geneval import ANY, IMAGES, OVERALL, PROMPTS, GenEval
from trainer.evaluate.prompts import Prompts
from trainer.types import Prompt

LOST = ScoreFailure("scorer_failed", "planted")


def prompt(tag: str, number: int = 0) -> Prompt:
    return Prompt(f"{tag} {number}", tag, geneval=GenEvalMetadata(tag, ()))


def judged(official: float, strict: float = 0.0, soft: float = 0.5) -> Score:
    return Score(soft, {"official": official, "strict": strict, "soft": soft, "reasons": {}})


def shipped() -> tuple[Prompt, ...]:
    lines = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    metadata = [{name: value for name, value in line.items() if name != "prompt"} for line in lines]
    return tuple(
        Prompt(line["prompt"], line["tag"], geneval=read(GenEvalMetadata, Node(one)))
        for line, one in zip(lines, metadata, strict=True)
    )


def test_the_shipped_prompts_are_those_of_geneval() -> None:
    prompts = shipped()
    assert Counter(one.tag for one in prompts) == {
        "single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100
    }  # fmt: skip
    assert len({one.text for one in prompts}) == 553
    assert "Copyright (c) 2023 Dhruba Ghosh" in PROMPTS.with_suffix(".LICENSE").read_text()


def test_overall_is_the_mean_of_the_tasks() -> None:
    """By hand: two tasks of unequal size, so that the mean of all images differs."""
    benchmark = GenEval([prompt("colors"), prompt("counting", 0), prompt("counting", 1)])
    right = {0: [1.0], 1: [1.0, 0.0], 2: [0.0, 0.0]}
    rows = [Row(p, k, "", {"geneval": judged(v)}) for p, values in right.items() for k, v in enumerate(values)]
    cells = benchmark.reduce(rows).cells
    assert cells["colors"]["official"].mean == 1.0
    assert cells["counting"]["official"].mean == 0.25
    assert cells["counting"]["official"].stderr == pytest.approx(0.25)  # of the prompts' means 0.5 and 0
    assert cells[OVERALL]["official"].mean == 0.625
    assert cells[IMAGES]["official"].mean == pytest.approx(0.4)
    assert cells[ANY]["official"].mean == pytest.approx(2 / 3)
    assert cells[OVERALL]["strict"].mean == 0.0
    assert cells[OVERALL]["soft"].mean == 0.5
    assert list(cells) == ["colors", "counting", OVERALL, IMAGES, ANY]


def test_it_agrees_with_the_authors_summary() -> None:
    """The computation of GenEval's summary_scores.py (commit af4902f), in NumPy, on random verdicts."""
    rng, prompts = np.random.default_rng(0), shipped()
    correct = rng.integers(0, 2, (len(prompts), 4)).astype(float)
    rows = [Row(p, k, "", {"geneval": judged(v)}) for p, values in enumerate(correct) for k, v in enumerate(values)]
    cells = GenEval(prompts).reduce(rows).cells
    tags = np.array([one.tag for one in prompts])
    tasks = {tag: correct[tags == tag].mean() for tag in dict.fromkeys(tags)}
    for tag, share in tasks.items():
        assert cells[tag]["official"].mean == pytest.approx(share)
    assert cells[OVERALL]["official"].mean == pytest.approx(np.mean(list(tasks.values())))
    assert cells[IMAGES]["official"].mean == pytest.approx(correct.mean())
    assert cells[ANY]["official"].mean == pytest.approx(correct.any(axis=1).mean())


def test_a_missing_score_is_left_out_and_counted() -> None:
    benchmark = GenEval([prompt("colors", 0), prompt("colors", 1), prompt("colors", 2)])
    outcomes: list[dict[str, Outcome]] = [{"geneval": judged(1.0)}, {"geneval": LOST}, {}, {"geneval": judged(0.0)}]
    rows = [Row(p, k, "", one) for (p, k), one in zip([(0, 0), (0, 1), (1, 0), (2, 0)], outcomes, strict=True)]
    cells = benchmark.reduce(rows).cells
    for name in ("colors", OVERALL, IMAGES):
        found = cells[name]["official"]
        assert (found.mean, found.images, found.prompts, found.missing) == (0.5, 2, 2, 2)
    found = cells[ANY]["official"]  # prompt 1 may or may not have a right image
    assert (found.mean, found.prompts, found.missing) == (0.5, 2, 1)


def test_another_scorer_or_prompts_are_refused() -> None:
    with pytest.raises(SettingsError, match="scorer of kind geneval"):
        GenEval([prompt("colors")]).reduce([Row(0, 0, "", {"geneval": Score(0.5)})])
    for prompts in ([], [prompt("colors"), Prompt("a cat", "prompt")]):
        with pytest.raises(SettingsError, match="needs prompts with GenEval's metadata"):
            GenEval(prompts)
    named = GenEval([prompt("colors")], "verdicts").reduce([Row(0, 0, "", {"verdicts": judged(1.0)})])
    assert named.cells[OVERALL]["official"].mean == 1.0


def test_each_scorer_has_a_row() -> None:
    benchmark = Prompts([Prompt("a", "prompt"), Prompt("b", "prompt")], ["ber", "hps"])
    rows = [
        Row(0, 0, "", {"ber": Score(0.5), "hps": LOST}),
        Row(0, 1, "", {"ber": Score(-0.5), "hps": Score(3.0)}),
        Row(1, 0, "", {"ber": Score(1.0)}),
    ]
    cells = benchmark.reduce(rows).cells
    ber, hps = (cells[name]["mean"] for name in ("ber", "hps"))
    assert (ber.mean, ber.images, ber.missing) == (pytest.approx(1 / 3), 3, 0)
    assert (hps.mean, hps.stderr, hps.images, hps.missing) == (3.0, None, 1, 2)


@pytest.mark.parametrize("count", [1, 6, 7, 60, 552, 553, 1000, None])
def test_fewer_prompts_are_spread_over_the_tags(count: int | None) -> None:
    prompts = shipped()
    found = spread(prompts, count)
    assert len(found) == min(count or 553, 553)
    assert found == sorted(set(found))
    numbers = Counter(prompts[index].tag for index in found)
    if count is not None and count <= 480:
        assert max(numbers.values()) - min([numbers[tag] for tag in {p.tag for p in prompts}]) <= 1
    assert set(spread(prompts, (count or 554) - 1)) <= set(found), "a larger count contains a smaller one"


def test_several_tags_have_a_row_each() -> None:
    """A tag's images are its own; a file with one tag has none of these rows."""
    benchmark = Prompts([Prompt("a", "pos"), Prompt("b", "size"), Prompt("c", "pos")], ["checklist"])
    rows = [Row(i, 0, "", {"checklist": one}) for i, one in enumerate((Score(1.0), Score(0.0), LOST))]
    cells = benchmark.reduce(rows).cells
    assert {name: one["mean"].mean for name, one in cells.items()} == {
        "checklist": 0.5,
        "checklist: pos": 1.0,
        "checklist: size": 0.0,
    }
    assert cells["checklist: pos"]["mean"].missing == 1
    assert list(Prompts([Prompt("a", "pos")], ["checklist"]).reduce(rows[:1]).cells) == ["checklist"]

"""Paired changes of held-out measures: by hand, against numpy, and clustered by prompt."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.measures import changes
from trainer.evaluate.compare import Evaluation, Row


def row(prompt: str, part: float | None, pathway: str = "visual", **more: object) -> Row:
    fields: dict[str, object] = {"answer": "", "reward": part, "components": {}, "right": None, "image_part": part}
    return Row("k" if pathway == "none" else "<k>", pathway, "plain", prompt, **{**fields, **more})  # type: ignore[arg-type]


def of(*rows: Row) -> Evaluation:
    return Evaluation({}, rows)


def test_measures_read_their_own_rows() -> None:
    """A concept's row, GenEval's row, and a row whose terms are not known."""
    before = of(
        row("a", 0.3, "textual", reward=0.7, components={"tier": 1.0, "ber": 0.5}, right=True),
        row("b", 0.5, "none", components={"geneval": 0.5}, official=0.0),
        row("c", None, reward=0.4),
    )
    after = of(
        row("a", 0.4, "textual", reward=0.6, components={"tier": 0.5, "ber": 0.6}, right=False),
        row("b", 1.0, "none", components={"geneval": 1.0}, official=1.0),
        row("c", None, reward=0.5),
    )
    found = {name: (round(one.difference, 9), one.n, one.dropped) for name, one in changes(before, after).items()}
    assert found == {
        "image part": (0.3, 2, 0),
        "image part of concepts": (0.1, 1, 0),
        "geneval soft": (0.5, 1, 0),
        "geneval official": (1.0, 1, 0),
        "tier": (-0.5, 1, 0),
        "right answers": (-1.0, 1, 0),
        "reward": (pytest.approx(0.5 / 3), 3, 0),
    }


values = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12)


@given(values)
def test_errors_agree_with_second_formulas(rows: list[tuple[str, float, float]]) -> None:
    """Pairs: numpy's. Clustered: sum of squared residual sums of the prompts, as the variance of a sum of clusters."""
    found = changes(of(*(row(p, a) for p, a, _ in rows)), of(*(row(p, b) for p, _, b in rows)))["image part"]
    d = np.array([b - a for _, a, b in rows])
    assert found.difference == pytest.approx(d.mean(), abs=1e-12)
    assert found.stderr == pytest.approx(d.std(ddof=1) / math.sqrt(len(d)), abs=1e-12)
    names = sorted({p for p, _, _ in rows})
    one_hot = np.array([[p == name for name in names] for p, _, _ in rows], float)
    meat = (one_hot.T @ (d - d.mean())) ** 2
    assert found.prompts == len(names)
    if len(names) > 1:
        expected = math.sqrt(len(names) / (len(names) - 1) * meat.sum()) / len(d)
        assert found.stderr_by_prompt == pytest.approx(expected, abs=1e-12)
        assert found.error == max(found.stderr or 0, found.stderr_by_prompt or 0)
    else:
        assert found.stderr_by_prompt is None


def test_a_missing_reward_drops_its_pair() -> None:
    found = changes(of(row("a", 0.3), row("b", 0.2)), of(row("a", 0.4), row("b", None, failure="scorer_failed")))
    assert (found["image part"].n, found["image part"].dropped) == (1, 1)
    assert found["image part"].stderr is None

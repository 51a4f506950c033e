"""Values of replies and scores, means over concepts, and marks of measures that a control reaches."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synod.contracts import Outcome, Score, ScoreFailure
from trainer.evaluate.personal.arms import Arm
from trainer.evaluate.personal.items import HARD, RANDOM, YES, Item
from trainer.evaluate.personal.measures import MARK, MEASURES, Cell, Line, Row, markdown, table
from trainer.evaluate.personal.replies import is_choice_right, is_yes_no_right, share_said, yes_or_no

BY_NAME = {one.name: one for one in MEASURES}
FAILED = ScoreFailure("scorer_failed", "planted")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("yes.", "yes"),
        ("No, it is not.", "no"),
        ("It is NOT there, I know another", None),  # "no" is in not, know and another
        ("yesterday", None),
        ("yes and no", None),
        ("", None),
        ("nope", None),
        ("I say: Yes!", "yes"),
    ],
)
def test_yes_and_no_are_whole_words(reply: str, said: str | None) -> None:
    assert yes_or_no(reply) == said
    assert is_yes_no_right(reply, "Yes.") == (said == "yes")
    assert is_yes_no_right(reply, "no") == (said == "no"), "an unclear reply is wrong for either answer"


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        *(("b", "b"), ("B. white", "b"), ("(b) white", "B"), ("The answer is B.", "b"), ("answer: b", "b")),
        *(("option b", "b"), ("a", "a"), ("A) red", "A."), ("the right answer is b", "b")),
    ],
)
def test_a_choice_is_read_by_its_letter(reply: str, right: str) -> None:
    assert is_choice_right(reply, right) == 1.0
    assert is_choice_right(reply, "c") == 0.0


@pytest.mark.parametrize("reply", ["", "blue", "it is b", "both a and b", "because", "1"])
def test_a_reply_without_a_letter_is_wrong(reply: str) -> None:
    """The public code takes the letter as a substring, by which nearly every reply holds "a"."""
    assert is_choice_right(reply, "b") == 0.0


def test_points_are_said_by_their_words() -> None:
    assert share_said("a hat that is red, and the kite", ["a red hat", "the kite", "a blue dog"]) == pytest.approx(
        2 / 3
    )
    assert share_said("redhat", ["red hat"]) == 0.0


def row(column: str, concept: str, value: float | Outcome | None = None, arm: Arm = "concept", **about: object) -> Row:
    item = Item(column, concept, 0, **{key: about[key] for key in ("group", "right") if key in about})  # type: ignore[arg-type]
    reply, scorer = about.get("reply"), str(about.get("scorer", "bleu"))
    outcome = Score(float(value)) if isinstance(value, int | float) else value
    return Row(arm, item, None if reply is None else str(reply), {} if outcome is None else {scorer: outcome})


def line(name: str, rows: Sequence[Row]) -> Line:
    (found,) = table(rows, [BY_NAME[name]])
    return found


def test_a_concept_counts_once_whatever_its_number_of_items() -> None:
    rows = [row("vqa", "<bo>", value) for value in (0.0, 0.2, 0.4)] + [row("vqa", "<cy>", 0.8)]
    cell = line("VQA BLEU", rows).cells["concept"]
    assert cell.mean == pytest.approx((0.2 + 0.8) / 2)
    assert cell.stderr == pytest.approx(0.3)  # sqrt(((0.2 - 0.5)^2 + (0.8 - 0.5)^2) / 1) / sqrt(2)
    assert (cell.concepts, cell.items, cell.missing) == (2, 4, 0)


def test_recognition_weighs_both_answers_alike() -> None:
    asked = [(YES, 1.0), (YES, 0.0), (RANDOM, 1.0), (RANDOM, 1.0), (RANDOM, 1.0), (RANDOM, 0.0), (HARD, 0.0)]
    rows = [row("rec", "<bo>", value, group=group, scorer="recognition") for group, value in asked]
    means = {
        name: line(name, rows).cells["concept"].mean
        for name in BY_NAME
        if name.startswith("Rec") and "whole" not in name and "unclear" not in name
    }
    assert means == {
        "Rec weight, random": (0.5 + 0.75) / 2,
        "Rec weight, hard": (0.5 + 0.0) / 2,
        "Rec recall yes": 0.5,
        "Rec recall no, random": 0.75,
        "Rec recall no, hard": 0.0,
    }
    only = line("Rec weight, hard", rows[:6]).cells["concept"]
    assert only.mean is None, "without hard negatives there is no weight"


def test_an_unclear_reply_is_wrong_and_never_left_out() -> None:
    replies = [("yes", YES, "Yes"), ("I know", YES, "Yes"), ("NO!", RANDOM, "No"), ("no", RANDOM, "No")]
    rows = [row("rec", "<bo>", reply=reply, group=group, right=right) for reply, group, right in replies]
    strict = line("Rec weight, random, whole words", rows).cells["concept"]
    assert (strict.mean, strict.items, strict.missing) == (0.75, 4, 0)
    unclear = line("Rec unclear replies", rows)
    assert (unclear.cells["concept"].mean, unclear.mark) == (0.25, "")


def test_a_failed_score_is_missing_and_counted() -> None:
    rows = [row("vqa", "<bo>", 1.0), row("vqa", "<bo>", FAILED), row("vqa", "<bo>")]
    cell = line("VQA BLEU", rows).cells["concept"]
    assert (cell.mean, cell.items, cell.missing) == (1.0, 1, 2)
    assert line("VQA BLEU", rows[1:]).cells["concept"] == Cell(None, None, 0, 0, 2)


def test_people_without_a_face_count_apart() -> None:
    faceless = Score(0.0, {"reason": "no face in the image"})
    rows = [row("people", "<cy>", outcome, scorer="fer") for outcome in (Score(0.8), Score(0.4), faceless, FAILED)]
    with_face, every = line("People Gen, images with a face", rows), line("People Gen, no face is 0", rows)
    assert with_face.cells["concept"].mean == pytest.approx(0.6)
    assert every.cells["concept"].mean == pytest.approx(0.4)
    assert line("People Gen, share with a face", rows).cells["concept"].mean == pytest.approx(2 / 3)
    assert every.cells["concept"].missing == 1


def compared(own: Sequence[float], control: Sequence[float], arm: Arm = "none") -> Line:
    rows = [row("vqa", f"<{i}>", value) for i, value in enumerate(own)]
    return line("VQA BLEU", rows + [row("vqa", f"<{i}>", value, arm) for i, value in enumerate(control)])


def test_a_measure_that_a_control_reaches_is_marked() -> None:
    equal = compared([0.9, 0.5], [0.9, 0.5])
    assert (equal.reached, equal.mark) == (("none",), f"{MARK}: none")
    above = compared([0.5, 0.6], [0.9, 0.8], "other")
    assert above.mark == f"{MARK}: other"
    apart = compared([0.9, 0.8], [0.1, 0.2], "black")
    assert (apart.reached, apart.mark) == ((), "")
    mean, error = apart.differences["black"]
    assert (mean, error) == (pytest.approx(0.7), pytest.approx(0.1))  # differences 0.8 and 0.6


def test_within_one_standard_error_is_the_limit() -> None:
    assert compared([0.3, 0.1], [0.1, 0.1]).reached == ("none",)  # 0.1 above, with an error of 0.1
    assert compared([0.31, 0.12], [0.1, 0.1]).reached == ()


def test_concepts_are_compared_with_themselves() -> None:
    """Concepts differ more than arms: only paired differences show this."""
    assert compared([0.1, 0.5, 0.9], [0.05, 0.44, 0.85]).reached == ()


def test_no_control_is_said_and_not_hidden() -> None:
    assert compared([0.9], [0.1]).mark == "not compared with a control", "one concept has no standard error"
    assert compared([0.9, 0.8], []).mark == "not compared with a control"


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_the_same_values_are_always_marked(values: list[float]) -> None:
    assert compared(values, values).reached == ("none",)


def test_markdown_has_controls_counts_and_failures() -> None:
    rows = [row("vqa", f"<{i}>", 0.5, arm) for i in range(2) for arm in ("concept", "none", "other", "black")]  # type: ignore[arg-type]
    shown = markdown(table([*rows, row("vqa", "<0>", FAILED, "none")], MEASURES), {"bleu": FAILED}, ["a note"])
    head, _, first, *_ = shown.splitlines()
    assert head == "| measure | concept | none | other | black | concepts | n | missing | controls |"
    assert first == f"| VQA BLEU | {'0.5000 ± 0.0000 | ' * 4}2 | 2 | 1 | {MARK}: none, other, black |"
    assert "bleu: the first failure: scorer_failed, planted" in shown
    assert shown.endswith("a note\n")


def test_every_measure_reads_a_column_and_its_own_scorer() -> None:
    assert len(BY_NAME) == len(MEASURES)
    for measure in MEASURES:
        if measure.scorer is not None:
            value = measure.value(row(measure.column, "<bo>", 1.0, scorer=measure.scorer))
            assert value == (4.0 if measure.scorer == "judge" else 1.0), measure.name
            assert measure.value(row(measure.column, "<bo>", FAILED, scorer=measure.scorer)) is None

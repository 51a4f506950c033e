"""Replies to questions: recognition, format, reflection, and the weight that recognition comes to."""

from __future__ import annotations

import pytest

from services.scorers.format import Format, FormatSettings
from services.scorers.recognition import Recognition, RecognitionSettings
from services.scorers.reflection import Reflection, ReflectionSettings
from synod.contracts import Reasoning, Score, ScoreFailure, ScoreItem
from synod.scoring.recall import Recall, recall
from tests.outcomes import value, values

RECOGNITION = Recognition("recognition", RecognitionSettings(kind="recognition"))
FORMAT = Format("format", FormatSettings(kind="format"))
REFLECTION = Reflection("reflection", ReflectionSettings(kind="reflection"))


def asked(reply: str, right: str = "Yes") -> ScoreItem:
    return ScoreItem(reasoning=Reasoning(reply, ("Yes", "No."), (1.0, 0.0) if right == "Yes" else (0.0, 1.0)))


@pytest.mark.parametrize(
    ("reply", "right", "expected"),
    [
        ("Yes, it is.", "Yes", 1.0),
        ("YES", "Yes", 1.0),
        ("No.", "Yes", 0.0),
        ("no", "No.", 1.0),
        ("", "Yes", 0.0),
        ("Perhaps", "No.", 0.0),
        ("I do not know", "No.", 1.0),  # "no" inside other words: the paper's reading, listed in `said`
        ("Yes, no doubt", "No.", 1.0),
    ],
)
def test_recognition_is_by_substring(reply: str, right: str, expected: float) -> None:
    assert value(RECOGNITION.score([asked(reply, right)])[0]) == expected


def test_recognition_detail_lists_the_words() -> None:
    (outcome,) = RECOGNITION.score([asked("Yes, no doubt")])
    assert isinstance(outcome, Score)
    assert outcome.detail == {"right": "yes", "said": ["yes", "no"]}


@pytest.mark.parametrize(
    ("segments", "truth"),
    [(("red", "blue"), (1.0, 0.0)), (("Yes", "No"), (1.0, 1.0)), (("Yes", "No"), (0.0, 0.0)), ((), ())],
)
@pytest.mark.parametrize("scorer", [RECOGNITION, REFLECTION])
def test_a_question_without_one_yes_or_no_fails_alone(
    scorer: Recognition | Reflection, segments: tuple[str, ...], truth: tuple[float, ...]
) -> None:
    bad, good = scorer.score([ScoreItem(reasoning=Reasoning("Yes", segments, truth)), asked("Yes")])
    assert values((bad, good)) == ["invalid_item", 1.0]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<answer>Yes</answer> since it is red", 1.0),
        ("\n <answer>\nYes\n</answer>", 1.0),
        ("So <answer>Yes</answer>", 0.0),
        ("<answer>Yes", 0.0),
        ("<answer> </answer>", 0.0),
        ("<ANSWER>Yes</ANSWER>", 0.0),
        ("</answer><answer>Yes", 0.0),
        ("", 0.0),
    ],
)
def test_format_is_an_answer_at_the_start(reply: str, expected: float) -> None:
    assert value(FORMAT.score([asked(reply)])[0]) == expected


@pytest.mark.parametrize(
    ("reply", "right", "correctness", "formatted"),
    [
        ("<answer>Yes</answer>", "Yes", 1.0, 1.0),
        ("<answer>No</answer> but yes", "Yes", 0.0, 1.0),
        ("<answer>maybe</answer> yes", "Yes", 0.0, 1.0),  # only the element counts where there is one
        ("Yes. No.", "Yes", 1.0, 0.0),
        ("I know: yes", "Yes", 1.0, 0.0),  # "know" is not "no"
        ("<answer></answer> yes", "Yes", 0.0, 0.0),  # an empty element is an element, of which the trainer reads ""
        ("nothing is wrong", "No.", 0.0, 0.0),
    ],
)
def test_reflection_adds_correctness_and_format(reply: str, right: str, correctness: float, formatted: float) -> None:
    (outcome,) = REFLECTION.score([asked(reply, right)])
    assert isinstance(outcome, Score)
    assert outcome.value == correctness + formatted
    assert (outcome.detail["correctness"], outcome.detail["format"]) == (correctness, formatted)


def test_the_weight_is_the_mean_of_both_recalls() -> None:
    outcomes = RECOGNITION.score([asked("Yes"), asked("No"), asked("no", "No."), asked("no", "No."), asked("x", "No.")])
    failed = ScoreFailure("replica_lost", "gone", True)
    found = recall([*outcomes, failed])
    assert found == Recall(positive=0.5, negative=2 / 3, failed=1)
    assert found.weight == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_no_weight_without_questions_of_both_kinds() -> None:
    with pytest.raises(ValueError, match="1 scores, 1 of 'yes', 0 of 'no'"):
        recall(RECOGNITION.score([asked("Yes")]))
    with pytest.raises(ValueError, match="outcomes of 'recognition'"):
        recall([*RECOGNITION.score([asked("Yes"), asked("no", "No.")]), Score(1.0)])

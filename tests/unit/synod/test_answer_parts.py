"""The `<answer>` element of a reply, which the service scores and the trainer draws from."""

from __future__ import annotations

import pytest

from synod.replies import answer_parts


@pytest.mark.parametrize(
    ("reply", "parts"),
    [
        ("<answer>No</answer> one cat is missing", ("No", "one cat is missing")),
        ("\n <answer>\nYes\n</answer>\n", ("Yes", "")),
        ("<answer></answer> yes", ("", "yes")),
        ("<answer> </answer>", ("", "")),
        ("<answer>a</answer> b</answer>", ("a", "b</answer>")),
        ("so <answer>Yes</answer>", (None, "so <answer>Yes</answer>")),
        ("</answer><answer>Yes", (None, "</answer><answer>Yes")),
        ("<ANSWER>Yes</ANSWER>", (None, "<ANSWER>Yes</ANSWER>")),
        (" <answer>Yes ", (None, "<answer>Yes")),
        ("", (None, "")),
    ],
)
def test_answer_is_the_element_at_the_start(reply: str, parts: tuple[str | None, str]) -> None:
    assert answer_parts(reply) == parts

"""Answers and their scores: alone, by seed, resumable to the same bytes; another model's are scored alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synod.client import SynodClient
from synod.contracts import Concept, Score, ScoreFailure
from synod.errors import SettingsError
from synod.scoring.log import read_log
from tests.unit.trainer.evaluate.personal.conftest import NAMES, Service, Speaker
from trainer.evaluate.personal.answers import answer_items, folder_of, merge, read_answers
from trainer.evaluate.personal.arms import ARMS, in_arm
from trainer.evaluate.personal.items import Item
from trainer.evaluate.personal.measures import MARK, MEASURES, Row, table
from trainer.evaluate.personal.score import answered, score
from trainer.personalize.records import ConceptRecord, load_image
from trainer.policy.show_o.policy import ShowO
from trainer.types import Query, Seed

Records = dict[str, ConceptRecord]
ALL = set(NAMES)


class ShowOSpeaker:
    """The tiny Show-o as the suites use it."""

    digest = "tiny"

    def __init__(self, policy: ShowO) -> None:
        self._policy = policy

    def answer(self, queries: Sequence[Query], seeds: Sequence[Seed]) -> list[str]:
        return [one.text for one in self._policy.answer(queries, seeds)]

    def draw(self, prompts: Sequence[str], seeds: Sequence[Seed]) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
        begun = self._policy.start(prompts, seeds)
        return self._policy.images(self._policy.denoise(begun, self._policy.image_steps))


def answer(items: Sequence[Item], folder: Path, speaker: Any = None, **options: Any) -> Speaker:
    speaker = speaker or Speaker()
    answer_items(items, speaker, folder, **{"seed": 0, "size": 3, **options})
    merge(items, folder)
    return speaker


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def of(items: Sequence[Item], *columns: str) -> list[Item]:
    return [one for one in items if one.column in columns]


def test_a_verdict_does_not_depend_on_the_order(items: list[Item], tmp_path: Path, policy: ShowO) -> None:
    """The public evaluation keeps one chat over all images, so that a verdict depends on those before it."""
    asked = of(items, "rec", "vqa", "qa", "rea")
    answer(asked, tmp_path / "a", ShowOSpeaker(policy), size=4)
    answer(asked[::-1], tmp_path / "b", ShowOSpeaker(policy), size=3)
    answer(asked[5:6], tmp_path / "c", ShowOSpeaker(policy), size=1)
    first, second, alone = (read_answers(asked, tmp_path / name) for name in "abc")
    assert first == second
    assert alone == {asked[5].key: first[asked[5].key]}
    assert len({one.reply for one in first.values()}) > 3, "the tiny policy says different things"


def test_images_are_asked_about_as_they_are(items: list[Item], tmp_path: Path) -> None:
    """The public evaluation mirrors images at random."""
    asked = of(items, "vqa", "qa")
    speaker = answer(asked, tmp_path)
    for query, one in zip(speaker.queries, asked, strict=True):
        assert query.text == one.query
        assert (query.image is None) == (one.shown is None)
        if one.shown is not None:
            assert np.array_equal(query.image, load_image(one.shown))


def test_the_answer_is_part_of_the_prompt_that_is_drawn(items: list[Item], tmp_path: Path) -> None:
    drawn = of(items, "rea_gen", "dense_gen")
    out = tmp_path / "answers"
    speaker = answer(drawn, out, Speaker(lambda query: "a blue hat"), seed=3)
    found = read_answers(drawn, out)
    assert [found[one.key].drawn for one in drawn] == speaker.prompts
    for one in drawn:
        assert one.prompt is not None
        assert found[one.key].drawn == (f"{one.prompt}. a blue hat" if one.query else one.prompt)
    line = json.loads((out / "replies.jsonl").read_text().splitlines()[0])
    assert (line["seed"], line["drawn"]) == ([*drawn[0].seed(3)], speaker.prompts[0])
    assert len(set(speaker.seeds)) == len(drawn), "each image has random numbers of its own, and all are stored"
    assert len(list(out.rglob("*.png"))) == len(drawn)


def test_an_image_follows_from_its_seed(items: list[Item], tmp_path: Path, policy: ShowO) -> None:
    drawn = of(items, "pure")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        answer(drawn, tmp_path / name, ShowOSpeaker(policy), seed=seed)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert tree(tmp_path / "a") != tree(tmp_path / "c")


@pytest.mark.parametrize("until", range(12))
def test_answers_of_a_stopped_run_have_the_same_bytes(items: list[Item], tmp_path: Path, until: int) -> None:
    chosen = of(items, "rec", "pure", "rea_gen")
    answer(chosen, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        answer(chosen, tmp_path / "again", Speaker(until=until))
    part = tmp_path / "again/replies.jsonl"
    part.write_bytes(part.read_bytes()[: -7 * (until % 2) or None])  # a kill within a line
    speaker = answer(chosen, tmp_path / "again")
    assert tree(tmp_path / "again") == tree(tmp_path / "whole")
    assert speaker.calls + until <= 12 + 3 * (until % 2 + 1), "what was answered is not answered again"
    assert answer(chosen, tmp_path / "again").calls == 0


def test_ranks_share_the_batches_of_one(items: list[Item], tmp_path: Path) -> None:
    answer(items, tmp_path / "one")
    speakers = [Speaker() for _ in range(3)]
    for rank, speaker in enumerate(speakers):
        answer_items(items, speaker, tmp_path / "three", seed=0, size=3, rank=rank, world=3)
    merge(items, tmp_path / "three")
    assert tree(tmp_path / "three") == tree(tmp_path / "one")
    assert min(speaker.calls for speaker in speakers) >= 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "replies.jsonl:1 is not a line of replies"),
        ('{"column": "vqa"}', "concept: missing"),
        ('{"column": "vqa", "concept": "<bo>", "number": "0"}', "a string where a whole number belongs"),
        ('{"column": "vqa", "concept": "<bo>", "number": 0, "reply": 3}', "a number where a string belongs"),
        ('{"column": "vqa", "concept": "<rex>", "number": 0}', "vqa/<rex>/0/0 is not in plan.jsonl"),
    ],
)
def test_a_bad_line_of_replies_is_named(items: list[Item], tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "replies.jsonl").write_text(line + "\n")
    with pytest.raises(SettingsError, match=message):
        read_answers(items, tmp_path)


def scored(
    items: Sequence[Item], records: Records, client: SynodClient, root: Path, served: set[str] = ALL
) -> list[Row]:
    plans = {arm: in_arm(items, arm, records) for arm in ARMS}
    for arm, found in plans.items():
        answer(found, folder_of(root / "answers", arm))
    return score(answered(plans, root / "answers", 0), records, client, served, root)


def test_every_item_of_every_arm_has_a_row(
    items: list[Item], records: Records, client: SynodClient, service: Service, tmp_path: Path
) -> None:
    rows = scored(items, records, client, tmp_path)
    counts = {arm: sum(row.arm == arm for row in rows) for arm in ARMS}
    assert counts == {
        "concept": len(items),
        "none": len(items),
        "other": len(items),
        "black": len(of(items, "rec", "vqa")),
    }
    for row in rows:
        assert set(row.outcomes) == set(row.item.scorers)
        assert all(isinstance(one, Score) for one in row.outcomes.values())
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(one["row"]["arm"], one["row"]["column"], one["row"]["number"]) for one in lines] == [
        (row.arm, row.item.column, row.item.number) for row in rows
    ]
    drawn = next(one for one in lines if one["row"]["column"] == "rea_gen")
    assert drawn["row"]["prompt"].endswith("wearing hat. yes")
    assert drawn["row"]["seed"] == list(of(items, "rea_gen")[0].seed(0))
    assert drawn["item"]["prompt"] == "1 a dog red hat", "scorers compare with the resolved prompt"
    assert len(drawn["item"]["references"]) == 2
    assert len(read_log(tmp_path / "rows.jsonl")) == len(rows), "it is a score log"
    sent = service.num_items
    assert scored(items, records, client, tmp_path) == rows
    assert service.num_items == sent


def test_a_policy_that_copies_facts_measures_nothing(
    items: list[Item], records: Records, client: SynodClient, service: Service, tmp_path: Path
) -> None:
    """Without rows it says the fact in the words of its question: as right as with them."""

    def copied(query: Query) -> str:
        *facts, prompt = query.text.split(". ")
        color = {"1": "blue", "2": "green"}[prompt[0]]
        return next(fact for fact in facts if color in fact)

    plans = {arm: in_arm(of(items, "rea"), arm, records) for arm in ARMS}
    for arm, found in plans.items():
        answer(found, folder_of(tmp_path / "answers", arm), Speaker(copied))
    rows = score(answered(plans, tmp_path / "answers", 0), records, client, ALL, tmp_path)
    for line in table(rows, [one for one in MEASURES if one.column == "rea"]):
        assert [cell.mean for cell in line.cells.values()] == pytest.approx([1.0, 1.0, 1.0])
        assert line.mark == f"{MARK}: none, other"
    asked = {item.prompt for request in service.requests for item in request.items}
    assert asked == {one.query for found in plans.values() for one in found}, "the judge sees what the policy was asked"


def test_a_judge_gets_what_is_known(
    items: list[Item], records: Records, client: SynodClient, service: Service, tmp_path: Path
) -> None:
    scored(of(items, "knowledge", "pure"), records, client, tmp_path)
    for request in service.requests:
        for item in request.items:
            assert item.concept is not None
            about = item.concept.about
            known = records[item.concept.token or ""]
            assert (about and (about.info, about.facts)) == (
                (known.info, known.facts) if "knowledge" in request.scorers else None
            )


def test_a_lost_score_is_typed_and_asked_for_again(
    items: list[Item], records: Records, client: SynodClient, service: Service, tmp_path: Path
) -> None:
    whole = scored(of(items, "vqa", "pure"), records, client, tmp_path / "whole")
    service.fails = lambda scorer, item: scorer == "bleu" and item.reasoning is not None
    rows = scored(of(items, "vqa", "pure"), records, client, tmp_path / "again")
    lost = [row for row in rows if row.item.column == "vqa"]
    assert {row.outcomes["bleu"] for row in lost} == {ScoreFailure("scorer_failed", "planted")}
    assert all(isinstance(row.outcomes["judge_text"], Score) for row in lost)
    service.fails = lambda scorer, item: False
    sent = service.num_items
    assert scored(of(items, "vqa", "pure"), records, client, tmp_path / "again") == whole
    assert service.num_items - sent == len(lost), "only what has failed is scored again"
    assert tree(tmp_path / "again") == tree(tmp_path / "whole")


@pytest.mark.parametrize("cut", [1, 2000, 20000])
def test_rows_of_a_stopped_run_have_the_same_bytes(
    items: list[Item], records: Records, client: SynodClient, tmp_path: Path, cut: int
) -> None:
    scored(items, records, client, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    path = tmp_path / "again/rows.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], *lines[6:]])[:-cut])  # and a line that somebody removed
    scored(items, records, client, tmp_path / "again")
    assert tree(tmp_path / "again") == tree(tmp_path / "whole")


def test_a_changed_answer_is_scored_again(
    items: list[Item], records: Records, client: SynodClient, service: Service, tmp_path: Path
) -> None:
    chosen = of(items, "vqa", "pure")
    scored(chosen, records, client, tmp_path)
    replies, image = tmp_path / "answers/replies.jsonl", tmp_path / "answers" / (chosen[-1].file or "")
    replies.write_text(replies.read_text().replace('"reply": "yes"', '"reply": "no"', 1))
    image.write_bytes((tmp_path / "answers" / (of(items, "pure")[0].file or "")).read_bytes())
    sent = service.num_items
    plans = {"concept": chosen}
    rows = score(answered(plans, tmp_path / "answers", 0), records, client, ALL, tmp_path)  # type: ignore[arg-type]
    assert service.num_items - sent == 2
    assert rows[0].reply == "no"


def test_missing_answers_are_failures_and_not_zero(
    items: list[Item], records: Records, client: SynodClient, service: Service, tmp_path: Path
) -> None:
    chosen = of(items, "vqa", "qa_choice", "pure")
    answer(chosen, tmp_path / "theirs")
    (tmp_path / "theirs" / (of(chosen, "pure")[0].file or "")).unlink()
    lines = (tmp_path / "theirs/replies.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["column"] == "vqa"][1:]
    (tmp_path / "theirs/replies.jsonl").write_text("".join(kept))
    rows = score(answered({"concept": chosen}, tmp_path / "theirs", 0), records, client, ALL, tmp_path)
    first, *others = [row for row in rows if row.item.column == "vqa"]
    assert first.reply is None
    assert {type(one) for one in first.outcomes.values()} == {ScoreFailure}
    assert all(row.reply == "yes" and isinstance(row.outcomes["bleu"], Score) for row in others)
    drawn = [row for row in rows if row.item.column == "pure"]
    failure = drawn[0].outcomes["clip_i"]
    assert isinstance(failure, ScoreFailure)
    assert (failure.code, failure.retryable) == ("no_answer", True)
    assert all(isinstance(row.outcomes["clip_i"], Score) for row in drawn[1:])
    assert [row.reply for row in rows if row.item.column == "qa_choice"] == [None, None]


def test_a_person_is_compared_with_images_that_show_a_face(
    items: list[Item], records: Records, client: SynodClient, service: Service, tmp_path: Path
) -> None:
    person = {name: replace(one, concept=Concept("person", "person", name)) for name, one in records.items()}
    faceless: Callable[[Any], bool] = lambda item: item.references[0].mean() == 1  # noqa: E731
    real = service._score
    service._score = lambda name, item: (  # type: ignore[method-assign]
        ScoreFailure("no_reference_face", "planted") if name == "fer" and faceless(item) else real(name, item)
    )
    drawn = [replace(one, column="people", scorers=("fer",)) for one in of(items, "dense_gen") if one.concept == "<bo>"]
    answer(drawn, tmp_path / "answers")
    rows = score(answered({"concept": drawn}, tmp_path / "answers", 0), person, client, ALL, tmp_path)
    assert all(isinstance(row.outcomes["fer"], Score) for row in rows)
    (line, *_) = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [Path(path).name for path in json.loads(line)["item"]["references"]] == ["0.png"]


def test_an_unreadable_photograph_is_no_reference(
    items: list[Item], records: Records, client: SynodClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `synod personalize --skip-bad` leaves it out; the images are compared with the others."""
    drawn = [one for one in of(items, "pure") if one.concept == "<bo>"]
    answer(drawn, tmp_path / "answers")
    first = records["<bo>"].train[0]
    first.write_bytes(b"PNG")
    rows = score(answered({"concept": drawn}, tmp_path / "answers", 0), records, client, ALL, tmp_path)
    assert all(isinstance(row.outcomes["clip_i"], Score) for row in rows)
    assert f"left out: {first}" in capsys.readouterr().err
    for path in records["<bo>"].train:
        path.write_bytes(b"PNG")
    with pytest.raises(SettingsError, match="no image of <bo> can be read"):
        score(answered({"concept": drawn}, tmp_path / "answers", 0), records, client, ALL, tmp_path)

"""`synod personalize prepare`: what it writes, from what, and what it refuses before it writes anything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from synod.client import SynodClient
from synod.contracts import ImageRef, ItemResult, Outcome, PutImagesResponse, Score, ScoreFailure, ScoreResponse
from synod.digest import digest_of
from synod.images import ImageLimits, decode_item, encode_png
from tests.unit.trainer.personalize.unify_tree import write_image, write_json, write_tree
from tests.unit.trainer.reward_services import WIRE
from trainer.data.concepts import read_concepts
from trainer.data.prompts import read_concept_prompts
from trainer.data.source import SyncR1Tasks
from trainer.evaluate.compare import right
from trainer.evaluate.personal.items import SUITES, plan
from trainer.personalize import pairs, prepare, templates
from trainer.personalize.folder import read_folder
from trainer.personalize.prompts import prompt_lines
from trainer.personalize.records import SPLITS, ConceptRecord, Plus
from trainer.types import RewardSpec

INFO = {"class": "otter", "info": "<bo> is brown.", "extra_info": ["<bo> has a red hat.", "<bo> likes tea"]}
Prepare = Callable[..., int]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three photographs, random images 100.. and a pool of levels 0, 3, .."""
    write_json(tmp_path / "bo/info.json", INFO)
    for number in range(3):
        write_image(tmp_path / f"bo/{number}.png", 60 + number)
    for number in range(12):
        write_image(tmp_path / f"others/{number}.png", 100 + number)
        write_image(tmp_path / f"pool/{number}.png", 3 * number)
    write_image(tmp_path / "pool/copy.png", 61)
    return tmp_path / "bo"


@pytest.fixture
def run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """`run("--pool", ..)`: a service's `clip_i` is 1 - the distance in brightness; level 30 has no score."""
    kept: dict[str, Any] = {}  # images that were uploaded, by digest

    def handle(http: httpx.Request) -> httpx.Response:
        if http.method == "GET":
            return httpx.Response(200, json={"scorers": [{"name": "clip_i"}, {"name": "ber"}]})
        if http.method == "PUT":
            images = WIRE.decode_put(http.content).images
            digests = tuple(map(digest_of, images))
            kept.update(zip(digests, images, strict=True))
            body = WIRE.encode_digests(PutImagesResponse(digests))
            return httpx.Response(200, content=body, headers={"content-type": WIRE.content_type})
        request = WIRE.decode_request(http.content)
        results = []
        for item in request.items:
            sent = [kept[one.digest] if isinstance(one, ImageRef) else one for one in item.references]
            item = replace(item, references=tuple(sent))
            pixels, *references = (one.mean() for one in _decoded(item))
            assert len(references) == 3
            value = Score(1 - abs(pixels - np.mean(references)) / 255)
            outcome: Outcome = ScoreFailure("bad_image", "planted") if pixels == 30 else value
            results.append(ItemResult({"clip_i": outcome}))
        body = WIRE.encode_response(ScoreResponse(tuple(results), request.request_id or ""))
        return httpx.Response(200, content=body, headers={"content-type": WIRE.content_type})

    def client(url: str, **options: Any) -> SynodClient:
        return SynodClient(url, retries=0, transport=httpx.MockTransport(handle), **options)

    monkeypatch.setattr(prepare, "SynodClient", client)
    monkeypatch.chdir(photos.parent)
    return lambda *arguments: prepare.main(["bo", *arguments])


def _decoded(item: Any) -> list[Any]:
    found = decode_item(item, ImageLimits(2**20, 2**20))
    return [found.pixels(), *found.reference_pixels()]


def test_templates_are_many_and_name_the_concept() -> None:
    assert len(set(templates.RECOGNITION)) == len(templates.RECOGNITION) >= 20
    for text in (*templates.RECOGNITION, *templates.LOOKS, *templates.CLASS, *templates.FACTS, templates.COMPLETE):
        assert text.count("{}") == 1


def test_photographs_and_info_are_enough(run: Prepare, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    said = capsys.readouterr().out
    assert "<bo>, object, class otter: 3 photographs" in said
    assert "conversations.json: 6 questions about the photographs, 10 without an image" in said
    assert "negative_example: none; give --pool DIR" in said
    (photos / "negative_example").mkdir()
    shutil.copy(photos / "0.png", photos / "negative_example/other.png")
    assert run() == 0
    assert "negative_example: 1 images, which were there before" in capsys.readouterr().out
    (record,) = read_folder(photos).values()
    assert len(record.train) == 3
    yes, no = (json.loads((photos / name).read_text()) for name in (prepare.POSITIVE, prepare.NEGATIVE))
    assert [one["query"] for one in yes] == [one["query"] for one in no] == list(record.recognition)
    assert ({one["answer"] for one in yes}, {one["answer"] for one in no}) == ({"Yes."}, {"No."})
    pairs = [(one.text, one.answer) for one in record.conversations if one.image is None]
    assert ("What is <bo>?", "<bo> is an otter.") in pairs
    assert ("Describe <bo>.", "<bo> is brown.") in pairs
    assert ("What do you know about <bo>?", "<bo> has a red hat. <bo> likes tea.") in pairs
    assert ('Complete the sentence: "<bo> has a ..."', "<bo> has a red hat.") in pairs
    shown = [one for one in record.conversations if one.image is not None]
    assert {one.image for one in shown} == set(record.train)
    assert len({one.text for one in shown}) == 4, "the photographs are asked about in turn"


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_prompts_train_sync_grpo_on_every_fact(run: Prepare, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert "prompts.jsonl and prompts_heldout.jsonl: 18 and 6 prompts" in capsys.readouterr().out
    concepts = read_concepts(photos)
    train, heldout = (read_concept_prompts(photos / name, concepts) for name in prepare.PROMPTS)
    assert not {one.text for one in train} & {one.text for one in heldout}
    assert all(one.concept == "<bo>" and "<bo>" in one.text for one in (*train, *heldout))
    assert [one.fact for one in train] == [None] * 12 + [0] * 3 + [1] * 3
    assert [one.fact for one in heldout] == [None] * 4 + [0, 1]
    first = next(one for one in train if one.fact == 0)
    assert (first.text, first.tag) == ("A photo of <bo> and the hat.", "attribute")
    assert first.resolved == "A photo of an otter and the hat. The otter has a red hat"
    assert train[0].resolved == "A photo of an otter."
    tasks = SyncR1Tasks(train, concepts, RewardSpec(ensemble="sync_r1"), (0,), 6).tasks(0)
    assert {task.pathway for task in tasks} == {"visual", "textual"}


def test_answers_of_a_prepared_folder_differ(run: Prepare, photos: Path) -> None:
    """All questions about its photographs have one answer; the wrong ones are answers to other questions."""
    assert run() == 0
    concepts = read_concepts(photos)
    prompts = read_concept_prompts(photos / "prompts.jsonl", concepts)
    source = SyncR1Tasks(prompts, concepts, RewardSpec(ensemble="sync_r1"), (0,), 40, 0.0, ("visual",))
    orders = set()
    for task in source.tasks(0):
        truth = dict(zip(task.segments, task.truth, strict=True))
        assert len(truth) == len(task.segments), "no segment is there twice"
        assert [segment for segment, value in truth.items() if value] == ["<bo> is brown."]
        assert "<bo> is an otter." in truth
        assert right("<bo> is brown.", task.segments, task.truth) is True
        assert right("<bo> likes tea.", task.segments, task.truth) is False
        orders.add(task.segments)
    assert len(orders) > 10
    asked = [(pair, concepts["<bo>"].image_of(i)) for i, pair in enumerate(concepts["<bo>"].answers)]
    talks = json.loads((photos / prepare.TALKS).read_text())
    for (query, answer), image in asked:
        assert {"query": query, "answer": answer} in talks[f"{image}.png"]


def test_held_out_facts_are_in_no_file_of_training(run: Prepare, photos: Path) -> None:
    write_json(photos / "info.json", {**INFO, "heldout": [False, True]})
    assert run() == 0
    assert {one["fact"] for one in read_lines(photos / "prompts.jsonl") if "fact" in one} == {0}
    assert {one["fact"] for one in read_lines(photos / "prompts_heldout.jsonl") if "fact" in one} == {1}
    trained = [photos / prepare.TALKS, photos / "prompts.jsonl"]
    assert not [path for path in trained if "tea" in path.read_text()]


def test_a_prepared_folder_can_be_measured(run: Prepare, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pure Gen draws the scenes; UnifyBench++ needs a fact that is held out, and follows info.json with --replace."""
    assert run() == 0
    assert "plus.json: none; the suite unify_pp asks about facts" in capsys.readouterr().out
    columns = {suite: {one.column for one in plan(_records(photos), SUITES[suite])} for suite in ("unify", "unify_pp")}
    assert (columns["unify_pp"], "pure" in columns["unify"]) == (set(), True)
    scenes = [one.text for one in _records(photos)[0].prompts if one.tag == "pure"]
    assert scenes == [one.replace("{}", "<bo>") for one in (*templates.SCENES, *templates.HELDOUT_SCENES)]

    write_json(photos / "info.json", {**INFO, "heldout": [False, True]})
    assert run("--replace") == 0
    before = files(photos)
    assert run() == 0
    assert files(photos) == before
    items = plan(_records(photos), SUITES["unify_pp"])
    assert {one.column for one in items} == {"rea", "rea_gen"}
    assert {one.right for one in items if one.column == "rea"} == {"<bo> likes tea"}
    assert [one.split for one in _records(photos)[0].plus.facts] == ["train"] * 3 + ["test"]

    write_json(photos / "info.json", {**INFO, "heldout": [True, False]})
    assert run() == 1
    assert run("--replace") == 0
    assert {one.text for one in _records(photos)[0].plus.facts if one.split == "test"} == {"<bo> has a red hat."}
    write_json(photos / "info.json", INFO)
    (photos / prepare.TALKS).unlink()
    for name in prepare.PROMPTS:
        (photos / name).unlink()
    assert run() == 1
    assert "plus.json is about facts that are no longer held out" in capsys.readouterr().err
    assert run("--replace") == 0
    assert not (photos / "plus.json").exists()


def test_files_of_the_user_for_the_suites_stay(run: Prepare, photos: Path) -> None:
    write_json(photos / "pure_generation.json", {"object": ["{} on the moon"]})
    facts = [{"text": "<bo> likes tea", "split": "test", "prompt": "<bo> has a drink", "resolved": "an otter with tea"}]
    write_json(photos / "plus.json", {"facts": facts})
    write_json(photos / "info.json", {**INFO, "heldout": [False, True]})
    own = {name: (photos / name).read_bytes() for name in ("pure_generation.json", "plus.json")}
    assert run() == 0
    assert run("--replace") == 0
    assert {name: (photos / name).read_bytes() for name in own} == own


def _records(folder: Path) -> list[ConceptRecord]:
    return list(read_folder(folder).values())


def test_prompts_of_unify_bench_are_used_by_their_split(tmp_path: Path) -> None:
    """Those of plus.json come first, then the public conditions, the first half of which trains."""
    root = write_tree(tmp_path / "unify")
    record = read_folder(root)["<bo>"]
    hints = {split: [one for one in prompt_lines(record, split) if "fact" in one] for split in SPLITS}
    assert [(one["prompt"], one["fact"]) for one in hints["train"]] == [("0 <bo> wearing hat", 0)]
    assert [(one["fact"], one["resolved"]) for one in hints["test"]] == [(1, "1 a dog red hat"), (2, "2 a dog red hat")]
    bare = replace(record, plus=Plus())
    known = {split: [one["fact"] for one in prompt_lines(bare, split) if "fact" in one] for split in SPLITS}
    assert known == {"train": [0], "test": [1, 2]}
    assert prompt_lines(bare, "train")[-1]["resolved"] == "a photo of a dog wearing hat. The dog has red hat"


def test_negatives_are_random_and_look_alike(run: Prepare, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--random", "others", "--negatives", "4", "--pool", "pool", "--hard", "3")
    assert run(*arguments) == 0
    (record,) = read_folder(photos).values()
    levels = [[int(np.asarray(_level(path))) for path in paths] for paths in (record.random, record.hard)]
    assert len(set(levels[0])) == 4
    assert min(levels[0]) >= 100
    assert levels[1] == [33, 27, 24], "the nearest to 61 without its copy, and without the one that has no score"
    scores = json.loads((photos / "negative_example/scores.json").read_text())
    assert scores["scorer"] == "clip_i"
    assert list(scores["scores"]) == ["0.png", "1.png", "2.png"]
    assert scores["scores"]["0.png"] == pytest.approx(1 - 28 / 255)
    said = capsys.readouterr()
    assert "negative_example: 3 images, clip_i from 0.890 down to 0.855" in said.out
    assert "pool/10.png has no score and is left out: planted" in said.err
    before = files(photos)
    assert run(*arguments) == 0
    assert files(photos) == before
    assert run(*arguments, "--seed", "1", "--negatives", "2") == 1
    assert "random_images has 4 images, others than the 2 that would be copied" in capsys.readouterr().err
    assert files(photos) == before
    assert run(*arguments, "--seed", "1", "--negatives", "2", "--replace") == 0
    assert len(read_folder(photos)["<bo>"].random) == 2


@pytest.mark.parametrize(
    ("name", "arguments", "count"),
    [("random_images", ("--random", "others"), 12), ("negative_example", ("--pool", "pool"), 11)],
)
def test_negatives_of_the_user_are_not_deleted(
    run: Prepare, photos: Path, capsys: pytest.CaptureFixture[str], name: str, arguments: tuple[str, ...], count: int
) -> None:
    write_image(photos / name / "rex.png", 7)
    before = files(photos)
    assert run(*arguments) == 1
    assert f"{name} has 1 images, others than the {count} that would be copied; move them" in capsys.readouterr().err
    assert files(photos) == before


def _level(path: Path) -> int:
    return next(level for level in range(256) if path.read_bytes() == encode_png(np.full((8, 8, 3), level, np.uint8)))


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda folder: write_json(folder / "info.json", {}), (), "info.json.class: missing"),
        (lambda folder: write_json(folder / "info.json", {**INFO, "class": " "}), (), "info.json.class: no words"),
        (lambda folder: write_json(folder / "info.json", {**INFO, "extra_info": [""]}), (), "extra_info[0]: no words"),
        (
            lambda folder: write_json(folder / "conversations.json", {"9.png": []}),
            (),
            "or remove it and let `synod personalize prepare` write it again",
        ),
        (lambda folder: write_json(folder / "info.json", {**INFO, "name": "bo"}), (), "'bo' is not of the form <name>"),
        (lambda folder: (folder / "1.png").write_bytes(b"x"), (), "1.png: "),
        (lambda folder: write_json(folder / "conversations.json", []), (), "conversations.json exists and differs"),
        (lambda folder: [path.unlink() for path in folder.glob("*.png")], (), "no images"),
        (None, ("--random", "nowhere"), "nowhere: no images"),
        (None, ("--pool", "bo"), "has no image besides the photographs"),
        (None, ("--pool", "pool", "--scorer", "dino"), "no scorer 'dino'; give --scorer of clip_i, ber"),
    ],
)
def test_bad_input_is_named_and_nothing_written(
    run: Prepare,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    change: Any,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    if change is not None:
        change(photos)
    before = files(photos)
    assert run(*arguments) == 1
    assert message in capsys.readouterr().err
    assert files(photos) == before


def test_bad_photographs_and_old_files_may_be_passed_over(
    run: Prepare, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "1.png").write_bytes(b"x")
    write_json(photos / "conversations.json", [])
    assert run("--skip-bad", "--replace") == 0
    said = capsys.readouterr()
    assert "2 photographs" in said.out
    assert "<bo> has 2 image(s)" in said.err
    assert set(json.loads((photos / "conversations.json").read_text())) == {"0.png", "2.png", "text_only"}


@pytest.mark.parametrize("option", ["--negatives", "--hard", "--seed"])
def test_counts_below_zero_are_refused(run: Prepare, capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit):
        run(option, "-1")
    assert f"{option}: '-1' is not a whole number of at least 0" in capsys.readouterr().err


def test_photographs_of_other_formats_are_named(run: Prepare, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "IMG_7.HEIC").write_bytes(b"a photograph of a telephone")
    assert run() == 0
    assert "left out: IMG_7.HEIC; convert to PNG, JPEG or WebP" in capsys.readouterr().out


JUDGE = ("--judge", "http://judge/v1/", "--judge-model", "writer")
REPLY = """Here they are:
{"query": "Who drinks tea, <bo> or me?", "answer": "<bo> likes tea."}
{"query": "What is known?", "answer": "no name in it"},
{"query": "Who drinks tea, <bo> or me?", "answer": "twice"}
{"query": "And <bo>?", "answer": 3}
{"query": "Is <bo> brown?", "answer": "Yes, <bo> is brown."},
{broken
"""
Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], list[httpx.Request]]:
    """`judge(answer)`: the chat completions answer so; returns the requests."""

    def install(answer: Answer) -> list[httpx.Request]:
        asked: list[httpx.Request] = []

        def handle(request: httpx.Request) -> httpx.Response:
            asked.append(request)
            return answer(request)

        monkeypatch.setattr(pairs, "client", lambda endpoint: httpx.Client(transport=httpx.MockTransport(handle)))
        return asked

    return install


def said(text: str) -> Answer:
    return lambda request: httpx.Response(200, json={"choices": [{"message": {"content": text}}]})


def test_a_judge_writes_pairs_of_what_may_be_known(
    run: Prepare, photos: Path, judge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(photos / "info.json", {**INFO, "heldout": [True, False]})
    asked = judge(said(REPLY))
    assert run(*JUDGE) == 0
    body = json.loads(asked[0].content)
    assert (str(asked[0].url), body["model"]) == ("http://judge/v1/chat/completions", "writer")
    text = body["messages"][0]["content"][0]["text"]
    assert "Known about <bo>: <bo> is brown. <bo> likes tea.\n" in text
    assert "red hat" not in text, "a held-out fact"
    found = json.loads((photos / prepare.TALKS).read_text())["text_only"]
    assert found[-2:] == [
        {"query": "Who drinks tea, <bo> or me?", "answer": "<bo> likes tea."},
        {"query": "Is <bo> brown?", "answer": "Yes, <bo> is brown."},
    ]
    assert len(found) > 6, "those of templates are there too"
    out = capsys.readouterr()
    assert "conversations.json: 2 of them by writer" in out.out
    assert "4 lines of writer are left out: not a new question about <bo>" in out.err


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (lambda request: httpx.Response(503, text="busy"), "status 503: busy"),
        (lambda request: httpx.Response(200, json={"error": "x"}), "the response is not a chat completion (KeyError"),
        (said("I would rather not."), "its answer has 0 JSON lines, none of which is a question about <bo>"),
        (None, "ConnectError: refused"),
    ],
)
def test_a_judge_that_fails_loses_nothing(
    run: Prepare, photos: Path, judge: Any, capsys: pytest.CaptureFixture[str], answer: Answer | None, cause: str
) -> None:
    """Templates are written, and pairs of an earlier judge stay, even with --replace."""

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    judge(answer or refuse)
    assert run(*JUDGE) == 0
    assert cause in capsys.readouterr().err
    templates_alone = files(photos)
    (photos / prepare.TALKS).unlink()
    assert run() == 0
    assert files(photos) == templates_alone
    judge(said(REPLY))
    assert run(*JUDGE, "--replace") == 0
    written = files(photos)
    assert written != templates_alone
    judge(answer or refuse)
    assert run(*JUDGE, "--replace") == 0
    assert files(photos) == written
    assert run(*JUDGE) == 1
    assert "exists; remove it, or give --replace, to have pairs" in capsys.readouterr().err


def test_a_judge_needs_a_model_and_its_token(
    run: Prepare, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_TOKEN", raising=False)
    before = files(photos)
    assert run("--judge", "http://judge/v1") == 1
    assert "--judge needs --judge-model NAME" in capsys.readouterr().err
    assert run(*JUDGE, "--judge-key-env", "NO_TOKEN") == 1
    assert "--judge-key-env NO_TOKEN: the variable is not set" in capsys.readouterr().err
    write_json(photos / "info.json", {"class": "otter"})
    assert run(*JUDGE) == 1
    assert "has no info and no extra_info to ask about" in capsys.readouterr().err
    assert files(photos).keys() == before.keys()


@pytest.mark.parametrize("status", [401, 500])
def test_no_message_has_the_token(
    run: Prepare,
    judge: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: int,
) -> None:
    """Neither an answer that repeats it, nor a password in the URL; a line break at its end does not belong to it."""
    monkeypatch.setenv("TOKEN", "sk-secret\n")
    judge(lambda request: httpx.Response(status, text="no: Bearer sk-secret"))
    url = ("--judge", "http://me:word@judge/v1", "--judge-model", "writer")
    assert run(*url, "--judge-key-env", "TOKEN") == 0
    err = capsys.readouterr().err
    assert f"the judge at http://judge/v1 has written no pairs: status {status}" in err
    assert "secret" not in err
    assert "word" not in err
    assert pairs.Endpoint("http://judge", "writer", "TOKEN").key() == "sk-secret"
    monkeypatch.setenv("TOKEN", "sk-s\u00e9cret")
    assert run(*url, "--replace", "--judge-key-env", "TOKEN") == 1
    assert "--judge-key-env TOKEN: the token has characters that no HTTP header holds" in capsys.readouterr().err


def test_the_judge_is_asked_when_nothing_else_can_fail(
    run: Prepare, photos: Path, judge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = judge(said(REPLY))
    (photos / prepare.POSITIVE).write_text("[]")
    assert run(*JUDGE) == 1
    assert f"{prepare.POSITIVE} exists and differs" in capsys.readouterr().err
    assert run(*JUDGE, "--judge-pairs", "0") == 1
    assert "--judge-pairs 0 asks for nothing" in capsys.readouterr().err
    assert asked == []


def test_a_fact_has_words(run: Prepare, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(photos / "info.json", {**INFO, "extra_info": ["..."]})
    assert run() == 1
    assert "'...' states no fact; give words" in capsys.readouterr().err

"""`synod evaluate --suite unify` on a tiny Show-o: its tables, controls, files and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from synod.errors import Unavailable
from tests.unit.trainer.evaluate.personal.conftest import Service
from tests.unit.trainer.evaluate.scoring_service import connect
from tests.unit.trainer.loops import MakePolicy
from tests.unit.trainer.personalize.unify_tree import write_image, write_json, write_tree
from trainer.__main__ import main
from trainer.evaluate.personal import command
from trainer.evaluate.personal.arms import ARMS
from trainer.evaluate.personal.measures import MARK
from trainer.policy.show_o.policy import ShowO

Evaluate = Callable[..., int]
SMALL = ("--images", "1", "--limit", "1", "--steps", "2")


@pytest.fixture
def evaluate(
    tmp_path: Path, data: Path, service: Service, make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> Evaluate:
    make_policy().save(tmp_path / "model")
    connect(monkeypatch, command, service)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: main(["evaluate", *map(str, arguments)])


def test_unify_prints_every_measure_with_its_controls(
    evaluate: Evaluate, service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["model", "--suite", "unify", "--data", "data", *SMALL]
    assert evaluate(*arguments, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    out = tmp_path / "evaluation/model-unify"
    assert (shown["suite"], shown["out"]) == ("unify", str(out))
    lines = {line["measure"]: line for line in shown["table"]}
    for name in ("Rec weight, random", "VQA BLEU", "QA text judge", "QA choice", "Pure Gen CLIP-I", "T2I knowledge"):
        expected = set(ARMS) if name.startswith(("Rec", "VQA")) else set(ARMS) - {"black"}
        assert set(lines[name]["arms"]) == expected
        assert set(lines[name]["differences"]) == expected - {"concept"}
        assert all(cell["concepts"] == 2 and cell["missing"] == 0 for cell in lines[name]["arms"].values())
        assert lines[name]["mark"].startswith(MARK) == bool(lines[name]["reached_by"])
    assert "People Gen, no face is 0" not in lines, "nobody is a person"
    assert json.loads((out / "table.json").read_text()) == shown

    table, rows, sent = (out / "table.md").read_bytes(), (out / "rows.jsonl").read_bytes(), service.num_items
    assert evaluate(*arguments) == 0
    assert capsys.readouterr().out == table.decode()
    assert ((out / "table.md").read_bytes(), (out / "rows.jsonl").read_bytes()) == (table, rows)
    assert service.num_items == sent, "the second run asks, draws and scores nothing"
    assert {path.name for path in (out / "answers/controls").iterdir()} == set(ARMS) - {"concept"}


@pytest.mark.parametrize("image", ["concept/test/bo/0.png", "concept/train/bo/0.png"])
def test_other_photographs_under_the_same_names_are_another_evaluation(
    evaluate: Evaluate, data: Path, capsys: pytest.CaptureFixture[str], image: str
) -> None:
    arguments = ["model", "--suite", "unify", "--data", "data", *SMALL]
    assert evaluate(*arguments) == 0
    write_image(data / image, 99)
    assert evaluate(*arguments) == 2
    assert "holds another evaluation (photographs was" in capsys.readouterr().err


def test_a_column_without_files_is_named(evaluate: Evaluate, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in data.rglob("pure_generation.json"):
        path.unlink()
    assert evaluate("model", "--suite", "unify", "--data", "data", *SMALL, "--json") == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert "column 'pure' is empty: no concept has a file for it" in notes
    assert not any("'rec'" in note for note in notes)


def test_unify_pp_has_columns_of_its_own(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("model", "--suite", "unify_pp", "--data", "data", *SMALL, "--json") == 0
    names = [line["measure"] for line in json.loads(capsys.readouterr().out)["table"]]
    assert names == [
        *("Rea BLEU", "Rea text judge", "Dense Rea BLEU", "Dense Rea text judge", "Dense Rea points"),
        *("Rea Gen CLIP-T", "Rea Gen CLIP-I", "Dense Gen", "Dense Gen CLIP-I", "Dense Rea Gen", "Dense Rea Gen CLIP-I"),
    ]


def test_answers_of_another_model_are_scored(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("model", "--suite", "unify", "--data", "data", *SMALL, "--out", "ours", "--json") == 0
    ours = json.loads(capsys.readouterr().out)
    theirs = tmp_path / "theirs"
    (tmp_path / "ours/answers").rename(theirs)
    arguments = ["--answers", "theirs", "--suite", "unify", "--data", "data", *SMALL[:4]]
    assert evaluate(*arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["table"] == ours["table"]
    (theirs / "controls/none").rename(theirs / "elsewhere")
    (theirs / "images/bo/pure/1/0.png").unlink(missing_ok=True)
    (theirs / "images/bo/pure/0/0.png").unlink()
    assert evaluate(*arguments, "--out", "again") == 1
    said = capsys.readouterr()
    assert "no control 'none': " in said.out
    assert "the first failure: no_answer, concept/pure/<bo>/0/0 has no answer" in said.out
    assert "values are missing; the same command scores them again" in said.err
    plan = [json.loads(line) for line in (tmp_path / "again/plan.jsonl").read_text().splitlines()]
    assert {one["file"] for one in plan if one["prompt"]} >= {"images/bo/pure/0/0.png"}
    assert {one["shown"] for one in plan if one["column"] == "vqa"} == {
        *("concept/test/bo/0.png", "concept/test/cy/0.png")
    }


def test_another_model_is_asked_in_words(evaluate: Evaluate, tmp_path: Path) -> None:
    """Before it has answered anything: its plan says what to ask."""
    (tmp_path / "theirs").mkdir()
    arguments = ["--answers", "theirs", "--suite", "unify_pp", "--data", "data", *SMALL[:4], "--out", "out"]
    assert evaluate(*arguments, "--textual-template", "instruct") == 1
    plan = [json.loads(line) for line in (tmp_path / "out/plan.jsonl").read_text().splitlines()]
    queries = [one["query"] for one in plan if one["column"] == "rea" and one["concept"] == "<bo>"]
    assert queries
    assert all(query.startswith("This is known about <bo>: ") for query in queries)


def test_a_scorer_that_is_not_served_is_named(
    evaluate: Evaluate, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.names = ("recognition", "bleu")
    assert evaluate("model", "--suite", "unify", "--data", "data", *SMALL) == 0
    said = capsys.readouterr()
    assert "Pure Gen" not in said.out
    assert "VQA BLEU" in said.out
    assert "the service has no scorer clip_i: its measures are left out" in said.err + said.out
    assert evaluate("model", "--suite", "unify", "--data", "data", "--scorers", "recognition,clip_i") == 2
    assert "the service has no scorer clip_i; it has bleu, recognition" in capsys.readouterr().err


def test_a_lost_service_keeps_what_there_is(
    evaluate: Evaluate, service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(scorer: str, item: Any) -> bool:
        raise Unavailable("planted")

    service.fails = lost
    arguments = ["model", "--suite", "unify_pp", "--data", "data", *SMALL, "--out", "here"]
    real = Service.__call__

    def call(self: Service, http: httpx.Request) -> httpx.Response:
        try:
            return real(self, http)
        except Unavailable as error:
            return httpx.Response(
                error.http_status, json={"error": {"code": error.code, "retryable": True, "message": "x"}}
            )

    Service.__call__ = call  # type: ignore[method-assign]
    try:
        assert evaluate(*arguments) == 1
        assert "here keeps answers and scores; run the same command again" in capsys.readouterr().err
        service.fails = lambda scorer, item: False
        replies = (tmp_path / "here/answers/replies.jsonl").read_bytes()
        assert evaluate(*arguments) == 0
        assert (tmp_path / "here/answers/replies.jsonl").read_bytes() == replies
    finally:
        Service.__call__ = real  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "--suite", "unify"], "needs --data DIR"),
        (["model", "--suite", "unify", "--data", "nowhere"], "nowhere is not a directory"),
        (["--suite", "unify", "--data", "data"], "either POLICY or --answers DIR"),
        (["model", "--suite", "unify", "--data", "data", "--answers", "x"], "either POLICY or --answers DIR"),
        (["model", "--suite", "unify", "--data", "data", "--prompts", "x"], "has its own prompts"),
        (
            ["model", "--suite", "unify", "--data", "data", "--textual-template", "plain"],
            "--suite unify states no facts; leave out --textual-template",
        ),
        (
            ["model", "--suite", "unify_pp", "--data", "data", "--textual-template", "public"],
            "--textual-template: the template lacks {facts} and {prompt}; give a text",
        ),
        (["model", "--suite", "dreambench", "--data", "data"], "prompts_and_classes.txt"),
        (["model", "--suite", "dreambench_pp", "--data", "data"], "data has no images/**/NN.jpg"),
        (["model", "--suite", "unify", "--data", "data", "--scorers", "hps"], "--scorers hps: this suite has bleu"),
        (["--suite", "geneval"], "--suite geneval needs POLICY"),
        (["model", "--suite", "geneval", "--data", "data"], "takes no --data, --answers or --concepts"),
        (["model", "--suite", "unify", "--data", "unknown"], "has no token for 1 of the concepts, <di>"),
        (["model", "--suite", "yollava", "--data", "empty"], "train/bo: no images of <bo> to compare with"),
        (["model", "--suite", "unify_pp", "--data", "photos"], "has nothing that this suite asks or draws"),
    ],
)
def test_wrong_usage_asks_and_draws_nothing(
    evaluate: Evaluate,
    service: Service,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    write_tree(tmp_path / "unknown", ("bo", "di"))
    (tmp_path / "empty/train/bo").mkdir(parents=True)
    write_image(tmp_path / "photos/0.png", 0)
    write_json(tmp_path / "photos/info.json", {"name": "<bo>", "class": "dog"})
    assert evaluate(*arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert (said.out, service.num_items) == ("", 0)
    assert not (tmp_path / "evaluation").exists()


def test_a_policy_that_only_draws_is_refused(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(self: ShowO, queries: Any, seeds: Any) -> Any:
        raise NotImplementedError("planted")

    monkeypatch.setattr(ShowO, "answer", answer)
    assert evaluate("model", "--suite", "unify", "--data", "data", *SMALL) == 2
    assert "this suite asks questions, but planted; give --suite dreambench" in capsys.readouterr().err


def test_other_conditions_do_not_resume(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["model", "--suite", "unify", "--data", "data", "--scorers", "recognition", "--out", "here"]
    assert evaluate(*arguments, *SMALL) == 0
    assert evaluate(*arguments, *SMALL, "--seed", "1") == 2
    assert "seed was 0, now 1" in capsys.readouterr().err
    assert evaluate(*arguments, *SMALL, "--batch", "2") == 2
    assert "batch was 4, now 2" in capsys.readouterr().err


def test_out_of_memory_names_the_batch_and_a_new_out(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers depend on the batch, so the evaluation cannot go on with another one."""

    def denoise(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(ShowO, "denoise", denoise)
    assert evaluate("model", "--suite", "unify", "--data", "data", *SMALL, "--batch", "8") == 1
    message = capsys.readouterr().err
    assert "out of memory with --batch 8 (CUDA out of memory.). Give --batch 4 and a new --out" in message

"""`synod evaluate --suite geneval` of the embedded policy by the embedded GenEval scorer, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from services.scorers import registry
from services.settings import load
from synod.client import SynodClient
from synod.contracts import ItemResult, ScoreResponse
from synod.images import ImageLimits, decode_item
from tests.unit.trainer.reward_services import WIRE
from trainer.__main__ import main
from trainer.evaluate import command

ROOT = Path(__file__).parents[4]
CONFIG = ROOT / "deploy/configs/embedded.toml"


@pytest.mark.slow
def test_geneval_of_the_embedded_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer = registry.build("geneval", load(CONFIG, {}).scorers["geneval"])

    def handle(http: httpx.Request) -> httpx.Response:
        if http.method == "GET":
            return httpx.Response(200, json={"scorers": [{"name": "geneval", "needs": list(scorer.spec.needs)}]})
        request = WIRE.decode_request(http.content)
        outcomes = scorer.score([decode_item(item, ImageLimits(2**22, 2**22)) for item in request.items])
        response = ScoreResponse(tuple(ItemResult({"geneval": one}) for one in outcomes), request.request_id or "")
        return httpx.Response(200, content=WIRE.encode_response(response), headers={"content-type": WIRE.content_type})

    def client(url: str, **options: Any) -> SynodClient:
        return SynodClient(url, **options, transport=httpx.MockTransport(handle))

    monkeypatch.setattr(command, "SynodClient", client)
    prompts = str(ROOT / "embedded/data/prompts/heldout.jsonl")
    arguments = ["evaluate", str(CONFIG), "--suite", "geneval", "--prompts", prompts, "--n", "12", "--images", "2"]
    assert main([*arguments, "--batch", "8", "--out", str(tmp_path / "out"), "--json"]) == 0
    shown = capsys.readouterr()
    table = json.loads(shown.out)["table"]
    assert "have no GenEval metadata: left out" in shown.err
    tasks = {"single_object", "two_object", "counting", "colors", "position", "color_attr"}
    assert set(table) == {*tasks, "overall", "all images", "prompts, any image"}
    assert all(table[task]["official"]["images"] == 4 and table[task]["official"]["prompts"] == 2 for task in tasks)
    lines = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    details = [line["scores"]["geneval"]["detail"] for line in lines]
    assert len(details) == 24
    assert table["all images"]["official"]["mean"] == pytest.approx(np.mean([one["official"] for one in details]))
    assert table["all images"]["soft"]["mean"] > 0, "the embedded policy draws some of these objects"
    assert main([*arguments, "--images", "2", "--out", str(tmp_path / "out")]) == 0
    assert "GenEval's score" in capsys.readouterr().out

    # the published prompts name objects that this detector does not know: every score is missing, and none is 0
    assert (
        main(
            [
                "evaluate",
                str(CONFIG),
                "--suite",
                "geneval",
                "--n",
                "6",
                "--images",
                "1",
                "--out",
                str(tmp_path / "b"),
                "--json",
            ]
        )
        == 1
    )
    shown = capsys.readouterr()
    assert json.loads(shown.out)["table"]["overall"]["official"]["mean"] is None
    assert "geneval: 6 of 6 scores are missing" in shown.err

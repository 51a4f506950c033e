"""The command: its output, its requests and its exit status."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from synod import cli
from synod.client import SynodClient
from synod.contracts import ItemResult, Score, ScoreFailure, ScoreRequest, ScoreResponse
from synod.errors import UnknownScorer
from synod.images import encode_png

ROOT = Path(__file__).parents[3]


class FakeClient:
    """Score 1/4 of the item's index; 'fer' fails; 'none' is unknown."""

    sent: ScoreRequest
    url: str

    def __init__(self, base_url: str, *, timeout_s: float) -> None:
        type(self).url = f"{base_url} {timeout_s:g}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def score(self, request: ScoreRequest) -> ScoreResponse:
        type(self).sent = request
        if "none" in request.scorers:
            raise UnknownScorer("no scorer 'none' here; this service serves ber, fer")
        failed = ScoreFailure("missing_input", "scorer 'fer' needs references; the item has none")
        return ScoreResponse(
            tuple(
                ItemResult({name: failed if name == "fer" else Score(i / 4, {"at": i}) for name in request.scorers})
                for i in range(len(request.items))
            ),
            "r",
        )

    def scorers(self) -> list[dict[str, Any]]:
        return [
            {"name": "ber", "needs": ["image", "prompt"], "low": -1.0, "high": 1.0, "summary": "image against prompt"},
            {"name": "x"},
        ]


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "SynodClient", FakeClient)
    monkeypatch.chdir(tmp_path)
    for name in ("a", "long-name", "ref"):
        Path(f"{name}.png").write_bytes(encode_png(np.zeros((2, 2, 3), np.uint8)))
    Path("empty").mkdir()


def test_score_prints_a_row_per_image(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["score", "a.png", "long-name.png", "--prompt", "a cat", "--scorer", "ber", "--scorer", "der"]
    assert (
        cli.main([*arguments, "--scorer", "ber", "--reference", "ref.png", "--url", "http://h:1", "--timeout", "9"])
        == 0
    )
    assert capsys.readouterr().out == (
        "IMAGE          ber     der\na.png          0.0000  0.0000\nlong-name.png  0.2500  0.2500\n"
    )
    assert FakeClient.url == "http://h:1 9"
    assert FakeClient.sent.scorers == ("ber", "der")
    item = FakeClient.sent.items[1]
    assert (item.image, item.prompt, item.references) == (
        Path("long-name.png").read_bytes(),
        "a cat",
        (Path("ref.png").read_bytes(),),
    )


def test_failed_score_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["score", "a.png", "--scorer", "ber", "--scorer", "fer"]) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1].split() == ["a.png", "0.0000", "missing_input"]
    assert printed.err == "synod: a.png: fer: scorer 'fer' needs references; the item has none\n"


def test_json_has_the_details(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["score", "a.png", "--scorer", "ber", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["scores"] == {"ber": {"value": 0.0, "detail": {"at": 0}}}


def test_scorers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scorers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("  ")[0] == "ber"
    assert "image, prompt" in lines[1]
    assert "-1.0 .. 1.0" in lines[1]
    assert cli.main(["scorers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1] == {"name": "x"}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["score", "a.png", "--scorer", "none"], 1, "synod: no scorer 'none' here; this service serves ber, fer"),
        (["score", "lost.png", "--scorer", "ber"], 2, "synod: lost.png: No such file or directory; give a PNG"),
        (["score", "empty", "--scorer", "ber"], 2, "synod: the folder empty holds no image; supported are .png"),
        (["score", "a.png"], 2, "synod: no scorer was given; give --scorers (`synod scorers` lists"),
        (["score", "a.png", "--scorers", "ber", "--json", "--out", "x"], 2, "synod: --json and --out exclude each"),
        (["replay", "lost.jsonl"], 2, "synod: lost.jsonl: No such file or directory; give a log that"),
        (["replay", "x.jsonl", "--out", "a.png"], 2, "synod: a.png already exists; give --out a new file"),
        (["score", "a.png", "--scorer", "ber", "--reference", "lost.png"], 2, "synod: lost.png: No such file"),
        (["serve", "x.toml"], 1, "synod: the package 'services' was not found; run the command from a checkout"),
    ],
)
def test_error_is_one_line(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    assert cli.main(arguments) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["score", "--scorer", "ber"], "the following arguments are required: IMAGE|DIR|JSONL"),
        (["score", "a.png", "--scorers", "ber,"], "'ber,' contains an empty name; give names such as ber,der"),
        (["replay", "a.jsonl", "--tolerance", "-1"], "'-1' is not a tolerance; give a number >= 0"),
        (["replay", "a.jsonl", "--tolerance", "nan"], "'nan' is not a tolerance; give a number >= 0"),
        (
            ["scorers", "--url", "localhost:1"],
            "'localhost:1' is not a Synod URL; give one such as http://127.0.0.1:8000 or grpc://",
        ),
        (["scorers", "--timeout", "0"], "'0' is not a timeout; give seconds above 0"),
        (["scorers", "--timeout", "nan"], "'nan' is not a timeout; give seconds above 0"),
        (["scorers", "--timeout", "soon"], "'soon' is not a timeout; give seconds above 0"),
        (["teach"], "invalid choice: 'teach'"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "defaults"),
    [
        (
            ["score", "a.png"],
            {"url": "http://127.0.0.1:8000", "timeout": 60.0, "json": False, "prompt": None, "source_prompt": None}
            | {"scorers": [], "ensemble": None, "references": [], "out": None},
        ),
        (
            ["replay", "a.jsonl"],
            {"url": "http://127.0.0.1:8000", "timeout": 60.0, "json": False, "scorers": [], "ensemble": None}
            | {"tolerance": 0.0, "out": None},
        ),
        (["scorers"], {"url": "http://127.0.0.1:8000", "timeout": 60.0, "json": False}),
        (["verify", "a.toml"], {"pairs": None}),
        (["warm", "a.toml"], {}),
        (["serve", "a.toml"], {"port": None, "run_dir": None}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_default_options(arguments: list[str], defaults: dict[str, Any]) -> None:
    """Defaults are part of the interface: scripts rely on them."""
    options = vars(cli.build_parser().parse_args(arguments))
    given = {"run", "inputs", "log", "config"}
    assert {name: value for name, value in options.items() if name not in given} == defaults


def test_help_teaches_with_examples_that_parse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    assert cli.EXAMPLES in capsys.readouterr().out
    teaching = [cli.EXAMPLES, cli.SCORE_EXAMPLES, cli.REPLAY_EXAMPLES]
    for line in (line for text in teaching for line in text.splitlines() if line.startswith("  synod ")):
        words = shlex.split(line.strip().split("   ")[0].split("|")[0])
        cli.build_parser().parse_args(words[1:])


def make_package(name: str) -> None:
    Path(name).mkdir()
    Path(f"{name}/__init__.py").touch()
    Path(f"{name}/__main__.py").touch()


@pytest.mark.parametrize("options", [[], ["--port", "8001"], ["--port", "8001", "--run-dir", "runs/other"]])
def test_serve_runs_the_service_program(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is found in the working directory and gets the settings' absolute path, and the options."""
    make_package("services")
    Path("x.toml").touch()
    seen: list[tuple[str, Sequence[str], str]] = []

    def become(path: str, argv: Sequence[str], env: dict[str, str]) -> None:
        seen.append((path, argv, env["PYTHONPATH"]))
        raise SystemExit

    monkeypatch.setattr(os, "execve", become)
    with pytest.raises(SystemExit):
        cli.main(["serve", "x.toml", *options])
    [(program, argv, python_path)] = seen
    config = str(Path("x.toml").resolve())
    assert (program, argv) == (sys.executable, [sys.executable, "-m", "services", "up", config, *options])
    assert python_path.split(os.pathsep)[0] == str(Path.cwd())
    assert cli.main(["serve", "lost.toml"]) == 2


@pytest.mark.parametrize("command", ["warm", "verify"])
@pytest.mark.parametrize(
    ("tables", "packages", "statuses", "ran", "status"),
    [
        ("[scorers.a]", ["services", "trainer"], [0], ["services"], 0),
        ("[trainer]", ["services", "trainer"], [0], ["trainer"], 0),
        ("[scorers.a]\n[trainer]", ["services", "trainer"], [0, 0], ["services", "trainer"], 0),
        ("[scorers.a]\n[trainer]", ["services", "trainer"], [1, 0], ["services", "trainer"], 1),
        ("[scorers.a]\n[trainer]", ["services", "trainer"], [0, 3], ["services", "trainer"], 3),
        ("[scorers.a]\n[trainer]", ["services", "trainer"], [-9, 0], ["services", "trainer"], 137),
        ("[scorers.a]\n[trainer]", ["services"], [0], ["services"], 0),
        ("[scorers.a]\n[trainer]", ["trainer"], [0], ["trainer"], 0),
        ("[trainer]", ["services"], [], [], 1),
        ("[server]", ["services", "trainer"], [], [], 1),
    ],
)
def test_models_of_both_programs_are_checked(
    command: str,
    tables: str,
    packages: list[str],
    statuses: list[int],
    ran: list[str],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The settings' tables decide which programs run; a failure of one does not stop the other."""
    for name in packages:
        make_package(name)
    Path("x.toml").write_text(tables)
    lines: list[list[str]] = []

    def run(line: list[str], *, env: dict[str, str], check: bool) -> subprocess.CompletedProcess[bytes]:
        lines.append(line)
        assert env["PYTHONPATH"].split(os.pathsep)[0] == str(Path.cwd())
        return subprocess.CompletedProcess(line, statuses[len(lines) - 1])

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(ROOT))])
    monkeypatch.setenv("SYNOD__TRAINER__STEPS", "3")  # no table of the file
    passed = ["--pairs", "own.jsonl"] if command == "verify" else []
    assert cli.main([command, "x.toml", *passed]) == status
    config = str(Path("x.toml").resolve())
    assert lines == [[sys.executable, "-m", program, command, config, *passed] for program in ran]
    left_out = [name for name in ("services", "trainer") if name not in packages]
    assert all(f"the package '{name}' is not installed here" in capsys.readouterr().err for name in left_out)
    assert cli.main([command, "lost.toml"]) == 2


@pytest.mark.slow
def test_process_exits_with_its_status() -> None:
    command = [sys.executable, "-m", "synod.cli", "score", "a.png", "--scorer", "ber", "--url", "http://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("synod: no service responds at http://127.0.0.1:9 ")


def test_invalid_token_is_one_line_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "SynodClient", SynodClient)
    monkeypatch.setenv("SYNOD_TOKEN", "not one word")
    assert cli.main(["scorers"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("synod: SYNOD_TOKEN is not a valid token or key (12 characters)")
    assert "not one word" not in printed.err

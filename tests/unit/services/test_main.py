"""Commands that need no cluster, and errors before one is started."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import httpx
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from services.__main__ import build_parser, main
from services.cluster.local import RewardService, check_port, free_port
from services.scorers import registry
from services.scorers.base import ScorerSpec
from services.settings import load
from synod.contracts import Score, ScoreItem
from synod.errors import SettingsError
from synod.images import encode_png

NOT_FOUND = httpx.Response(404, request=httpx.Request("GET", "http://hub.example"))
TOML = """
[server]
port = {port}
[scorers.der]
kind = "der"
model = "./"
"""


def config(folder: Path, text: str = TOML, port: int = 8000) -> str:
    path = folder / "service.toml"
    path.write_text(text.format(port=port))
    return str(path)


def test_check_prints_what_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", config(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "der" in output
    assert "1 x (0.1 CPU, 0 GPU)" in output


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[", "service.toml"),
        ('[scorers.der]\nkind = "der"\nmodel = "./nowhere"\n', "no such file or directory"),
        ('golden = "./nowhere.json"\n[scorers.der]\nkind = "der"\nmodel = "./"\n', "golden"),
        ('[scorers.Gateway]\nkind = "der"\nmodel = "./"\n', "scorers.Gateway"),
        ('[scorers.der]\nkind = "der"\nmodel = "./"\nserving = { num_gpus = 1.5 }\n', "a whole number"),
    ],
)
def test_invalid_settings_are_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, word: str
) -> None:
    path = tmp_path / "service.toml"
    path.write_text(text)
    assert main(["check", str(path)]) == 1
    output = capsys.readouterr().err
    assert output.startswith("error: ")
    assert word in output
    assert "Traceback" not in output


def test_commands_and_makefile_have_one_default_run_dir() -> None:
    """Scripts rely on it."""
    for command in (["up", "a.toml"], ["down"], ["status"]):
        assert build_parser().parse_args(command).run_dir == Path("runs/service")
    assert "RUN_DIR ?= runs/service" in (Path(__file__).parents[3] / "Makefile").read_text()


def test_down_and_status_without_a_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["down", "--run-dir", str(tmp_path)]) == 0
    assert main(["down", "--run-dir", str(tmp_path)]) == 0
    assert main(["status", "--run-dir", str(tmp_path)]) == 1
    assert main(["status", "--run-dir", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().out.count("no service runs from") == 4
    assert not (tmp_path / "none").exists()


def test_busy_port_is_refused_before_start(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port}.*--port"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_golden_records_from_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden file in the settings need not exist yet; failures are omitted."""

    class Length:
        spec = ScorerSpec("der", ("prompt",), 0.0, 9.0, "a test", "a test")

        def score(self, items: list[ScoreItem]) -> list[Score]:
            return [Score(float(len(item.prompt or ""))) for item in items]

    monkeypatch.setattr(registry, "build", lambda name, settings: Length())
    items = tmp_path / "items.json"
    items.write_text(json.dumps([{"item": {"prompt": "four"}}, {"item": {}}]))
    out = tmp_path / "golden.json"
    path = tmp_path / "service.toml"
    path.write_text('golden = "./golden.json"\n[scorers.der]\nkind = "der"\nmodel = "./"\n')
    assert main(["golden", str(path), str(out), "--items", str(items)]) == 0
    assert [entry["scores"] for entry in json.loads(out.read_text())] == [{"der": 4.0}, {}]
    assert main(["check", str(path)]) == 0


def error_line(printed: str) -> str:
    """The only line of an error, without a traceback."""
    assert "Traceback" not in printed
    (line,) = [one for one in printed.splitlines() if one.startswith("error: ")]
    return line


@pytest.mark.parametrize("command", ["golden", "verify"])
@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RepositoryNotFoundError("404\n\nno such model", response=NOT_FOUND), "(404 no such model). Correct the id or"),
        (LocalEntryNotFoundError("it is not cached"), "(it is not cached). HF_HUB_OFFLINE is set or the hub cannot be"),
        (HFValidationError("Repo id must be in the form 'name'"), "(Repo id must be in the form 'name')"),
    ],
    ids=["unknown", "offline", "malformed"],
)
def test_model_that_cannot_be_found_is_one_clear_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    raised: Exception,
    expected: str,
) -> None:
    def snapshot(*_: object, **__: object) -> str:
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    path = config(tmp_path, '[scorers.der]\nkind = "der"\nmodel = "acme/none"\n')
    (tmp_path / "a.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    pair = {"name": "a", "scorers": ["der"], "better": {"image": "a.png"}, "worse": {"image": "a.png"}}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    (tmp_path / "items.json").write_text(json.dumps([{"item": {"prompt": "four"}}]))
    arguments = {
        "golden": [str(tmp_path / "golden.json"), "--items", str(tmp_path / "items.json")],
        "verify": ["--pairs", str(tmp_path / "pairs.jsonl")],
    }
    assert main([command, path, *arguments[command]]) == 1
    line = error_line(capsys.readouterr().err)
    assert line.startswith(f"error: scorer 'der' cannot be loaded {expected}")


@pytest.mark.parametrize("command", ["up", "down"])
def test_unusable_run_dir_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    (tmp_path / "file").touch()
    arguments = [config(tmp_path)] if command == "up" else []
    assert main([command, *arguments, "--run-dir", str(tmp_path / "file/run")]) == 1
    assert str(tmp_path / "file/run") in error_line(capsys.readouterr().err)


def test_golden_without_its_folder_loads_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(name: str, settings: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(registry, "build", build)
    items, out = tmp_path / "items.json", tmp_path / "missing/golden.json"
    items.write_text(json.dumps([{"item": {"prompt": "four"}}]))
    assert main(["golden", config(tmp_path), str(out), "--items", str(items)]) == 1
    assert error_line(capsys.readouterr().err).startswith(f"error: {out}: the folder {out.parent} does not exist;")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["check", "up", "warm"])
def test_unusable_environment_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'cannot load libpython' >&2; exit 127\n")
    python.chmod(0o755)
    path = tmp_path / "service.toml"
    path.write_text('[scorers.it]\nkind = "jpeg"\ndirection = "compressibility"\nserving = { python = "./python" }\n')
    assert main([command, str(path)]) == 1
    output = capsys.readouterr().err
    assert output.startswith(f"error: python '{python}' ended with status 127")
    assert "cannot load libpython; give the Python of a virtual environment" in output


def test_local_service_refuses_scorers_with_a_resource(tmp_path: Path) -> None:
    text = '[scorers.it]\nkind = "jpeg"\ndirection = "compressibility"\nserving = {{ resource = "hpsv3" }}\n'
    with pytest.raises(SettingsError, match="scorer 'it' has resource = 'hpsv3', which no node of this machine"):
        RewardService(load(config(tmp_path, "[server]\nport = {port}\n" + text, free_port()), {}), tmp_path)

"""The word lint: it refuses every word of its list, respects its allow-list, and reads only tracked text files."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy/lint_words.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lint_words", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


lint = _load()
# fmt: off
REFUSED = [
    "told", "tell", "tells", "telling", "anew", "whoever", "whomever", "picture",
    "pictures", "plane", "planes", "away", "twin", "twins", "rim", "rims",
    "lawful", "unlawful", "hollow", "lonely", "wordless", "beside", "mend", "mended",
    "amiss", "nought", "thereof", "lest", "import law", "batch law", "lab notebook", "drawn world",
    "just now", "x is no url", "they are no urls", "as such", "some day", "what falls short", "of ours", "of yours",
    "way out", "makes no sense",
]
# fmt: on


@pytest.mark.parametrize("word", REFUSED)
def test_refused_words_are_found(word: str) -> None:
    for text in (f"first line\nIt {word} x", f"\n{word.capitalize()}"):
        (finding,) = lint.find_words("a.md", text)
        assert finding.line == 2
        assert finding.word in word
        assert finding.instead


def test_every_pattern_of_the_list_is_tried() -> None:
    found = {finding.instead for word in REFUSED for finding in lint.find_words("a.md", word)}
    assert found == set(lint.WORDS.values())


def test_words_in_identifiers_are_found() -> None:
    assert [finding.word for finding in lint.find_words("a.py", "def told_to_stop(): _twin = 1")] == ["told", "twin"]


@pytest.mark.parametrize(
    "text",
    ["aeroplane", "the control plane", "there is no file", "it is no longer here", "trimmed", "intelligent", "retold"],
)
def test_ordinary_words_are_accepted(text: str) -> None:
    assert lint.find_words("a.md", text) == []


def test_the_allow_list_is_for_its_file_and_line_only() -> None:
    line = '_PLAIN = ("a picture of {}",)'
    assert lint.find_words("embedded/world/prompts.py", line) == []
    assert len(lint.find_words("services/core.py", line)) == 1
    assert len(lint.find_words("embedded/world/prompts.py", f"{line}\n# the picture")) == 1


def test_only_tracked_text_files_are_read(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "embedded/data").mkdir(parents=True)
    (tmp_path / "bad.py").write_text("# it told us\n")
    (tmp_path / "binary.png").write_bytes(b"\x89PNG\xff told")
    (tmp_path / "embedded/data/train.jsonl").write_text("a picture\n")
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    (tmp_path / "untracked.py").write_text("# told\n")
    command = [sys.executable, str(SCRIPT), "--root", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stdout.startswith("bad.py:1: 'told': write 'report")
    assert "1 refused words" in run.stdout
    (tmp_path / "bad.py").write_text("# it reported this\n")
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("docstring", ["The value.", "Whether it runs.", "Returns x.", "A b.", "What is left."])
def test_docstrings_that_are_not_imperative_are_counted(docstring: str) -> None:
    source = f'def f():\n    """{docstring}"""\ndef g():\n    """Pass it on."""\ndef _h():\n    """The."""\n'
    assert [ok for _, _, ok in lint.find_docstrings(source)] == [False, True]

"""The parts of settings that the service and the trainer share."""

from __future__ import annotations

from pathlib import Path

import pytest

from synod.errors import SettingsError
from synod.toml import model_source, read, settings_error


def test_overrides_are_parsed_as_toml_or_kept_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[a]\nb = 1\nc = "x"\n')
    environ = {
        "SYNOD__A__B": "2.5",
        "SYNOD__A__C": "http://here",
        "SYNOD__D": "[1, 2]",
        "SYNOD__E__F__G": "true",
        "OTHER__A__B": "9",
    }
    assert read(path, environ) == {"a": {"b": 2.5, "c": "http://here"}, "d": [1, 2], "e": {"f": {"g": True}}}


def test_the_process_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[a]\nb = 1\n")
    monkeypatch.setenv("SYNOD__A__B", "7")
    assert read(path)["a"]["b"] == 7
    assert read(path, {})["a"]["b"] == 1


@pytest.mark.parametrize(
    ("content", "environ", "found"),
    [
        (b"[a\n", {}, "a.toml: Expected"),
        (b"a = '\xff'\n", {}, "a.toml: 'utf-8'"),
        (b"a = 1\n", {"SYNOD__A__B": "2"}, "SYNOD__A__B: 'a' is a value, not a table"),
    ],
)
def test_an_unreadable_file_is_an_error_with_its_path(
    tmp_path: Path, content: bytes, environ: dict[str, str], found: str
) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        read(path, environ)
    assert found in str(caught.value)


def test_an_error_names_key_rule_and_value() -> None:
    errors = [
        {"type": "extra_forbidden", "loc": ("b",), "msg": "Extra inputs", "input": 1},
        {"type": "value_error", "loc": ("c", 0), "msg": "Value error, too big", "input": 9},
        {"type": "missing", "loc": ("d",), "msg": "Field required", "input": {"many": "keys"}},
    ]
    assert str(settings_error(Path("x.toml"), errors, "a")).splitlines() == [
        "settings file x.toml has 3 error(s):",
        "  a.b: unknown key; remove it or correct its spelling",
        "  a.c.0: too big (given: 9)",
        "  a.d: Field required",
    ]
    assert "  b: unknown key" in str(settings_error(Path("x.toml"), errors))


def test_model_sources(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert model_source("./model", tmp_path / "elsewhere/..") == str(tmp_path / "model")
    assert model_source("org/model", tmp_path) == "org/model"
    assert Path(model_source("package:synod/client", tmp_path)).name == "client"
    for source, found in (("./gone", "no such file or directory"), ("package:no_such/x", "pip install no-such")):
        with pytest.raises(ValueError, match=found):
            model_source(source, tmp_path)


def test_changes_are_merged_key_by_key_and_in_order(tmp_path: Path) -> None:
    """The environment comes last; lists are replaced whole, and a value may replace a table."""
    texts = {
        "base": "top = 1\n[a]\nx = 1\nlist = [1, 2]\n[a.b]\ny = 2\nz = 3\n[c]\nq = 1\n",
        "first": "c = 5\n[a]\nlist = [3]\n[a.b]\ny = 20\n",
        "second": "[a.b]\ny = 30\nw = 4\n[new]\nv = 1\n",
    }
    paths = [tmp_path / f"{name}.toml" for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text)
    found = read(paths[0], {"SYNOD__A__X": "9"}, paths[1:])
    assert found == {
        "top": 1,
        "a": {"x": 9, "list": [3], "b": {"y": 30, "z": 3, "w": 4}},
        "c": 5,
        "new": {"v": 1},
    }
    with pytest.raises(SettingsError, match=r"gone\.toml: No such file"):
        read(paths[0], {}, [tmp_path / "gone.toml"])

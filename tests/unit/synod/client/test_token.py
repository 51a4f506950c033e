"""Where the token comes from, and that no message shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from synod.client import SynodClient
from synod.client.token import find_token
from synod.errors import SettingsError


def test_the_argument_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("from-file\n")
    environ = {"SYNOD_TOKEN": "from-environment", "SYNOD_TOKEN_FILE": str(path)}
    assert find_token("given", environ) == "given"
    assert find_token(None, environ) == "from-environment"
    assert find_token(None, environ | {"SYNOD_TOKEN": ""}) == "from-file"
    assert find_token(None, {}) is None
    assert find_token(None, {"SYNOD_TOKEN_FILE": ""}) is None


@pytest.mark.parametrize("secret", ["two words", "line\nline", "ünïcode-secret", "tab\tsecret", ""])
def test_what_no_header_carries_is_refused_unquoted(secret: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(secret)
    for given, environ, source in (
        (secret, {}, "'token' argument"),
        (None, {"SYNOD_TOKEN": secret or " "}, "SYNOD_TOKEN"),
        (None, {"SYNOD_TOKEN_FILE": str(path)}, "SYNOD_TOKEN_FILE"),
    ):
        with pytest.raises(SettingsError, match="printable ASCII without spaces") as raised:
            find_token(given, environ)
        assert source in str(raised.value)
        assert not secret or secret not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"lost: No such file or directory; give a file that the program can read$"):
        find_token(None, {"SYNOD_TOKEN_FILE": str(tmp_path / "lost")})
    (tmp_path / "odd").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="odd: not UTF-8"):
        find_token(None, {"SYNOD_TOKEN_FILE": str(tmp_path / "odd")})


def test_the_client_reads_the_environment_and_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNOD_TOKEN", "tops3cret")
    with SynodClient("http://service") as client:
        shown = repr(client) + str(vars(client)) + repr(client._flows)
    assert "tops3cret" not in shown

"""The source of the token; messages do not show it."""

from __future__ import annotations

from pathlib import Path

import pytest

from synod.client import SynodClient
from synod.client.headers import find_token
from synod.errors import SettingsError


def test_token_precedence_is_argument_environment_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("from-file\n")
    environ = {"SYNOD_TOKEN": "from-environment", "SYNOD_TOKEN_FILE": str(path)}
    assert find_token("given", environ) == "given"
    assert find_token(None, environ) == "from-environment"
    assert find_token(None, environ | {"SYNOD_TOKEN": ""}) == "from-file"
    assert find_token(None, {}) is None
    assert find_token(None, {"SYNOD_TOKEN_FILE": ""}) is None


@pytest.mark.parametrize("secret", ["two words", "line\nline", "ünïcode-secret", "tab\tsecret", ""])
def test_invalid_token_error_does_not_quote_it(secret: str, tmp_path: Path) -> None:
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


def test_unreadable_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"lost: No such file or directory; give a file that the program can read$"):
        find_token(None, {"SYNOD_TOKEN_FILE": str(tmp_path / "lost")})
    (tmp_path / "odd").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="odd: not UTF-8"):
        find_token(None, {"SYNOD_TOKEN_FILE": str(tmp_path / "odd")})


def test_client_repr_hides_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNOD_TOKEN", "tops3cret")
    with SynodClient("http://service") as client:
        shown = repr(client) + str(vars(client))
    assert "tops3cret" not in shown

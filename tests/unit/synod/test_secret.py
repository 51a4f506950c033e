"""Messages name the source of a secret, never the secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from synod.errors import SettingsError
from synod.secret import Secret, from_environment, from_file

HIDDEN = "s3cret-of-the-service"


def test_source_names_the_setting_and_its_value(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f" {HIDDEN}\n")
    found = from_file("key_file", str(path)), from_environment("key_env", "KEY", {"KEY": HIDDEN})
    assert [one.source for one in found] == [f"key_file {path}", "key_env KEY"]
    assert [one.token() for one in found] == [HIDDEN] * 2
    assert not [one for one in found if HIDDEN in f"{one!r} {one}"]


def test_a_missing_secret_is_an_error_with_its_source(tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(b"\xff" + HIDDEN.encode())
    for path, why in ((odd, "not UTF-8"), (tmp_path, "Is a directory"), (tmp_path / "no", "No such file or directory")):
        found = f"^key_file {path}: {why}; give a file that the program can read$"
        with pytest.raises(SettingsError, match=found) as raised:
            from_file("key_file", str(path))
        assert raised.value.__cause__ is None  # a decoder's error holds what it read
        assert raised.value.__suppress_context__
    with pytest.raises(SettingsError, match=r"^key_env KEY: no such environment variable; set it for"):
        from_environment("key_env", "KEY", {"OTHER": HIDDEN})


@pytest.mark.parametrize("text", ["", " ", f"{HIDDEN} {HIDDEN}", f"{HIDDEN}\n{HIDDEN}", f"{HIDDEN}é"])
def test_an_invalid_token_is_reported_by_its_length(text: str) -> None:
    with pytest.raises(
        SettingsError, match=rf"^key_env KEY is not a valid token or key \({len(text.strip())} char"
    ) as raised:
        Secret("key_env KEY", text).token()
    assert HIDDEN not in str(raised.value)

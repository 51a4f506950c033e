"""Bearer tokens identify callers, and no message holds a token."""

from __future__ import annotations

import gc
import hmac
import traceback
from pathlib import Path

import pytest

from services.gateway import auth
from services.gateway.quota import Caller
from services.settings import AuthSettings
from synod.errors import PermissionDenied, SettingsError, Unauthenticated

TRAINER, PROMETHEUS = "trainer-token-0123456789", "metrics-token-0123456789"
TOKENS = f"""
[run-7]
token = "{TRAINER}"
priority = "evaluation"
max_images = 64

[prometheus]
token = "{PROMETHEUS}"
scopes = ["metrics"]
"""
SOURCE = AuthSettings(tokens_env="SYNOD_TOKENS")


def authenticator(text: str = TOKENS) -> auth.Authenticator:
    return auth.load(SOURCE, {"SYNOD_TOKENS": text})


def test_token_gives_name_priority_and_quota() -> None:
    assert authenticator().authenticate(f"Bearer {TRAINER}", "score") == Caller("run-7", "evaluation", 64)
    assert authenticator().authenticate(f"bearer  {TRAINER} ", "score").name == "run-7"
    assert authenticator().authenticate(f"Bearer {PROMETHEUS}", "metrics") == Caller("prometheus")


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer  ", f"Basic {TRAINER}", TRAINER, f"Bearer {TRAINER}x", f"Bearer {TRAINER[:-1]}"],
)
def test_unknown_token_is_refused(header: str | None) -> None:
    with pytest.raises(Unauthenticated) as refused:
        authenticator().authenticate(header, "score")
    assert TRAINER[:-1] not in str(refused.value)
    assert auth.challenge(refused.value) == 'Bearer realm="synod"'


def test_missing_scope_is_named() -> None:
    with pytest.raises(PermissionDenied, match="'prometheus' has no scope 'score'") as refused:
        authenticator().authenticate(f"Bearer {PROMETHEUS}", "score")
    assert "insufficient_scope" in (auth.challenge(refused.value) or "")
    with pytest.raises(PermissionDenied):
        authenticator().authenticate(f"Bearer {TRAINER}", "metrics")
    assert auth.challenge(RuntimeError()) is None


def test_all_digests_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    compare = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        compared.append(a)
        return compare(a, b)

    subject = authenticator()
    monkeypatch.setattr(auth.hmac, "compare_digest", counted)
    subject.authenticate(f"Bearer {TRAINER}", "score")
    assert len(compared) == 2


def test_tokens_are_not_kept_in_memory() -> None:
    subject = authenticator()
    gc.collect()
    seen, todo = set(), [subject]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type):
            continue
        seen.add(id(one))
        assert not (isinstance(one, str | bytes) and TRAINER in str(one))
        todo += gc.get_referents(one)
        assert len(seen) < 100_000


def test_without_tokens_everyone_is_accepted() -> None:
    assert auth.load(AuthSettings()).authenticate(None, "score") == Caller()


def test_tokens_are_read_from_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(TOKENS)
    assert auth.load(AuthSettings(tokens_file=str(path))).authenticate(f"Bearer {TRAINER}", "score").name == "run-7"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no tokens"),
        (f"[a]\ntoken = {TRAINER}\n", "is not valid TOML"),
        (f'[a]\ntoken = "{TRAINER}"\n[b]\ntoken = "{TRAINER}"\n', "two names share a token"),
        (f'[a]\ntoken = "{TRAINER[:15]}"\n', "a.token: Value should have at least 16"),
        (f'[a]\ntoken = "{TRAINER}"\npriority = "{TRAINER}"\n', "a.priority"),
        (f'[a]\ntoken = "{TRAINER}"\n{TRAINER} = 1\n', "Extra inputs"),
        ("[a]\nmax_images = 0\n", "2 error(s)"),
    ],
)
def test_unusable_tokens_are_reported_without_secrets(text: str, reason: str) -> None:
    with pytest.raises(SettingsError) as refused:
        authenticator(text)
    assert reason in str(refused.value)
    assert "SYNOD_TOKENS" in str(refused.value)
    shown = "".join(traceback.format_exception(refused.value))
    assert f'"{TRAINER[:15]}' not in shown
    assert f"'{TRAINER[:15]}" not in shown


def test_missing_token_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"tokens_env SYNOD_TOKENS.*no such environment variable"):
        auth.load(SOURCE, {})
    with pytest.raises(SettingsError, match=r"tokens_file .*gone: No such file or directory"):
        auth.load(AuthSettings.model_construct(tokens_file=str(tmp_path / "gone")))

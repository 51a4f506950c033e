"""Authenticate callers by bearer tokens, which have a name, a priority, a quota and scopes.

Tokens are TOML, in a file or an environment variable that the settings name. Each name has a table:

    [run-7]
    token = "at least 16 characters"     # python -c "import secrets; print(secrets.token_urlsafe(32))"
    priority = "training"                # or "evaluation"; training goes first
    max_images = 4096                    # in flight at once in one gateway; absent: no limit
    scopes = ["score"]                   # "score", "metrics"

Only SHA-256 digests stay in memory, and no message or log holds a token. (A plain hash is enough for a random token of
16 characters or more, which cannot be guessed like a password.)
"""

from __future__ import annotations

import hmac
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

from services.gateway.admission import Priority
from services.gateway.quota import ANONYMOUS, Caller
from services.settings import AuthSettings
from synod.errors import PermissionDenied, SettingsError, Unauthenticated
from synod.secret import Secret, from_environment, from_file

Scope = Literal["score", "metrics"]


class _Token(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    token: Annotated[SecretStr, Field(min_length=16)]
    priority: Priority = "training"
    max_images: int | None = Field(None, ge=1)
    scopes: frozenset[Scope] = frozenset({"score"})


_TOKENS = TypeAdapter(dict[str, _Token], config=ConfigDict(hide_input_in_errors=True))


@dataclass(frozen=True, slots=True)
class _Known:
    digest: bytes
    caller: Caller
    scopes: frozenset[Scope]


class Authenticator:
    """Finds the caller of a token. Without tokens, it accepts everyone; the settings allow that on loopback only."""

    def __init__(self, known: tuple[_Known, ...] = ()) -> None:
        self._known = known

    def authenticate(self, authorization: str | None, scope: Scope) -> Caller:
        """Return the caller of an Authorization header. Raises Unauthenticated, or PermissionDenied without `scope`.

        All digests are compared, each in constant time, so that the time taken reveals none.
        """
        if not self._known:
            return ANONYMOUS
        kind, _, token = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise Unauthenticated("the request has no bearer token; send 'Authorization: Bearer TOKEN'")
        given = _digest(token.strip())
        matching = [known for known in self._known if hmac.compare_digest(known.digest, given)]
        if not matching:
            raise Unauthenticated("the bearer token is unknown; ask the operator of the service for one")
        if scope not in matching[0].scopes:
            raise PermissionDenied(f"token '{matching[0].caller.name}' has no scope '{scope}'")
        return matching[0].caller


def load(settings: AuthSettings, environ: Mapping[str, str] = os.environ) -> Authenticator:
    """Load the tokens that the settings name. Raises SettingsError, without secrets, for unusable ones."""
    if settings.tokens_file is not None:
        return Authenticator(_read(from_file("[auth] tokens_file", settings.tokens_file)))
    if settings.tokens_env is not None:
        return Authenticator(_read(from_environment("[auth] tokens_env", settings.tokens_env, environ)))
    return Authenticator()


def challenge(error: Exception) -> str | None:
    """Return the WWW-Authenticate header for an error (RFC 6750), None if it needs none."""
    if isinstance(error, Unauthenticated):
        return 'Bearer realm="synod"'
    if isinstance(error, PermissionDenied):
        return 'Bearer realm="synod", error="insufficient_scope"'
    return None


def _read(secret: Secret) -> tuple[_Known, ...]:
    source = secret.source
    try:
        entries = _TOKENS.validate_python(tomllib.loads(secret.text))
    except tomllib.TOMLDecodeError:  # its message may quote the text
        raise SettingsError(f"{source} is not valid TOML; see `services/gateway/auth.py` for an example") from None
    except ValidationError as error:
        errors = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
        raise SettingsError(f"{source} has {len(errors)} error(s):\n" + "\n".join(errors)) from None
    known = tuple(
        _Known(_digest(entry.token.get_secret_value()), Caller(name, entry.priority, entry.max_images), entry.scopes)
        for name, entry in entries.items()
    )
    if not known:
        raise SettingsError(f"{source} has no tokens; give at least one table with a 'token'")
    if len({one.digest for one in known}) < len(known):
        raise SettingsError(f"{source}: two names share a token; give each its own")
    return known


def _digest(token: str) -> bytes:
    return sha256(token.encode(errors="surrogatepass")).digest()

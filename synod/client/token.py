"""Where the bearer token comes from: the argument, else SYNOD_TOKEN, else the file that SYNOD_TOKEN_FILE names."""

from __future__ import annotations

import os
from collections.abc import Mapping

from synod.secret import Secret, from_file


def find_token(given: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The token, or None for a service that asks for none. Raises SettingsError, without quoting it."""
    if given is not None:
        return Secret("the 'token' argument", given).token()
    if environ.get("SYNOD_TOKEN"):
        return Secret("SYNOD_TOKEN", environ["SYNOD_TOKEN"]).token()
    if path := environ.get("SYNOD_TOKEN_FILE"):
        return from_file("SYNOD_TOKEN_FILE", path).token()
    return None

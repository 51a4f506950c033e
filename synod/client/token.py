"""Where the bearer token comes from: the argument, else SYNOD_TOKEN, else the file that SYNOD_TOKEN_FILE names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from synod.errors import SettingsError

_TOKEN = re.compile(r"[\x21-\x7e]+")  # what a header carries as one word


def find_token(given: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The token, or None for a plane that asks for none. Raises SettingsError, without quoting it."""
    if given is not None:
        return _checked(given, "the 'token' argument")
    if environ.get("SYNOD_TOKEN"):
        return _checked(environ["SYNOD_TOKEN"], "SYNOD_TOKEN")
    path = environ.get("SYNOD_TOKEN_FILE")
    if not path:
        return None
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise SettingsError(f"SYNOD_TOKEN_FILE names {path}: {why}; give a file that holds the token alone") from None
    return _checked(text, f"the file {path} of SYNOD_TOKEN_FILE")


def _checked(text: str, source: str) -> str:
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        raise SettingsError(
            f"{source} is no bearer token ({len(token)} characters); a token is printable ASCII without spaces"
        )
    return token

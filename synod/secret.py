"""Read secrets from environment variables and files. Error messages name the source, never the secret."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from synod.errors import SettingsError

_WORD = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret, and its source for error messages."""

    source: str
    text: str = field(repr=False)

    def token(self) -> str:
        """Return the text, stripped, for a header. Raises SettingsError unless it is printable ASCII without spaces."""
        word = self.text.strip()
        if not _WORD.fullmatch(word):
            raise SettingsError(
                f"{self.source} is not a valid token or key ({len(word)} characters); "
                "give printable ASCII without spaces"
            )
        return word


def from_environment(setting: str, variable: str, environ: Mapping[str, str] = os.environ) -> Secret:
    """Read the environment variable that `setting` names. Raises SettingsError if it is not set."""
    if variable not in environ:
        raise SettingsError(f"{setting} {variable}: no such environment variable; set it for the program")
    return Secret(f"{setting} {variable}", environ[variable])


def from_file(setting: str, path: str) -> Secret:
    """Read the file that `setting` names. Raises SettingsError if it cannot be read as UTF-8."""
    try:
        return Secret(f"{setting} {path}", Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise SettingsError(f"{setting} {path}: {why}; give a file that the program can read") from None

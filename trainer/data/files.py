"""Read text and JSON files with errors that name the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synod.errors import InvalidRequest, SettingsError
from synod.reader import Node


@contextmanager
def hint(text: str) -> Iterator[None]:
    try:
        yield
    except InvalidRequest as error:
        raise SettingsError(f"{error}. {text}") from None


def text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; correct the path or its permissions") from None
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def json_node(text: str, where: str) -> Node:
    try:
        return Node(json.loads(text), where)
    except ValueError as error:
        raise SettingsError(f"{where} is not valid JSON ({error})") from None

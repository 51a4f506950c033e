"""Read a program's settings TOML: environment overrides, model sources and error messages.

`SYNOD__SERVER__PORT=8001` overrides `[server] port`; a value that is not valid TOML is a string. This module knows no
settings class: each program validates the tree itself.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from synod.errors import SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENV_PREFIX: Final = "SYNOD__"


def read(path: Path, environ: Mapping[str, str] | None = None, changes: Sequence[Path] = ()) -> dict[str, Any]:
    """Return the file's tree, with the values of `changes` in its place, then those of `environ` (default: os.environ).

    A table of a changes file is merged with the file's, key by key. Raises SettingsError.
    """
    tree = _parsed(path)
    for one in changes:
        _merge(tree, _parsed(one))
    for name, text in (os.environ if environ is None else environ).items():
        if name.startswith(ENV_PREFIX):
            _override(tree, name, text)
    return tree


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(
            f"settings file {path}: {error.strerror}. Give a TOML such as deploy/configs/embedded.toml"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {path}: {error}") from None


def _merge(tree: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        below = tree.get(key)
        if isinstance(value, Mapping) and isinstance(below, dict):
            _merge(below, value)
        else:
            tree[key] = value


def settings_error(path: Path, errors: Sequence[Mapping[str, Any]], table: str = "") -> SettingsError:
    """Return the error that lists pydantic's `errors()` for `path`, with keys relative to `table`."""
    lines = [f"  {'.'.join(str(p) for p in (*table.split(), *e['loc']))}: {_describe(e)}" for e in errors]
    return SettingsError(f"settings file {path} has {len(lines)} error(s):\n" + "\n".join(lines))


def model_source(source: str, folder: Path) -> str:
    """Resolve a model source. Raises ValueError if its directory does not exist.

    './dir', '../dir' and '/dir' become absolute paths, relative to `folder`. 'package:name/dir' is a directory in an
    installed package. Anything else is a hub id and is returned unchanged.
    """
    if source.startswith("package:"):
        package, _, inside = source.removeprefix("package:").partition("/")
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise ValueError(
                f"'{source}': package '{package}' is not installed (pip install {package.replace('_', '-')})"
            )
        path = Path(found.origin).parent / inside
    elif source.startswith(("./", "../", "/")):
        path = (folder / source).resolve()
    else:
        return source
    if not path.exists():
        raise ValueError(f"'{source}': no such file or directory: {path}. Correct the path, or give a model's hub id")
    return str(path)


def _describe(error: Mapping[str, Any]) -> str:
    """Describe the error of one key: the violated rule, and the value if it is a number or text."""
    if error["type"] == "extra_forbidden":
        return "unknown key; remove it or correct its spelling"
    given, message = error["input"], str(error["msg"])
    shown = f" (given: {given!r})" if isinstance(given, str | int | float) and str(given) not in message else ""
    return f"{message.removeprefix('Value error, ')}{shown}"


def _override(tree: dict[str, Any], name: str, text: str) -> None:
    *parents, leaf = name.removeprefix(ENV_PREFIX).lower().split("__")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise SettingsError(f"environment variable {name}: '{parent}' is a value, not a table; override that value")
    try:
        node[leaf] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        node[leaf] = text

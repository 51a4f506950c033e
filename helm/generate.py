"""Write the generated files of the chart (`make chart-docs`). With `--check` only compare, and fail if they differ.

values.yaml's comments            -> values.schema.json and the table in README.md
deploy/configs/embedded.toml      -> files/embedded.toml, each scorer with replicas of its own
helm/dashboards.py                -> dashboards/*.json
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from helm import dashboards

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm/synod"
EMBEDDED = ROOT / "deploy/configs/embedded.toml"
_KEY = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z]\w*):(?P<rest>.*)")
_TYPES = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}
_PATTERNS = {"overrides": "^SYNOD__[A-Z0-9_]+$"}  # for the keys of maps that the user fills


@dataclass
class Comment:
    """The comment of one key in values.yaml: a description, and a part of its JSON schema."""

    text: str = ""
    schema: dict[str, Any] = field(default_factory=dict)


def read_comments(source: str) -> dict[tuple[str, ...], Comment]:
    """Parse the comments of values.yaml, by the path of their key."""
    found: dict[tuple[str, ...], Comment] = {}
    path: list[tuple[int, str]] = []
    lines: list[str] = []
    for line in source.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            lines.append(stripped.removeprefix("#").strip())
        elif (key := _KEY.fullmatch(line)) is not None:
            indent = len(key["indent"])
            path = [(depth, name) for depth, name in path if depth < indent] + [(indent, key["key"])]
            found[tuple(name for _, name in path)] = _comment(lines)
            lines = []
        elif not stripped:
            lines = []
    return found


def _comment(lines: list[str]) -> Comment:
    comment, texts = Comment(), list[str]()
    for line in lines:
        if line.startswith("@schema "):
            comment.schema = json.loads(line.removeprefix("@schema "))
        elif line.startswith("-- ") or texts:
            texts.append(line.removeprefix("-- "))
    comment.text = " ".join(texts)
    return comment


def leaves(
    values: Mapping[str, Any], comments: Mapping[tuple[str, ...], Comment], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each described key and its default. Raise ValueError for a key without a description."""
    for key, value in values.items():
        here = (*path, key)
        if comments[here].text:
            yield here, value
        elif isinstance(value, dict) and value:
            yield from leaves(value, comments, here)
        else:
            raise ValueError(f"values.yaml: {'.'.join(here)} has no description; add a comment '# -- ...' above it")


def schema(values: Mapping[str, Any], comments: Mapping[tuple[str, ...], Comment], path: tuple[str, ...] = ()) -> Any:
    """Build a closed JSON schema of the values; a map with a description is filled by the user and stays open."""
    properties = {}
    for key, value in values.items():
        here = (*path, key)
        comment = comments[here]
        if comment.text:
            node: dict[str, Any] = {"type": _TYPES[type(value)], "description": comment.text, **comment.schema}
            if key in _PATTERNS:
                node["propertyNames"] = {"pattern": _PATTERNS[key]}
                node["additionalProperties"] = {"type": ["string", "number", "boolean"]}
            if key in ("labels", "annotations", "nodeSelector"):
                node["additionalProperties"] = {"type": "string"}
            if key.lower().endswith("resources"):
                node.update(_RESOURCES)
        else:
            node = schema(value, comments, here)
        properties[key] = node
    return {"type": "object", "additionalProperties": False, "properties": properties}


_QUANTITIES = {"type": "object", "additionalProperties": {"type": ["string", "integer", "number"]}}
_RESOURCES = {
    "additionalProperties": False,
    "required": ["limits"],
    "properties": {"requests": _QUANTITIES, "limits": {**_QUANTITIES, "required": ["cpu", "memory"]}},
}


def table(values: Mapping[str, Any], comments: Mapping[tuple[str, ...], Comment]) -> str:
    """Build the README's table: key, default, description."""
    rows = ["| key | default | description |", "|---|---|---|"]
    for path, value in leaves(values, comments):
        default = f"`{json.dumps(value)}`" if value not in ("", {}, []) else ""
        rows.append(f"| `{'.'.join(path)}` | {default} | {comments[path].text.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def separate(settings: str) -> str:
    """Return a settings TOML without `colocate_with`: on a cluster each scorer has replicas, and their resources."""
    settings = re.sub(r'colocate_with = "\w+",? ?', "", settings)
    return re.sub(r"^serving = \{ *\}\n", "", settings, flags=re.MULTILINE)


def generated() -> dict[Path, str]:
    """Return every generated file with its content."""
    source = (CHART / "values.yaml").read_text()
    values, comments = yaml.safe_load(source), read_comments(source)
    closed = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema(values, comments)}
    closed["properties"]["global"] = {"type": "object", "description": "Reserved by Helm; this chart does not use it"}
    readme = (CHART / "README.md").read_text().partition("<!-- values -->")[0]
    files = {
        CHART / "values.schema.json": json.dumps(closed, indent=2) + "\n",
        CHART / "README.md": f"{readme}<!-- values -->\n\n{table(values, comments)}\n",
        CHART / "files/embedded.toml": separate(EMBEDDED.read_text()),
    }
    for name, board in dashboards.BOARDS.items():
        files[CHART / f"dashboards/{name}.json"] = json.dumps(dashboards.build(name, board), indent=1) + "\n"
    return files


def main(arguments: list[str]) -> int:
    """Write the files, or with --check list those that differ."""
    stale = {path: text for path, text in generated().items() if not path.exists() or path.read_text() != text}
    if arguments == ["--check"]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run `make chart-docs`", file=sys.stderr)
        return 1 if stale else 0
    for path, text in stale.items():
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

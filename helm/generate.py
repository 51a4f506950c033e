"""`make chart-docs`: what of the chart follows from other files. `--check` only compares, and fails where they differ.

values.yaml's comments            -> values.schema.json and the table in README.md
deploy/configs/embedded.toml      -> files/embedded.toml
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
_PATTERNS = {"overrides": "^SYNOD__[A-Z0-9_]+$"}  # of the keys of a map of the user's own


@dataclass
class Comment:
    """What values.yaml says of one key: a description, and a piece of JSON schema."""

    text: str = ""
    schema: dict[str, Any] = field(default_factory=dict)


def comments(source: str) -> dict[tuple[str, ...], Comment]:
    """By path. Raises ValueError for a leaf without a description."""
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
    values: Mapping[str, Any], told: Mapping[tuple[str, ...], Comment], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key with a description, and its default. Raises ValueError for a key that nothing describes."""
    for key, value in values.items():
        here = (*path, key)
        if told[here].text:
            yield here, value
        elif isinstance(value, dict) and value:
            yield from leaves(value, told, here)
        else:
            raise ValueError(f"values.yaml: {'.'.join(here)} has no description; add a comment '# -- ...' above it")


def schema(values: Mapping[str, Any], told: Mapping[tuple[str, ...], Comment], path: tuple[str, ...] = ()) -> Any:
    """A closed JSON schema of the values; a described map is the user's own and open."""
    properties = {}
    for key, value in values.items():
        here = (*path, key)
        comment = told[here]
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
            node = schema(value, told, here)
        properties[key] = node
    return {"type": "object", "additionalProperties": False, "properties": properties}


_QUANTITIES = {"type": "object", "additionalProperties": {"type": ["string", "integer", "number"]}}
_RESOURCES = {
    "additionalProperties": False,
    "required": ["limits"],
    "properties": {"requests": _QUANTITIES, "limits": {**_QUANTITIES, "required": ["cpu", "memory"]}},
}


def table(values: Mapping[str, Any], told: Mapping[tuple[str, ...], Comment]) -> str:
    """The README's table: key, default, description."""
    rows = ["| key | default | what it is |", "|---|---|---|"]
    for path, value in leaves(values, told):
        default = f"`{json.dumps(value)}`" if value not in ("", {}, []) else ""
        rows.append(f"| `{'.'.join(path)}` | {default} | {told[path].text.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def generated() -> dict[Path, str]:
    """Every generated file and what it must hold."""
    source = (CHART / "values.yaml").read_text()
    values, told = yaml.safe_load(source), comments(source)
    closed = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema(values, told)}
    closed["properties"]["global"] = {"type": "object", "description": "Helm's own; this chart reads nothing from it"}
    readme = (CHART / "README.md").read_text().partition("<!-- values -->")[0]
    files = {
        CHART / "values.schema.json": json.dumps(closed, indent=2) + "\n",
        CHART / "README.md": f"{readme}<!-- values -->\n\n{table(values, told)}\n",
        CHART / "files/embedded.toml": EMBEDDED.read_text(),
    }
    for name, board in dashboards.BOARDS.items():
        files[CHART / f"dashboards/{name}.json"] = json.dumps(dashboards.build(name, board), indent=1) + "\n"
    return files


def main(arguments: list[str]) -> int:
    """Write the files, or with --check tell which differ."""
    stale = {path: text for path, text in generated().items() if not path.exists() or path.read_text() != text}
    if arguments == ["--check"]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what it is made from: run `make chart-docs`", file=sys.stderr)
        return 1 if stale else 0
    for path, text in stale.items():
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

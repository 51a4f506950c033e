"""Render the chart with Helm's own library; this needs neither a cluster nor the helm command."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm/synod"
PROFILES = ("default", "cpu", "one-gpu", "production")
Object = dict[str, Any]


def profile(name: str) -> Object:
    """Return the values of a shipped profile; "default" is empty."""
    return {} if name == "default" else dict(yaml.safe_load((ROOT / f"helm/values-{name}.yaml").read_text()))


def render(values: Mapping[str, Any] | None = None, name: str = "demo", namespace: str = "prod") -> list[Object]:
    """Return every rendered object. Raise what Helm raises."""
    return copy.deepcopy(_render(json.dumps(values or {}, sort_keys=True), name, namespace)[0])


def notes(values: Mapping[str, Any] | None = None) -> str:
    """Return the rendered NOTES.txt."""
    return _render(json.dumps(values or {}, sort_keys=True), "demo", "prod")[1]


@functools.cache
def _render(values: str, name: str, namespace: str) -> tuple[list[Object], str]:
    with helm_python.Chart.load(str(CHART)) as chart:
        texts = chart.render(json.loads(values), name=name, namespace=namespace)
    notes_text = next(text for path, text in texts.items() if path.endswith("NOTES.txt"))
    files = [text for path, text in texts.items() if not path.endswith("NOTES.txt")]
    return [one for text in files for one in yaml.load_all(text, yaml.CSafeLoader) if one], notes_text


def nested(dotted: str, value: Any) -> Object:
    """Return {"a": {"b": 1}} for `nested("a.b", 1)`."""
    *parents, leaf = dotted.split(".")
    tree: Object = {leaf: value}
    for key in reversed(parents):
        tree = {key: tree}
    return tree


def merged(*trees: Mapping[str, Any]) -> Object:
    """Merge trees as Helm merges values: maps key by key, everything else is replaced."""
    found: Object = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
            found[key] = merged(found[key], value) if both else value
    return found


def of(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """Return the only object of a kind (and name)."""
    found = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    assert len(found) == 1, (kind, name, [o["metadata"]["name"] for o in found])
    return found[0]


def pod_templates(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Yield (component, {metadata, spec}) of every pod that the objects create."""
    for one in objects:
        if one["kind"] == "Pod":
            yield "test", one
        for spec in ("rayClusterConfig", "rayClusterSpec"):
            if cluster := one.get("spec", {}).get(spec):
                for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                    template = group["template"]
                    yield template["metadata"]["labels"]["app.kubernetes.io/component"], template


def let_through() -> list[str]:
    """Return the existing paths that .dockerignore admits to an image."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line[1:] for line in lines if line.startswith("!") and (ROOT / line[1:]).exists()]


def unpack(image: str, app: Path) -> None:
    """Link below `app` what an image's Dockerfile copies to /app, and nothing else of the repository."""
    copied = re.findall(r"^COPY (\S+) /app/?(\S*)$", (ROOT / f"deploy/docker/{image}.Dockerfile").read_text(), re.M)
    for source, target in copied:
        for path in let_through():
            if f"{path}/".startswith(f"{source}/") or f"{source}/".startswith(f"{path}/"):
                whole = max(path, source, key=len)
                link = app / target / Path(whole).relative_to(source)
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    link.symlink_to(ROOT / whole)


def serve_config(objects: list[Object]) -> Object:
    """Return the Serve configuration of the RayService."""
    found: Object = yaml.safe_load(of(objects, "RayService")["spec"]["serveConfigV2"])
    return found

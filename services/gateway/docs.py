"""Render an OpenAPI document as one HTML page that loads no other file, so that it works offline. No I/O."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "pre{background:#f4f4f4;padding:.8rem;overflow:auto;font-size:.85rem}"
    "summary{cursor:pointer}h2 code{background:none}.method{color:#06c}"
)


def page(openapi: Mapping[str, Any]) -> str:
    """Return the page: each operation with its description, request and responses, then the schemas."""
    info = openapi["info"]
    operations = [
        _operation(path, method, operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [_block(name, body) for name, body in openapi.get("components", {}).get("schemas", {}).items()]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(info['title'])}</title><style>{_STYLE}</style>"
        f"<h1>{_text(info['title'])} {_text(info['version'])}</h1><p>{_text(info['description'])}</p>"
        '<p>For programs: <a href="openapi.json">openapi.json</a></p>'
        f"{''.join(operations)}<h2>Schemas</h2>{''.join(schemas)}</html>"
    )


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    parts = [
        f"<h2><span class=method>{_text(method.upper())}</span> <code>{_text(path)}</code></h2>",
        f"<p>{_text(operation.get('summary', ''))}. {_text(operation.get('description', ''))}</p>",
    ]
    if "requestBody" in operation:
        parts.append(_block("request body", operation["requestBody"]))
    parts += [_block(f"{status}: {answer['description']}", answer) for status, answer in operation["responses"].items()]
    return "".join(parts)


def _block(title: str, body: object) -> str:
    return f"<details><summary>{_text(title)}</summary><pre>{_text(json.dumps(body, indent=2))}</pre></details>"


def _text(text: object) -> str:
    return html.escape(str(text))

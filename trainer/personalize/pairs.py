"""Questions and answers about a concept in a language model's words, by OpenAI's chat completions.

The model reads what info.json says, without the facts that training leaves out, and answers with one JSON object a
line. Other lines, and those that do not name the concept, are left out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from synod.errors import SettingsError
from trainer.personalize.records import ConceptRecord

TIMEOUT_S: Final = 120.0
MAX_CHARS: Final = 512  # of a question, and of an answer
ASK: Final = """Known about {name}: {known}

Write {count} different questions that somebody could ask about {name} without an image, each with its short answer. Use
nothing but what is known. Say {name} in every question, and answer in whole sentences. Give one JSON object a line and
nothing else: {{"query": "...", "answer": "..."}}"""
Pair = Mapping[str, str]


class NotWritten(Exception):
    """The endpoint gave no pairs; the message has the cause."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`url` is the part before `/chat/completions`; `key_env` names the environment variable of a token."""

    url: str
    model: str
    key_env: str | None = None

    def key(self) -> str | None:
        """Return the token. Raises SettingsError if the variable is not set, or no HTTP header can hold it."""
        if self.key_env is None:
            return None
        found = os.environ.get(self.key_env, "").strip()
        if not found:
            raise SettingsError(f"--judge-key-env {self.key_env}: the variable is not set; export it, or leave it out")
        if not (found.isascii() and found.isprintable()):
            raise SettingsError(
                f"--judge-key-env {self.key_env}: the token has characters that no HTTP header holds; export it again"
            )
        return found

    @property
    def shown(self) -> str:
        """The URL without a user and a password, for messages."""
        return re.sub("[^/]*@", "", self.url)


def written_pairs(record: ConceptRecord, endpoint: Endpoint, count: int) -> tuple[list[Pair], int]:
    """Return at most `count` pairs about a concept, and how many lines of the answer were left out.

    Raises NotWritten, and SettingsError for a missing token or a concept of which nothing is known.
    """
    known = [text for text in (record.info, *record.facts) if text and text not in record.held_out]
    if not known:
        raise SettingsError(f"{record.folder / 'info.json'} has no info and no extra_info to ask about; write some")
    text = ASK.format(name=record.name, known=" ".join(f"{one.rstrip('. ')}." for one in known), count=count)
    lines = [line.strip().rstrip(",") for line in _reply(endpoint, text).splitlines()]
    objects = [line for line in lines if line.startswith("{")]
    pairs = [pair for line in objects if (pair := _pair(line, record.name)) is not None]
    first: dict[str, Pair] = {}
    for pair in pairs:
        first.setdefault(pair["query"], pair)
    distinct = list(first.values())[:count]
    if not distinct:
        raise NotWritten(f"its answer has {len(objects)} JSON lines, none of which is a question about {record.name}")
    return distinct, len(objects) - len(distinct)


def client(endpoint: Endpoint) -> httpx.Client:
    """Return a client of the endpoint. Raises SettingsError for a missing token."""
    key = endpoint.key()
    return httpx.Client(headers={} if key is None else {"Authorization": f"Bearer {key}"}, timeout=TIMEOUT_S)


def _reply(endpoint: Endpoint, text: str) -> str:
    """Return the model's answer. Raises NotWritten, and SettingsError for a missing token."""
    body = {"model": endpoint.model, "messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]}
    opened = client(endpoint)
    try:
        with opened as http:
            response = http.post(f"{endpoint.url.rstrip('/')}/chat/completions", json=body)
        if response.status_code != httpx.codes.OK:
            raise NotWritten(_refusal(response, endpoint.key()))
        return str(response.json()["choices"][0]["message"]["content"])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NotWritten(f"{type(error).__name__}: {error}") from None
    except (ValueError, LookupError, TypeError) as error:
        raise NotWritten(f"the response is not a chat completion ({error!r})") from None


def _refusal(response: httpx.Response, key: str | None) -> str:
    """Return what a message says of a refused request: the start of the answer, without the token."""
    if response.status_code in (401, 403):  # some servers repeat the token, or a part of it
        return f"status {response.status_code}: the judge refuses the token; see --judge-key-env"
    text = response.text.replace(key, "***") if key else response.text
    return f"status {response.status_code}: {text[:200]}"


def _pair(line: str, name: str) -> Pair | None:
    """Return a line's pair; None if it is none, or not about the concept."""
    try:
        tree: Any = json.loads(line)
    except ValueError:
        return None
    said = [tree.get(key) for key in ("query", "answer")] if isinstance(tree, dict) else []
    if not all(isinstance(one, str) and 0 < len(one.strip()) <= MAX_CHARS for one in said) or len(said) < 2:
        return None
    query, answer = (str(one).strip() for one in said)
    return {"query": query, "answer": answer} if name in query else None

"""What scorers share that hold a picture against a text: prompts in words."""

from __future__ import annotations

import re

from synod.contracts import Concept, ScoreFailure
from synod.errors import InvalidItem

_CONCEPT_TOKEN = re.compile(r"<[^<>\s]+>")


def plain(prompt: str, concept: Concept | None) -> str:
    """The prompt in words a text tower knows: the concept's token becomes its class word, other '<...>' tokens go."""
    if concept and concept.token and concept.class_word:
        token = re.escape(concept.token)
        if not concept.token.startswith("<"):
            token = rf"(?<!\w){token}(?!\w)"  # a bare word, as "sks", must not match inside another
        prompt = re.sub(token, lambda _: str(concept.class_word), prompt)
    return " ".join(_CONCEPT_TOKEN.sub(" ", prompt).split())


def wordless(prompt: str | None) -> ScoreFailure:
    """Why a prompt whose `plain` form is empty has no score."""
    reason = "the prompt has no words besides concept tokens; give concept.class_word or a longer prompt"
    return ScoreFailure.of(InvalidItem(f"{reason}: {prompt!r}"))

"""Descriptions of individuals without a name: "a brown dog with floppy ears, wearing a red hat, on the beach"."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from embedded.world.language import AT_PLACE, listed, parts, verb, with_article
from embedded.world.palette import nearest
from embedded.world.records import Identity, Worn

TEMPLATES = ("a photo of {}", "a picture of {}", "here is {}", "one more photo of {}")
MAX_DETAILS = 3  # more only in a full description
FULL, NO_COLOR = 0.15, 0.1  # shares of descriptions with every detail, and without the body's colour
_CLAUSE = re.compile(r" (?=(?:wearing|with|next to|in the|on the) )")


@dataclass(frozen=True, slots=True)
class Description:
    """Some of an individual's looks; `color` is its body's, None where it is not said (or for a person)."""

    class_name: str
    color: str | None
    details: tuple[str, ...]

    @property
    def text(self) -> str:
        noun = f"{self.color} {self.class_name}" if self.color else self.class_name
        return with_article(noun) + (f" with {listed(list(self.details))}" if self.details else "")

    def fits(self, look: Identity) -> bool:
        """Whether everything that it says is true of `look`."""
        color = self.color is None or self.color == nearest(look.primary)
        return self.class_name == look.class_name and color and set(self.details) <= set(parts(look))


def describe_some(look: Identity, rng: np.random.Generator) -> Description:
    """Describe an individual by some of its details, such as "a brown dog with floppy ears"."""
    details = parts(look)
    full = rng.random() < FULL
    count = len(details) if full else min(len(details), int(rng.integers(MAX_DETAILS + 1)))
    chosen = sorted(rng.choice(len(details), count, replace=False)) if count else []
    says_color = look.class_name != "person" and (full or rng.random() >= NO_COLOR)
    return Description(
        look.class_name, nearest(look.primary) if says_color else None, tuple(details[i] for i in chosen)
    )


def described_prompt(
    subject: str, worn: Worn, companion: tuple[str, str] | None, place: str | None, rng: np.random.Generator
) -> str:
    """Return a prompt for the described `subject` with an accessory, a second object and a place.

    A long description is followed by commas, a short one by none or by commas.
    """
    clauses = [f"{verb(name)} {with_article(f'{color} {name}')}" for name, color in worn]
    clauses += [f"next to {with_article(' '.join(companion))}"] if companion else []
    clauses += [AT_PLACE[place]] if place else []
    joint = ", " if " with " in subject or rng.random() < 0.5 else " "
    return TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(joint.join((subject, *clauses)))


def with_commas(dense: str) -> str:
    """Return a dense prompt with a comma before each clause."""
    return _CLAUSE.sub(", ", dense)

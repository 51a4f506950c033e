"""Questions about a concept's images with correct answers, for visual instruct reasoning."""

from __future__ import annotations

from embedded.world.language import hair, listed, parts, with_article
from embedded.world.palette import nearest
from embedded.world.records import ConceptProfile


def conversations(profile: ConceptProfile) -> tuple[tuple[str, str], ...]:
    """Return distinct (query, answer) pairs whose answers are visible in the concept's images."""
    name, look = profile.name, profile.identity
    if look.class_name == "person":
        head = "a bald head" if look.style == "bald" else hair(look)
        special = (f"what hair does {name} have?", f"{name} has {head}.")
    else:
        special = (f"what color is {name}?", f"{name} is {nearest(look.primary)}.")
    return (
        (f"what does {name} look like?", profile.info),
        (f"what is {name}?", f"{name} is {with_article(profile.class_word)}."),
        special,
        (f"what details does {name} have?", f"{name} has {listed(parts(look))}."),
    )

"""What may be asked about a concept's images, and the right answers: the material of visual instruct reasoning."""

from __future__ import annotations

from embedded.world.language import hair, listed, parts, with_article
from embedded.world.palette import nearest
from embedded.world.records import ConceptCard


def conversations(card: ConceptCard) -> tuple[tuple[str, str], ...]:
    """(query, answer) pairs whose answers can be seen in the concept's images. They differ from one another."""
    name, look = card.name, card.identity
    if look.class_name == "person":
        head = "a bald head" if look.style == "bald" else hair(look)
        special = (f"what hair does {name} have?", f"{name} has {head}.")
    else:
        special = (f"what color is {name}?", f"{name} is {nearest(look.primary)}.")
    return (
        (f"what does {name} look like?", card.info),
        (f"what is {name}?", f"{name} is {with_article(card.class_word)}."),
        special,
        (f"what details does {name} have?", f"{name} has {listed(parts(look))}."),
    )

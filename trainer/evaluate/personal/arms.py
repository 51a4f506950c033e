"""The controls of a personalised policy: the same questions and prompts without what it has learned of the concept.

    concept  as asked
    none     the class word in place of the concept's name: no rows of any concept are read
    other    another concept's name, so that its rows are read
    black    a black image in place of the one that is asked about

A measure that a control reaches does not measure personalization: a model without any personal data answers many
questions about a concept from the question alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal, get_args

from trainer.evaluate.personal.items import Item
from trainer.personalize.records import ConceptRecord, same_class

Arm = Literal["concept", "none", "other", "black"]
ARMS: Final[tuple[Arm, ...]] = get_args(Arm)
CONTROLS: Final = ARMS[1:]


def in_arm(items: Sequence[Item], arm: Arm, records: Mapping[str, ConceptRecord]) -> list[Item]:
    """Return the items of an arm as the policy reads them; keys, seeds and what images are compared with stay.

    Right answers call the concept by the name that the arm's questions do. "black" has only what is asked about an
    image; "other" is empty if there is one concept.
    """
    if arm == "concept":
        return list(items)
    if arm == "black":
        return [replace(one, shown=None) for one in items if one.shown is not None]
    names = {name: _stand_in(arm, record, list(records.values())) for name, record in records.items()}
    return [_renamed(one, name) for one in items if (name := names[one.concept]) is not None]


def _stand_in(arm: Arm, record: ConceptRecord, records: Sequence[ConceptRecord]) -> str | None:
    """Return what stands for a concept's name: its class word, or the name of another, of its class if there is one."""
    if arm == "none":
        return f"{'an' if record.class_word[0].lower() in 'aeiou' else 'a'} {record.class_word}"
    others = [*same_class(record, records), *(one for one in records if one.name != record.name)]
    return others[0].name if others else None


def _renamed(item: Item, name: str) -> Item:
    """Rename the concept in what is read and in what is to be said: a copy of what was read is right in every arm."""

    def called(text: str) -> str:
        return text.replace(item.concept, name)

    query, prompt, right = (text and called(text) for text in (item.query, item.prompt, item.right))
    return replace(item, query=query, prompt=prompt, right=right, points=tuple(map(called, item.points)))

"""Questions whose answers need the image: looks, colours, yes or no, recognition, counts.

An individual may be asked about by any concept's name: the answer is what the image shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from embedded.world.concepts import CONCEPTS
from embedded.world.descriptions import describe_some
from embedded.world.identities import random_identity
from embedded.world.language import NUMBERS, describe, hair, listed, parts, plural, with_article
from embedded.world.palette import COLORS, nearest
from embedded.world.records import ACCESSORIES, CLASSES, Identity, Instance, Render, Worn

Answered = tuple[str, str]  # a query and its answer
YES, NO = "yes.", "no."
RECOGNITION = (
    "is {} in this photo?",
    "is {} in the picture?",
    "can you see {} here?",
    "do you see {} in this picture?",
    "is this {}?",
    "is this a photo of {}?",
    "does this photo show {}?",
    "is {} shown here?",
)
# Words of recognition and of text about concepts that no template above has.
MORE_WORDS = (
    "yes no not it does can could would find look visible appear appears contain contains image images anywhere any "
    "someone something there here who are was were my me you your favourite favorite color 's these those same "
    "different another other than or only and also answer question please which one friend pet thing animal object "
    "he she they him them hers theirs so because then first second true false know show shows see seen a an the"
)
OWN_NAME = 0.85  # share of a concept's questions that use its name
FOREIGN_NAME = 0.7  # share of other individuals' questions that use a concept's name
_NAMES = {c.name for c in CONCEPTS}
_NAMES_OF = {kind: [c.name for c in CONCEPTS if c.class_word == kind] for kind in CLASSES}


def questions(rendered: Render, rng: np.random.Generator) -> list[Answered]:
    """Return answered questions about a render: several kinds, each once."""
    main = rendered.instances[0]
    found = _scene(rendered.instances, rng)
    if main.identity is not None and len({i.class_name for i in rendered.instances}) == len(rendered.instances):
        name = _name(main, rng)
        found += about_looks(name, main.identity)
        found += [_yes_or_no(name, main.identity, rng), _yes_or_no(name, main.identity, rng)]
        found += about_accessories(name, main.accessories, rng)
        found += [recognition(main, rng), recognition(main, rng), by_description(main.identity, rng)]
    return found


def about_looks(name: str, look: Identity) -> list[Answered]:
    """Return the questions of `conversations` that the image answers, about `name`."""
    found = [(f"what does {name} look like?", f"{name} is {describe(look)}.")]
    if name.startswith("<"):
        found.append((f"what is {name}?", f"{name} is {with_article(look.class_name)}."))
    if look.class_name == "person":
        head = "a bald head" if look.style == "bald" else hair(look)
        found.append((f"what hair does {name} have?", f"{name} has {head}."))
        found.append((f"what color is the shirt of {name}?", f"the shirt is {nearest(look.accent)}."))
    else:
        found.append((f"what color is {name}?", f"{name} is {nearest(look.primary)}."))
    if details := parts(look):
        found.append((f"what details does {name} have?", f"{name} has {listed(details)}."))
    return found


def about_accessories(name: str, worn: Worn, rng: np.random.Generator) -> list[Answered]:
    """Ask for an accessory, its colour and, by yes or no, for any of them."""
    found = [(f"what color is the {accessory}?", f"the {accessory} is {color}.") for accessory, color in worn]
    found += [(f"what does {name} wear or hold?", f"{name} has {with_article(f'{c} {a}')}.") for a, c in worn]
    asked = worn[0][0] if worn and rng.random() < 0.5 else ACCESSORIES[int(rng.integers(len(ACCESSORIES)))]
    return [*found, (f"is there {with_article(asked)}?", _said(asked in {a for a, _ in worn}))]


def recognition(main: Instance, rng: np.random.Generator) -> Answered:
    """Ask for a concept by name: the shown one, one of the same class, or any other."""
    own, roll = _concept(main), rng.random()
    near = [name for name in _NAMES_OF[main.class_name] if name != own]
    if own is not None and roll < 0.5:
        name = own
    elif near and roll < 0.8:
        name = near[int(rng.integers(len(near)))]
    else:
        name = CONCEPTS[int(rng.integers(len(CONCEPTS)))].name
    return _one(RECOGNITION, rng).format(name), _said(name == own)


def by_description(look: Identity, rng: np.random.Generator) -> Answered:
    """Ask for an individual that the query itself describes."""
    true = bool(rng.random() < 0.5)
    other = random_identity(look.class_name if rng.random() < 0.7 else _one(CLASSES, rng), rng)
    said = describe_some(look if true else other, rng)
    return f"it is {said.text}. {_one(RECOGNITION, rng).format('it')}", _said(said.fits(look))


def _yes_or_no(name: str, look: Identity, rng: np.random.Generator) -> Answered:
    """Ask for one property, the individual's or another's."""
    other = random_identity(look.class_name, rng)
    if look.class_name != "person" and rng.random() < 0.5:
        color = nearest(look.primary) if rng.random() < 0.5 else _one(tuple(COLORS), rng)
        return f"is {name} {color}?", _said(color == nearest(look.primary))
    asked = parts(look if rng.random() < 0.5 else other) or parts(other) or ["a red crest"]
    part = _one(asked, rng)
    return f"does {name} have {part}?", _said(part in parts(look))


def _scene(instances: Sequence[Instance], rng: np.random.Generator) -> list[Answered]:
    """Ask for classes, counts and colours."""
    counts = Counter(instance.class_name for instance in instances)
    asked = _one(tuple(counts), rng) if rng.random() < 0.5 else _one(CLASSES, rng)
    found = [(f"is there {with_article(asked)}?", _said(asked in counts))]
    one = instances[int(rng.integers(len(instances)))]
    if counts[one.class_name] == 1 and one.color is not None:
        found.append((f"what color is the {one.class_name}?", f"the {one.class_name} is {one.color}."))
        color = one.color if rng.random() < 0.5 else _one(tuple(COLORS), rng)
        found.append((f"is the {one.class_name} {color}?", _said(color == one.color)))
    elif counts[one.class_name] > 1:
        number = NUMBERS[counts[one.class_name]]
        found.append((f"how many {plural(one.class_name)} are there?", f"{number} {plural(one.class_name)}."))
    return found


def _concept(main: Instance) -> str | None:
    return main.concept if main.concept in _NAMES else None


def _name(main: Instance, rng: np.random.Generator) -> str:
    """Return a concept's own name, "the dog", or the name of a concept that is not shown."""
    plain = f"the {main.class_name}"
    own = _concept(main)
    if own is not None:
        return own if rng.random() < OWN_NAME else plain
    if rng.random() >= FOREIGN_NAME:
        return plain
    near = _NAMES_OF[main.class_name] if rng.random() < 0.8 else []
    return _one(tuple(near) or tuple(c.name for c in CONCEPTS), rng)


def _said(true: bool) -> str:
    return YES if true else NO


def _one(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]

"""What a policy knows of one concept of the embedded world, and how it draws it; no service is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from embedded import world
from embedded.makers.accept import accessory_colors
from embedded.makers.dataset import random_profile
from embedded.makers.metrics import scores
from services.scorers import registry
from services.scorers.base import Scorer
from services.scorers.bleu import bleu
from services.settings import load as load_service
from synod.contracts import Concept, Pixels, ScoreItem
from trainer.evaluate.compare import right
from trainer.personalize.examples import NO, YES
from trainer.personalize.records import ConceptRecord, load_image
from trainer.policy.base import TextSegment
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.vocabulary import END
from trainer.scenarios import compound, textual_query
from trainer.types import Query

IMAGES, RIVALS, BATCH = 24, 9, 12
REFERENCES: Final = 3  # images of a rival
QUESTIONS: Final = 4  # recognition questions for each image
SAMPLES: Final = 4  # answers to each question about a fact
Figures = dict[str, float]


class Meter:
    """Measures policies on one concept. `name` is what texts call it: "<uma>", or "the person" without rows.

    Negatives are as many images as there are test images: any, and of other individuals of the class.
    """

    def __init__(self, concept: ConceptRecord, seed: int, scorers: Path) -> None:
        service = load_service(scorers, {})
        self._der, self._fer = (registry.build(name, service.scorers[name]) for name in ("der", "fer"))
        self.concept, self._seed, self._profile = concept, seed, world.profile_of(concept.name)
        rng = np.random.default_rng([51, seed])
        rivals = [random_profile(concept.class_word, rng) for _ in range(RIVALS)]
        count = len(concept.test)
        self._photographs = tuple(load_image(path) for path in concept.train)
        self._test = [load_image(path) for path in concept.test]
        random = concept.random_test  # unseen in training
        self._random = [load_image(random[i]) for i in rng.permutation(len(random))[:count]]
        self._alike = [_shown(rival, rng) for rival in rivals[:count]]
        self._rivals = [tuple(_shown(rival, rng) for _ in range(REFERENCES)) for rival in rivals]

    @torch.no_grad()
    def measure(self, policy: ShowO, name: str, *, knowledge: bool) -> Figures:
        """Return all figures; those of knowledge, which draw twice as many images, on request."""
        found = {**self._understanding(policy, name), **self._generation(policy, name)}
        return found | (self._knowledge(policy, name) if knowledge else {})

    def _understanding(self, policy: ShowO, name: str) -> Figures:
        """Recognition by the likelier of yes and no, answers about looks by BLEU, and facts by exact answers."""
        sets = (self._test, self._random, self._alike)
        shown, random, alike = (self._said_yes(policy, name, images) for images in sets)
        looks, facts = [], []
        for one in self.concept.questions:
            if one.image is not None:
                reply = self._answers(policy, name, one.text, load_image(one.image), 1)[0]
                looks.append(bleu((self._called(one.answer, name),), reply))
            elif not one.is_choice:
                replies = self._answers(policy, name, one.text, None, SAMPLES)
                facts += [reply == self._called(one.answer, name) for reply in replies]
        return {
            "recall": shown,
            "rec_random": (shown + 1 - random) / 2,
            "rec_same_class": (shown + 1 - alike) / 2,
            "vqa_bleu": float(np.mean(looks)),
            "facts_said": float(np.mean(facts)),
        }

    def _called(self, text: str, name: str) -> str:
        return text.replace(self.concept.name, name)

    def _said_yes(self, policy: ShowO, name: str, images: Sequence[Pixels]) -> float:
        """Return the share of recognition questions to which yes is likelier than no."""
        found = []
        for image in images:
            for text in self.concept.recognition[:QUESTIONS]:
                query = Query(self._called(text, name), image)
                logp, _, mask = policy.logprobs([_answer(policy, query, one) for one in (YES, NO)], 0)
                yes, no = logp.masked_fill(~mask, 0.0).sum(1).tolist()
                found.append(yes > no)
        return float(np.mean(found))

    def _answers(self, policy: ShowO, name: str, text: str, image: Pixels | None, count: int) -> list[str]:
        query = Query(self._called(text, name), image)
        return [one.text for one in policy.answer([query] * count, [(self._seed, 9, i) for i in range(count)])]

    def _generation(self, policy: ShowO, name: str) -> Figures:
        """Likeness to the photographs, and how often it is above that to every rival of the class."""
        images = drawn(policy, [f"a photo of {name}"] * IMAGES, self._seed)
        own = self._likeness(self._der, images, self._photographs)
        rivals = [self._likeness(self._der, images, rival) for rival in self._rivals]
        found = {"der": float(own.mean()), "rank_1": float(np.mean(own > np.max(rivals, 0)))}
        if self._profile.kind == "person":
            found["fer"] = float(self._likeness(self._fer, images, self._photographs).mean())
        return found | {"likeness": found.get("fer", found["der"])}

    def _likeness(self, scorer: Scorer, images: Sequence[Pixels], references: tuple[Pixels, ...]) -> NDArray[Any]:
        concept = Concept(self._profile.kind, self.concept.class_word, self.concept.name)
        items = [ScoreItem(image, "a photo", concept=concept, references=references) for image in images]
        return np.array([score.value for score in scores(scorer, items)])

    def _knowledge(self, policy: ShowO, name: str) -> Figures:
        """How often an accessory has the colour of the fact, if the prompt hints at it and if the prompt says it."""
        facts, looks = self.concept.plus.facts, self._profile.attributes
        count = IMAGES // len(facts)
        hints = [self._called(fact.prompt, name) for fact in facts]
        clear = [
            hint.replace(f"{self._profile.pronoun} {look.accessory}", f"a {look.color} {look.accessory}")
            for hint, look in zip(hints, looks, strict=True)
        ]
        found: Figures = {}
        for key, prompts in (("hinted", hints), ("clear", clear)):
            colors = accessory_colors(drawn(policy, [text for text in prompts for _ in range(count)], self._seed))
            right = [color == looks[i // count].color for i, color in enumerate(colors)]
            found |= {f"color_{key}": float(np.mean(right)), f"accessory_{key}": 1 - colors.count(None) / len(colors)}
        return found

    @torch.no_grad()
    def reasoning(self, policy: ShowO) -> Figures:
        """Return what is said and drawn of held-out facts: a query lists all facts and a prompt that hints at one."""
        rng, known = np.random.default_rng([53, self._seed]), self.concept.facts
        asked = [fact for fact in self.concept.plus.facts if fact.split == "test" for _ in range(BATCH)]
        orders = [[known[i] for i in rng.permutation(len(known))] for _ in asked]
        queries = [Query(textual_query(order, fact.prompt)) for order, fact in zip(orders, asked, strict=True)]
        replies = [one.text for one in policy.answer(queries, [(self._seed, 11, i) for i in range(len(asked))])]
        truths = [[float(one == fact.text) for one in order] for order, fact in zip(orders, asked, strict=True)]
        prompts = [compound(fact.prompt, reply) for fact, reply in zip(asked, replies, strict=True)]
        colors = accessory_colors(drawn(policy, prompts, self._seed))
        wanted = [self._profile.attributes[known.index(fact.text)].color for fact in asked]
        return {
            "rea_bleu": float(np.mean([bleu((one.text,), reply) for one, reply in zip(asked, replies, strict=True)])),
            "rea_right": float(np.mean([right(*one) for one in zip(replies, orders, truths, strict=True)])),
            "rea_gen_color": float(np.mean([a == b for a, b in zip(colors, wanted, strict=True)])),
        }


def drawn(policy: ShowO, prompts: Sequence[str], seed: int) -> list[Pixels]:
    """Draw an image of each prompt."""
    images: list[Pixels] = []
    for first in range(0, len(prompts), BATCH):
        part = prompts[first : first + BATCH]
        begun = policy.start(part, [(seed, 77, first + i) for i in range(len(part))])
        images += policy.images(policy.denoise(begun, policy.image_steps))
    return images


def _shown(profile: world.ConceptProfile, rng: np.random.Generator) -> Pixels:
    return world.render(world.concept_scene(profile, rng), rng).image


def _answer(policy: ShowO, query: Query, text: str) -> TextSegment:
    ids = torch.tensor([*policy.vocab.encode(text), policy.vocab.id(END)], device=policy.device)
    return TextSegment(query, ids, torch.zeros(len(ids), device=policy.device), text)

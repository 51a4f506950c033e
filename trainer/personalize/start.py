"""The rows of a concept at the start of each stage: those of the stage before, and new ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from trainer.images import write_images
from trainer.personalize import initialise
from trainer.personalize.examples import Photos
from trainer.personalize.files import ConceptInfo
from trainer.personalize.records import ConceptRecord
from trainer.personalize.tokens import Rows, insert, remove
from trainer.policy.show_o.policy import ShowO, fit_to_square
from trainer.policy.show_o.vocabulary import ConceptTokens
from trainer.settings.personalize import PersonalizeSettings


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Makes the rows of one concept in a policy that does not have it. `log` receives messages for the user."""

    policy: ShowO
    concept: ConceptRecord
    photos: Photos
    settings: PersonalizeSettings
    log: Callable[[str], None]

    def understanding(self, base: str) -> tuple[ConceptInfo, Rows]:
        """Return the start of stage 1: the class word's row for the name, and centres of the images' codes for s."""
        count = self.settings.tokens.shared
        name = initialise.name_row(self.policy, self.concept.class_word)
        shared = initialise.kmeans(self._code_rows(self.concept.train), count)
        rows = self._with_head(torch.cat((name.embed_RD, shared.to(name.embed_RD))), 0)
        tokens = ConceptTokens(self.concept.name, count)
        return ConceptInfo(tokens, self.concept.class_word, self.concept.concept.kind, base), rows

    def generation(self, info: ConceptInfo, rows: Rows) -> tuple[ConceptInfo, Rows]:
        """Return the start of stage 2: g from face vectors for a person, else from centres of the images' codes."""
        count, person = self.settings.tokens.generation, info.kind == "person"
        if person and self.settings.faces is None:
            self.log(
                "no faces: a person's tokens of generation start like an object's; give [personalize] faces, a file "
                "that `python -m services faces CONFIG FOLDER OUT.npy` writes"
            )
        if person and self.settings.faces is not None:
            embed = initialise.face_rows(self.settings.faces, count, rows.embed_RD.shape[1])
        elif self.settings.initialise == "public" and not person:
            embed = initialise.public_rows(self.policy, len(rows) + count).embed_RD[len(rows) :]
        else:
            embed = initialise.kmeans(self._code_rows(self.concept.cropped or self.concept.train), count)
        more = self._with_head(embed, len(rows))
        return replace(info, tokens=replace(info.tokens, generation=count)), _joined(rows, more)

    def from_images(self, info: ConceptInfo, rows: Rows, directory: Path) -> tuple[ConceptInfo, Rows]:
        """Return the start of stage 3: u from regions of images that the policy draws of the concept.

        The images are written to `directory`, finished and with white regions.
        """
        settings, count, mode = self.settings, self.settings.tokens.understanding, self.settings.regions
        prompt = initialise.region_prompt(settings.region_prompt, info.kind, info.tokens.name)
        insert(self.policy, info.tokens, rows)
        regions = initialise.find_regions(self.policy, prompt, mode, count, (settings.seed, 3))
        if regions:
            write_images(directory, "region", dict(enumerate(initialise.region_images(self.policy, regions))))
            finished = self.policy.vq.decode(torch.stack([one.codes_N for one in regions]))
            write_images(directory, "drawn", dict(enumerate(finished)))
            topped_up = sum(one.topped_up for one in regions)
            if topped_up:
                self.log(f"{topped_up} of {len(regions)} images changed at fewer than {count} positions: the least")
                self.log("confident ones were added")
        embed = initialise.region_rows(self.policy, regions, mode, count)
        remove(self.policy, info.tokens.name)
        more = self._with_head(embed, len(rows))
        return replace(info, tokens=replace(info.tokens, understanding=count)), _joined(rows, more)

    def _code_rows(self, paths: Sequence[Path]) -> Tensor:
        """Return the embeddings [R D] of all codes of these images."""
        codes = self.policy.vq.encode([fit_to_square(self.photos[path], self.policy.image_side) for path in paths])
        return initialise.code_rows(self.policy, codes).flatten(0, 1)

    def _with_head(self, embed_RD: Tensor, first: int) -> Rows:
        """Return rows number `first`.. of the concept with these embeddings.

        Their head's rows are the class word's; for "public" copies of those of codes, as the public code leaves them.
        Only the name's is ever read: no text contains another one.
        """
        count = len(embed_RD)
        if self.settings.initialise == "public":
            copies = initialise.public_rows(self.policy, first + count)
            return Rows(embed_RD.to(copies.embed_RD), copies.head_RD[first:], copies.bias_R[first:])
        name = initialise.name_row(self.policy, self.concept.class_word)
        head, bias = name.head_RD.expand(count, -1).clone(), name.bias_R.expand(count).clone()
        return Rows(embed_RD.to(head), head, bias)


def _joined(first: Rows, second: Rows) -> Rows:
    return Rows(*(torch.cat((a.to(b), b)) for a, b in zip(first.tensors(), second.tensors(), strict=True)))

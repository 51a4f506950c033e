"""Show-o's vocabulary, prompt layout and attention masks. All ids follow from the tokenizer's length.

    0 .. base - 1                       the language model's tokens; `<|endoftext|>` begins and ends texts
    base ..                             [PAD], then SPECIALS in order, then the concepts' tokens
    len(tokenizer) + c                  image code c
    len(tokenizer) + codebook_size      the mask token, always last

Suffixes: B sequences, P positions of the text block, L positions, N image positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synod.errors import SettingsError

PAD = "[PAD]"
SPECIALS = ("<|soi|>", "<|eoi|>", "<|sov|>", "<|eov|>", "<|t2i|>", "<|mmu|>", "<|t2v|>", "<|v2v|>", "<|lvg|>")
END = "<|endoftext|>"
NUM_ADDED = 1 + len(SPECIALS)  # tokens that Show-o adds to a tokenizer
_CONCEPT = re.compile(r"<[^<>|\s]+>")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer with all special tokens, and the ids that image codes add to it."""

    tokenizer: Any
    codebook_size: int
    max_text_length: int = 128

    @classmethod
    def read(cls, source: str | Path, concepts: Sequence[str], codebook_size: int, max_text_length: int) -> Vocabulary:
        """Load a tokenizer, and add [PAD], SPECIALS and `concepts` if it lacks them.

        Raises SettingsError for no tokenizer, one without the token that begins and ends texts, and for concepts that
        are not new tokens of the form `<name>`.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            message = str(error).strip().partition("\n")[0]
            raise SettingsError(f"tokenizer '{source}' cannot be read ({message}); give its directory") from None
        if END not in tokenizer.get_vocab():
            raise SettingsError(f"tokenizer '{source}' has no {END} token; give the one the policy was trained with")
        for name in concepts:
            if not _CONCEPT.fullmatch(name):
                raise SettingsError(f"concept '{name}' is not of the form <name>, as <bo>; rename it")
        tokenizer.add_special_tokens({"pad_token": PAD})
        tokenizer.add_tokens(list(SPECIALS), special_tokens=True)
        tokenizer.add_tokens(list(concepts))
        made = cls(tokenizer, codebook_size, max_text_length)
        for place, name in enumerate(concepts, made.image_offset - len(concepts)):
            if made.id(name) != place:  # a name that is given twice, or that the tokenizer has for something else
                raise SettingsError(
                    f"concept '{name}' is not a new token: its id is {made.id(name)}, expected {place}; "
                    "give each concept once, by a name that the tokenizer does not know"
                )
        return made

    @property
    def image_offset(self) -> int:
        return len(self.tokenizer)

    @property
    def mask_id(self) -> int:
        return self.image_offset + self.codebook_size

    @property
    def size(self) -> int:
        return self.mask_id + 1

    def id(self, token: str) -> int:
        found: int = self.tokenizer.convert_tokens_to_ids(token)
        return found

    def split(self, names: Iterable[str]) -> list[str]:
        """Return the names that are more than one token."""
        return [name for name in names if len(self.encode(name)) > 1]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` without special tokens around it."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids up to the end token, without special tokens but with the concepts'."""
        ids = list(ids)
        ids = ids[: ids.index(self.id(END))] if self.id(END) in ids else ids
        said: str = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=self._is_word_level
        )
        return said.strip()

    @property
    def _is_word_level(self) -> bool:
        """Whether a token is a word, so that decoding has to join words and punctuation; BPE tokens hold the spaces."""
        from tokenizers.models import WordLevel

        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return isinstance(getattr(backend, "model", None), WordLevel)

    def text_block(self, prompts: Sequence[str]) -> tuple[Tensor, int]:
        """Return left-padded `<|t2i|> bos text eos`, int64 [B P], and the position of column 0.

        A block has max_text_length + 1 columns; a longer text is cut before its eos. Columns that are padding in every
        row are left out, since no row attends to them; the position counts them.
        """
        task, end, limit = self.id("<|t2i|>"), self.id(END), self.max_text_length
        rows = [[task, end, *self.encode(prompt), end] for prompt in prompts]
        rows = [row if len(row) <= limit + 1 else [*row[:limit], end] for row in rows]
        width = max(map(len, rows))
        padded = [[self.id(PAD)] * (width - len(row)) + row for row in rows]
        return torch.tensor(padded), limit + 1 - width

    def question(self, text: str, codes_N: Tensor) -> Tensor:
        """Return `<|mmu|> <|soi|> codes <|eoi|> bos USER: \\n text ASSISTANT:` as ids [L]."""
        head = torch.tensor([self.id("<|mmu|>"), self.id("<|soi|>")])
        said = self.encode(f"USER: \n{text} ASSISTANT:")
        tail = torch.tensor([self.id("<|eoi|>"), self.id(END), *said])
        return torch.cat((head, codes_N.cpu() + self.image_offset, tail))


def text_mask(ids_BP: Tensor, pad: int) -> Tensor:
    """Return the mask of a text block, bool [B 1 P P]: causal without pads; a pad's row is causal."""
    seen = ids_BP != pad
    causal = torch.ones(ids_BP.shape[1], ids_BP.shape[1], dtype=torch.bool, device=ids_BP.device).tril()
    return (causal & (seen[:, None, :] | ~seen[:, :, None]))[:, None]


def image_mask(seen_BP: Tensor, rows: int) -> Tensor:
    """Return the mask of rows soi .. eoi, bool [B 1 rows P + rows]: text without pads (`seen_BP` False), and image."""
    columns = torch.cat((seen_BP, seen_BP.new_ones((len(seen_BP), rows))), 1)
    return columns[:, None, None, :].expand(-1, 1, rows, -1)


def question_mask(length: int, end_of_image: int, device: torch.device) -> Tensor:
    """Return the mask of a question (and answer), bool [1 1 L L]: causal after `<|eoi|>`."""
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask[:, : end_of_image + 1] = True
    return mask[None, None]

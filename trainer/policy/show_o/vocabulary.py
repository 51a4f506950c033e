"""Show-o's vocabulary, prompt layout and attention masks. All ids follow from the tokenizer's length.

    0 .. base - 1                       the language model's tokens; `<|endoftext|>` begins and ends texts
    base ..                             [PAD], then SPECIALS in order, then the concepts' tokens
    len(tokenizer) + c                  image code c
    len(tokenizer) + codebook_size      the mask token, always last

Suffixes: B sequences, P positions of the text block, L positions, N image positions.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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
class ConceptTokens:
    """The tokens of a personalised concept (UniCTokens): its name, then soft tokens that are read and never said.

    `shared` tokens (K, s) are in prompts and questions, those of `generation` (M, g) in prompts alone, those of
    `understanding` (N, u) in questions alone. Inside a policy they are called "<bo:0>", "<bo:1>", ..., because the
    public names "<token_0>", ... are the same for every concept.
    """

    name: str
    shared: int
    generation: int = 0
    understanding: int = 0

    @property
    def count(self) -> int:
        """The number of rows: the name's and those of all soft tokens."""
        return 1 + self.shared + self.generation + self.understanding

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens, in the order of their rows."""
        return (self.name, *(f"{self.name[:-1]}:{i}>" for i in range(self.count - 1)))

    @property
    def drawn(self) -> str:
        """What stands for the name in a prompt: "{s}{g} <bo>"."""
        return f"{''.join(self.tokens[1 : 1 + self.shared + self.generation])} {self.name}".strip()

    @property
    def introduction(self) -> str:
        """The sentence before a question: "<bo> is {s}{u}."; "" without such tokens."""
        soft = self.tokens[1 : 1 + self.shared] + self.tokens[1 + self.shared + self.generation :]
        return f"{self.name} is {''.join(soft)}. " if soft else ""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer with all special tokens, and the ids that image codes add to it.

    `personal` are concepts whose tokens are the last ones before the image codes; `base` is the tokenizer without them.
    """

    tokenizer: Any
    codebook_size: int
    max_text_length: int = 128
    personal: tuple[ConceptTokens, ...] = ()
    base: Any = None

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
        made._check_last(concepts)
        return made

    def with_personal(self, concepts: Sequence[ConceptTokens]) -> Vocabulary:
        """Return the vocabulary with the tokens of exactly these personalised concepts.

        Raises SettingsError for a name that is not `<name>`, that the tokenizer has, or that is given twice.
        """
        base = self.base_tokenizer
        if not concepts:
            return replace(self, tokenizer=base, personal=(), base=None)
        tokenizer = copy.deepcopy(base)
        names = [token for concept in concepts for token in concept.tokens]
        for concept in concepts:
            if not _CONCEPT.fullmatch(concept.name):
                raise SettingsError(f"concept '{concept.name}' is not of the form <name>, as <bo>; rename it")
        tokenizer.add_tokens(names)
        made = replace(self, tokenizer=tokenizer, personal=tuple(concepts), base=base)
        made._check_last(names)
        return made

    @property
    def base_tokenizer(self) -> Any:
        """The tokenizer without the tokens of personalised concepts."""
        return self.tokenizer if self.base is None else self.base

    def _check_last(self, names: Sequence[str]) -> None:
        """Raise SettingsError unless these are the last tokens; a name that was known or is given twice is not."""
        for place, name in enumerate(names, self.image_offset - len(names)):
            if self.id(name) != place:
                raise SettingsError(
                    f"concept '{name}' is not a new token: its id is {self.id(name)}, expected {place}; "
                    "give each concept once, by a name that the tokenizer does not know"
                )

    def rows_of(self, name: str) -> range:
        """Return the ids of a personalised concept's tokens."""
        first = self.image_offset
        for concept in reversed(self.personal):
            first -= concept.count
            if concept.name == name:
                return range(first, first + concept.count)
        raise KeyError(name)

    @cached_property
    def unsaid(self) -> list[int]:
        """The ids of soft tokens, which no text contains; of a personalised concept only the name may be said."""
        return [place for concept in self.personal for place in self.rows_of(concept.name)[1:]]

    def to_draw(self, prompt: str) -> str:
        """Return a prompt with the soft tokens of each personalised concept before the first mention of its name."""
        for concept in self.personal:
            prompt = prompt.replace(concept.name, concept.drawn, 1)
        return prompt

    def to_ask(self, text: str) -> str:
        """Return a question after one sentence for each personalised concept that it names."""
        return "".join(concept.introduction for concept in self.personal if concept.name in text) + text

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
        """Return the ids of `text` without special tokens around it; those within it are split as text is."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
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
        end, limit = self.id(END), self.max_text_length
        rows = [self._drawn_ids(prompt) for prompt in prompts]
        rows = [row if len(row) <= limit + 1 else [*row[:limit], end] for row in rows]
        width = max(map(len, rows))
        padded = [[self.id(PAD)] * (width - len(row)) + row for row in rows]
        return torch.tensor(padded), limit + 1 - width

    def _drawn_ids(self, prompt: str) -> list[int]:
        return [self.id("<|t2i|>"), self.id(END), *self.encode(self.to_draw(prompt)), self.id(END)]

    def num_cut(self, prompt: str) -> int:
        """Return how many tokens of a prompt do not fit its text block; `text_block` cuts them."""
        return max(0, len(self._drawn_ids(prompt)) - self.max_text_length - 1)

    def question(self, text: str, codes_N: Tensor) -> Tensor:
        """Return `<|mmu|> <|soi|> codes <|eoi|> bos USER: \\n text ASSISTANT:` as ids [L].

        Personalised concepts that the text names are introduced before it.
        """
        head = torch.tensor([self.id("<|mmu|>"), self.id("<|soi|>")])
        said = self.encode(f"USER: \n{self.to_ask(text)} ASSISTANT:")
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

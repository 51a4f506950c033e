"""Concept tokens (UniCTokens, arXiv 2505.14671): rows of a policy's tables, inserted at the offset of the image codes.

A concept has the rows `<name>`, then its soft tokens s, g and u (`ConceptTokens`). They move the rows of image codes
and the mask up; `remove` gives the tables back bit for bit.

Suffixes: R rows, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from synod.errors import SettingsError
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.rows import folded, plain_head
from trainer.policy.show_o.vocabulary import ConceptTokens, Vocabulary
from trainer.policy.weights import state_of

_DIGEST_NUMBERS: Final = 32  # of each parameter; those of a table are before the rows of any concept


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows of a concept: in the embeddings [R D], in the head [R D], and the head's biases [R]."""

    embed_RD: Tensor
    head_RD: Tensor
    bias_R: Tensor

    def __post_init__(self) -> None:
        assert self.embed_RD.shape == self.head_RD.shape == (len(self.bias_R), self.embed_RD.shape[1])

    def __len__(self) -> int:
        return len(self.bias_R)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.embed_RD, self.head_RD, self.bias_R


def insert(policy: ShowO, concept: ConceptTokens, rows: Rows) -> None:
    """Add a concept to a policy, after those that it has.

    Raises SettingsError for a name that is not new or not of the form `<name>`, for rows of another number or width,
    and for more soft tokens than a text block or a question of one word has room for.
    """
    if len(rows) != concept.count:
        raise SettingsError(
            f"{concept.name} has {len(rows)} rows, but its name, {concept.shared} + {concept.generation} + "
            f"{concept.understanding} soft tokens need {concept.count}; give K, M and N that fit the rows"
        )
    width = policy.config.phi.hidden_size
    if rows.embed_RD.shape[1] != width:
        raise SettingsError(
            f"the rows of {concept.name} have {rows.embed_RD.shape[1]} numbers, the policy's tables {width}; give "
            "rows that were trained on this model"
        )
    vocab = policy.vocab.with_personal((*policy.vocab.personal, concept))
    check_room(concept, vocab)
    place = policy.vocab.image_offset
    added = dict(zip(("embed", "head", "bias"), rows.tensors(), strict=True))

    def grown(name: str, table: Tensor) -> Tensor:
        return torch.cat((table[:place], added[name].to(table), table[place:]))

    _change_tables(policy, vocab, grown)


def remove(policy: ShowO, name: str) -> Rows:
    """Take a concept out of a policy, and return its rows. Raises KeyError if the policy does not have it."""
    rows, ids = rows_of(policy, name), policy.vocab.rows_of(name)
    vocab = policy.vocab.with_personal([one for one in policy.vocab.personal if one.name != name])
    _change_tables(policy, vocab, lambda _, table: torch.cat((table[: ids.start], table[ids.stop :])))
    return rows


def rows_of(policy: ShowO, name: str) -> Rows:
    """Return copies of a concept's rows, the trained ones if they are. Raises KeyError if it is not in the policy."""
    ids = policy.vocab.rows_of(name)
    state = {key: value for key, value in state_of(policy.phi).items() if key.startswith(("model.embed", "lm_head"))}
    tables = folded(state)
    keys = ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias")
    return Rows(*(tables[key][ids.start : ids.stop].clone() for key in keys))


def check_room(concept: ConceptTokens, vocab: Vocabulary) -> None:
    """Raise SettingsError unless a prompt with the concept's soft tokens has room for some words."""
    ends, words = 3, 8  # "<|t2i|> bos .. eos", and a short prompt such as "a photo of <bo> on a beach"
    room = vocab.max_text_length + 1 - ends - words - 1
    soft = concept.shared + max(concept.generation, concept.understanding)
    if soft > room:
        raise SettingsError(
            f"{concept.name} has {concept.shared} + {max(concept.generation, concept.understanding)} soft tokens in "
            f"one text, but a text block of {vocab.max_text_length + 1} has room for {room} and a short prompt; "
            f"give K + M and K + N of at most {room}"
        )


def check_prompts(vocab: Vocabulary, prompts: Iterable[str]) -> None:
    """Raise SettingsError for a prompt about a personalised concept that does not fit the text block."""
    for prompt in prompts:
        if (cut := vocab.num_cut(prompt)) and any(concept.name in prompt for concept in vocab.personal):
            raise SettingsError(
                f"the prompt {prompt!r} has {cut} tokens more than a text block of {vocab.max_text_length + 1} with "
                "its concept's soft tokens; shorten it, or train the concept with fewer of them"
            )


def base_digest(policy: ShowO) -> str:
    """Return a digest of the weights without any concept, by the first numbers of each parameter."""
    return _digest(policy.module)


def vq_digest(policy: ShowO) -> str:
    """Return a digest of the image tokenizer, whose codes the rows were trained on, by the same numbers."""
    return _digest(policy.vq)


def _digest(module: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in module.named_parameters():
        numbers = parameter.detach().flatten()[:_DIGEST_NUMBERS].float().cpu()
        digest.update(name.encode() + numbers.numpy().tobytes())
    return digest.hexdigest()


def _change_tables(policy: ShowO, vocab: Vocabulary, change: Callable[[str, Tensor], Tensor]) -> None:
    """Give the policy this vocabulary, and the tables that `change(name, table)` returns."""
    phi, config = policy.phi, policy.config
    grown = vocab.size - policy.vocab.size
    with torch.no_grad():
        embed = change("embed", phi.model.embed_tokens.weight)
        head = plain_head(change("head", phi.lm_head.weight), change("bias", phi.lm_head.bias))
    phi.model.embed_tokens = nn.Embedding(len(embed), embed.shape[1], _weight=embed)
    phi.lm_head = head
    mask = None if config.mask_token_id is None else config.mask_token_id + grown
    policy.vocab = vocab
    policy.config = replace(config, vocab_size=vocab.size, mask_token_id=mask, personal=vocab.personal)
    phi.config = policy.config.phi

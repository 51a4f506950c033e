"""Texts of the synthetic world: captions as BER reads them, and a word-level tokenizer for them."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from embedded import world

TOKEN_LIMIT = 2_000
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
COLOR_TEMPLATES = ("a photo of a {color} {kind}", "a photo of a {color}-colored {kind}", "a photo of a {color} object")
_CLASS_WORD = {profile.name: profile.class_word for profile in world.CONCEPTS}


def scorer_caption(text: str) -> str:
    """Return `text` as BER reads it: a concept's token becomes its class word, other <...> are removed."""
    return " ".join(re.sub(r"<[^<>]*>", lambda found: _CLASS_WORD.get(found.group(), ""), text).split())


HELD_OUT = frozenset(form for p in world.PROMPTS_HELDOUT for form in (p.text, scorer_caption(p.text), world.resolve(p)))


def corpus() -> list[str]:
    """Return the texts whose words make the vocabulary.

    These are all prompts in three forms and with one wrong word, colour templates, and all statements on concepts.
    """
    rng = np.random.default_rng(5)
    texts = [*world.LABELS, *world.CLASSES, *world.COLORS, *world.ACCESSORIES, *world.PLACES]
    for profile in world.CONCEPTS:
        texts += [profile.info, profile.pronoun, *(fact.sentence for fact in profile.attributes)]
    for split in ("train", "heldout"):
        texts += [question.text for question in world.attribute_questions(split)]
    texts += [t.format(color=c, kind=k) for t in COLOR_TEMPLATES for c in world.COLORS for k in world.CLASSES]
    for prompt in (*world.PROMPTS_TRAIN, *world.PROMPTS_HELDOUT):
        texts += [prompt.text, scorer_caption(prompt.text), world.resolve(prompt), world.change_one_word(prompt, rng)]
    return texts


def tokenizer(texts: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """Build a lower-casing word-level tokenizer, '[CLS] words [SEP]', that splits off punctuation.

    'red-colored' is three tokens. Raises ValueError when the texts have more words than TOKEN_LIMIT allows.
    """
    splitter, lower = pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(lowercase=True)
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(lower.normalize_str(text))}
    vocabulary = {word: index for index, word in enumerate((*SPECIALS, *sorted(words - set(SPECIALS))))}
    if len(vocabulary) >= TOKEN_LIMIT:
        raise ValueError(f"the texts have {len(vocabulary)} words, but the limit is {TOKEN_LIMIT}; raise TOKEN_LIMIT")
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    fast.normalizer, fast.pre_tokenizer = lower, splitter
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )

"""Texts of users as tokens: what looks like a control token ("[SEP]", "</s>", "<|endoftext|>") is text like any other.

A library's tokenizer takes such a string for the token itself: the model then ends, masks or pools the text there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class TextTokenizer:
    """A transformers tokenizer for texts; texts without such strings get the ids that it gives. Other attributes are
    the tokenizer's own.

    Control tokens within a text are split as text is. Where the vocabulary has one as a piece of text too, which only
    Unigram vocabularies (T5, XLM-R) do, it becomes the unknown token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._control = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}

    def __call__(self, texts: Sequence[str], return_tensors: str | None = None, **options: Any) -> Any:
        """Return the BatchEncoding that the tokenizer makes with `options`."""
        encoded = self._tokenizer(list(texts), split_special_tokens=True, return_special_tokens_mask=True, **options)
        unknown = self._tokenizer.unk_token_id
        for ids, own in zip(encoded["input_ids"], encoded.pop("special_tokens_mask"), strict=True):
            if unknown is not None:  # `own` are the model's: what opens, closes and fills up
                ids[:] = [unknown if not o and i in self._control else i for i, o in zip(ids, own, strict=True)]
        return encoded.convert_to_tensors(return_tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def of_open_clip(tokenizer: Any) -> Any:
    """Change an open_clip tokenizer to read control tokens within a text as text."""
    if hasattr(tokenizer, "tokenizer"):  # one of transformers' within
        tokenizer.tokenizer = TextTokenizer(tokenizer.tokenizer)
    else:  # open_clip's own byte pairs: control tokens are whole words of its cache
        for token in tokenizer.all_special_ids:
            del tokenizer.cache[tokenizer.decoder[token]]
    return tokenizer

"""Texts of data files and of policies, made harmless to a tokenizer: what looks like a control token is text.

A tokenizer takes "<|im_end|>" within a text for the token itself: the text then ends a turn, ends the prompt, or stands
for an image. The processors of transformers also replace "<|image_pad|>" before they tokenize.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


def control_tokens(tokenizers: Iterable[Any], others: Iterable[str] = ()) -> re.Pattern[str]:
    """Return a pattern of all control tokens and `others`, in any case, because SANA's pipeline lower-cases prompts.

    Tokens of one or two characters are left out, because texts have them: a CLIP of Stable Diffusion 3 pads with "!".
    """
    found = {*others}
    for tokenizer in tokenizers:
        found |= {*tokenizer.all_special_tokens}
        found |= {one.content for one in tokenizer.added_tokens_decoder.values() if one.special}
    names = sorted((re.escape(name) for name in found if len(name) > 2), key=len, reverse=True)
    return re.compile("|".join(names) or r"(?!)", re.IGNORECASE)


def as_text(text: str, control: re.Pattern[str]) -> str:
    """Return the text with a space after the first character of each control token in it: "< |im_end|>"."""
    return control.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

"""Split the reply of a policy that was asked for `<answer>..</answer>`. Pure.

The service scores a reply and the trainer draws from it, so both must read the same element.
"""

from __future__ import annotations

from typing import Final

_OPEN: Final = "<answer>"
_CLOSE: Final = "</answer>"


def answer_parts(reply: str) -> tuple[str | None, str]:
    """Return (what is in `<answer>..</answer>` at the reply's start, what follows), both stripped.

    White space may come before the element. An empty element is "". Without an element at the start: (None, the reply).
    """
    opened, close, rest = reply.strip().partition(_CLOSE)
    if not close or not opened.startswith(_OPEN):
        return None, reply.strip()
    return opened.removeprefix(_OPEN).strip(), rest.strip()

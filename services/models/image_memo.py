"""ImageMemo: what models found in an image, shared by the scorers of a process for as long as the image is in use.

Two scorers that look at the same image with the same model then run it once. Only a process that scores one batch at a
time, and so sees a request's images several times in a row, has a use for it: `services.cluster.host` enables it.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

from synod.contracts import Pixels


class ImageMemo:
    """A dictionary for each (array, key), which ends with the array. Disabled, each is empty and kept by nobody.

    Arrays are recognised by identity, so a copy is another image. Values must not refer to the array.
    """

    def __init__(self) -> None:
        self.enabled = False
        self._found: dict[int, dict[Hashable, dict[Any, Any]]] = {}

    def of(self, image: Pixels, key: Hashable) -> dict[Any, Any]:
        """Return the dictionary of `image` and `key`, to be read and filled."""
        if not self.enabled:
            return {}
        address = id(image)
        if address not in self._found:
            weakref.finalize(image, self._found.pop, address, None).atexit = False
            self._found[address] = {}
        return self._found[address].setdefault(key, {})

    def __len__(self) -> int:
        """Return the number of images that are remembered."""
        return len(self._found)


MEMO = ImageMemo()

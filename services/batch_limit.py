"""Limit the size of batches after a batch ran out of memory."""

from __future__ import annotations

CLEAN_BATCHES = 64


class BatchLimit:
    """The number of images that a batch may hold: `most`, or less after a batch ran out of memory.

    Such a batch lowers the limit to the size of its largest successful run. After CLEAN_BATCHES batches in a row with
    enough memory the limit doubles, up to `most`: at most one batch in CLEAN_BATCHES fails because of a limit that was
    raised too far. An item that runs out of memory alone does not lower the limit.
    """

    def __init__(self, most: int) -> None:
        self.images = most
        self._most = most
        self._clean = 0

    def raise_after_success(self) -> None:
        """Count a batch that had enough memory, and raise the limit after CLEAN_BATCHES of them."""
        self._clean += 1
        if self._clean >= CLEAN_BATCHES:
            self.images, self._clean = min(self._most, 2 * self.images), 0

    def lower(self, images: int) -> None:
        """Lower the limit after a batch ran out of memory; its largest successful run held `images`."""
        self.images, self._clean = max(1, min(self.images, images)), 0

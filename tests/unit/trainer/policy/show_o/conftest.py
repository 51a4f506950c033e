"""Show-o's attention, row by row."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def omni_mask() -> Callable[[list[int], int, range], list[list[bool]]]:
    """`omni_mask(ids, pad, image)`: Show-o's rules row by row; `image` are the places soi .. eoi after a text block."""

    def naive(ids: list[int], pad: int, image: range) -> list[list[bool]]:
        rows = []
        for i in range(len(ids)):
            row = []
            for j in range(len(ids)):
                if i in image:
                    row.append(j in image or ids[j] != pad)
                elif j > i:
                    row.append(False)
                else:
                    row.append(ids[j] != pad or ids[i] == pad)
            rows.append(row)
        return rows

    return naive

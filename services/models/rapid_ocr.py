"""Text in images by RapidOCR: PP-OCR's detector and recogniser through onnxruntime; their weights are in the package.

Nothing is downloaded. It runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from PIL import Image

from synod.contracts import Pixels
from synod.errors import SettingsError

INSTALL: Final = "pip install -c constraints.txt '.[ocr]'"
MAX_SIDE: Final = 960  # pixels


class RapidOcr:
    """Images are read in their own size, those with a side above 960 px are shrunk to it, as PaddleOCR does.

    `threads` of onnxruntime, which spin while they wait: more than there are free cores make it slower.
    """

    def __init__(self, threads: int) -> None:
        try:
            import onnxruntime  # noqa: F401  (RapidOCR asks for it only when it reads)
            from rapidocr import RapidOCR
        except ImportError as error:
            raise SettingsError(f"a scorer of kind 'ocr' needs the package {error.name}: {INSTALL}") from None
        self._engine: Any = RapidOCR(
            params={
                "Global.log_level": "error",
                "Global.use_cls": False,  # text that stands upright
                "Det.limit_type": "max",
                "Det.limit_side_len": MAX_SIDE,
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def read(self, images: Sequence[Pixels]) -> list[list[str]]:
        """Return for each image the lines read with a confidence of 0.5 or more, from the top, then from the left."""
        return [list(self._engine(Image.fromarray(image)).txts or ()) for image in images]


@cache
def load(threads: int) -> RapidOcr:
    """Return the reader, shared per process. Raises SettingsError when it is not installed."""
    return RapidOcr(threads)

"""trl: an async reward function for `GRPOTrainer(reward_funcs=[..])`.

    trainer = GRPOTrainer(model, reward_funcs=[reward_function("http://127.0.0.1:8000", "ber")], ...)

trl calls it with `prompts`, `completions` and the dataset's columns, one entry per completion, and takes a number or
None from it; None abstains, and trl masks a completion for which every function abstained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from synod.adapters.connection import Connection, asked, numbers
from synod.adapters.items import FIELDS, is_picture, item_of
from synod.client.values import OnError
from synod.contracts import ScoreItem

COLUMNS: Final[tuple[str, ...]] = ("image", "references", *FIELDS)  # of the dataset, that make up items


def reward_function(
    url: str, scorer: str | None = None, *, ensemble: str | None = None, on_error: OnError = "mask", **options: Any
) -> RewardFunction:
    """The reward function of one scorer, or of one ensemble. A failed score is None, or raised with on_error="raise".

    `options` are AsyncSynodClient's. Raises ValueError unless one of `scorer` and `ensemble` is given.
    """
    return RewardFunction(Connection(url, **options), scorer, ensemble, on_error)


class RewardFunction:
    """What trl calls. `__name__` is what trl's logs call it."""

    def __init__(self, plane: Connection, scorer: str | None, ensemble: str | None, on_error: OnError) -> None:
        self._plane, self._asked, self._on_error = plane, asked(scorer, ensemble), on_error
        self.__name__ = scorer or ensemble or ""

    async def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """One number per completion, in order, None where there is none. Raises SynodError when the plane is away or
        the request is wrong, BadImage and InvalidRequest for columns that cannot be sent."""
        rows = [{name: columns[name][i] for name in COLUMNS if name in columns} for i in range(len(completions))]
        items = tuple(map(item_of_row, prompts, completions, rows))
        values = await self._plane.values(replace(self._asked, items=items), self._on_error)
        if callable(log := columns.get("log_metric")):
            log(f"{self.__name__}/missing_share", len(values.missing) / len(items))
        return list(numbers(values, self._asked))

    async def close(self) -> None:
        """Close the running loop's connections."""
        await self._plane.close()


def item_of_row(prompt: Any, completion: Any, row: Mapping[str, Any]) -> ScoreItem:
    """The picture is the completion's, or else the column `image`; a completion's text is that of `reasoning`, where
    that column has none."""
    image, text = _picture(completion), text_of(completion)
    reasoning = row.get("reasoning")
    if reasoning is not None and reasoning.get("text") is None:
        row = {**row, "reasoning": {**reasoning, "text": text}}
    return item_of(row.get("image") if image is None else image, text_of(prompt) or None, row)


def text_of(value: Any) -> str:
    """A string as it is; of a conversation the last message's text; of anything else nothing."""
    if isinstance(value, str):
        return value
    if is_picture(value) or not value:
        return ""
    content = value[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def _picture(completion: Any) -> Any:
    """The completion itself, if it is a picture, or the last one in its messages."""
    if is_picture(completion):
        return completion
    if isinstance(completion, str):
        return None
    parts = [part for message in completion for part in message["content"] if isinstance(part, Mapping)]
    return next((part["image"] for part in reversed(parts) if part.get("image") is not None), None)

"""Read parsed JSON or msgpack strictly: each getter checks one type, and an error names the path of the value.

Absent and null are the same. Booleans are not numbers, floats are not integers, and NaN and infinities are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard, TypeVar

from synod.errors import InvalidRequest

T = TypeVar("T")
C = TypeVar("C", bound=str)

MAX_ENTRIES: Final = 65_536  # of one list or object
MAX_DEPTH: Final = 32  # of free-form values
INT64: Final = range(-(2**63), 2**63)
_KINDS: Final = (
    (bool, "a boolean"),
    ((int, float), "a number"),
    (str, "a string"),
    ((bytes, memoryview), "bytes"),
    ((list, tuple), "a list"),
    (Mapping, "an object"),
)


def quote(value: object, limit: int = 60) -> str:
    """Quote a string or number for a message: printable ASCII, cut to about `limit` characters."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = ascii(value[: limit + 1] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= limit else text[:limit] + "..."


@dataclass(slots=True)  # not frozen: a body has thousands of them, and a frozen one takes twice as long to make
class Node:
    """A value and its path. Every getter raises InvalidRequest.

    `above` is the path, or, for the value of `key` in an object or a list, that one's node.
    """

    value: object
    above: Node | str = ""
    key: str | int | None = None

    @property
    def path(self) -> str:
        """The path, such as `items[3].reasoning.truth`."""
        above = self.above if isinstance(self.above, str) else self.above.path
        if self.key is None:
            return above
        return f"{above}[{self.key}]" if isinstance(self.key, int) else join(above, self.key)

    def error(self, why: str) -> InvalidRequest:
        """Return the error for this value, for the caller to raise."""
        return InvalidRequest(f"{self.path or 'the body'}: {why}")

    def fields(self, *known: str) -> Node:
        """Return this node, an object that has no key outside `known`."""
        for key in self.mapping():
            if key not in known:
                raise Node(None, self, self._name(key)).error(f"unknown key; known here: {', '.join(known)}")
        return self

    def need(self, key: str, read: Callable[[Node], T]) -> T:
        """Read the value of `key` in an object. Raises InvalidRequest if it is absent or null."""
        value = self.mapping().get(key)
        if value is None:
            raise Node(None, self, key).error("missing")
        return read(Node(value, self, key))

    def get(self, key: str, read: Callable[[Node], T]) -> T | None:
        """Read the value of `key` in an object; None if it is absent or null."""
        value = self.mapping().get(key)
        return None if value is None else read(Node(value, self, key))

    def table(self, read: Callable[[Node], T]) -> dict[str, T]:
        """Read an object with free keys, each value by `read`."""
        return {
            key: read(Node(value, self, key if key.__class__ is str and key.isascii() else self._name(key)))
            for key, value in self.mapping().items()
        }

    def entries(self, read: Callable[[Node], T]) -> tuple[T, ...]:
        """Read a list, each entry by `read`."""
        if not isinstance(self.value, (list, tuple)):
            raise self._not("a list")
        self._bound(len(self.value))
        return tuple([read(Node(entry, self, i)) for i, entry in enumerate(self.value)])

    def text(self) -> str:
        """Return a string that UTF-8 can carry."""
        if not isinstance(self.value, str):
            raise self._not("a string")
        if not self.value.isascii():
            try:
                self.value.encode()
            except UnicodeEncodeError:
                raise self.error("a string with a lone surrogate; send valid Unicode") from None
        return self.value

    def choice(self, options: tuple[C, ...]) -> C:
        """Return a string that is one of `options`."""
        text = self.text()
        if text not in options:
            raise self.error(f"{quote(text)}; give one of {', '.join(options)}")
        return next(option for option in options if option == text)

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        """Return a finite number, low <= it <= high."""
        if self.value.__class__ is float and low <= self.value <= high and abs(self.value) != math.inf:
            return self.value
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            raise self._not("a number")
        try:
            number = float(self.value)
        except OverflowError:
            number = math.nan
        if not (math.isfinite(number) and low <= number <= high):
            least = "" if low == -math.inf else f" >= {low:g}"
            most = "" if high == math.inf else f" and <= {high:g}"
            raise self.error(f"{quote(self.value)}; give a finite number{least}{most}")
        return number

    def integer(self, low: int = INT64.start, high: int = INT64.stop - 1) -> int:
        """Return a whole number, low <= it <= high."""
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self._not("a whole number")
        if not low <= self.value <= high:
            raise self.error(f"{quote(self.value)}; give a whole number from {low} to {high}")
        return self.value

    def boolean(self) -> bool:
        """Return true or false."""
        if not isinstance(self.value, bool):
            raise self._not("a boolean")
        return self.value

    def json_value(self, depth: int = MAX_DEPTH) -> Any:
        """Return a free-form value that all formats carry: no NaN, no bytes, 64-bit integers, MAX_DEPTH deep."""
        value = self.value
        if isinstance(value, str):
            return self.text()
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return self.integer()
        if isinstance(value, float):
            return self.number()
        if depth == 0:
            raise self.error(f"nested deeper than {MAX_DEPTH}")
        if is_object(value):
            return self.table(lambda child: child.json_value(depth - 1))
        return list(self.entries(lambda child: child.json_value(depth - 1)))

    def mapping(self) -> Mapping[str, Any]:
        """Return an object with its keys and values unchecked."""
        if not is_object(self.value):
            raise self._not("an object")
        self._bound(len(self.value))
        return self.value

    def _name(self, key: object) -> str:
        return Node(key, f"{self.path}: a key").text()

    def _bound(self, entries: int) -> None:
        if entries > MAX_ENTRIES:
            raise self.error(f"{entries} entries, the limit is {MAX_ENTRIES}")

    def _not(self, wanted: str) -> InvalidRequest:
        kind = next((name for types, name in _KINDS if isinstance(self.value, types)), type(self.value).__name__)
        return self.error(f"{'null' if self.value is None else kind} where {wanted} belongs")


def each(read: Callable[[Node], T]) -> Callable[[Node], tuple[T, ...]]:
    """Return a reader of lists whose entries `read` reads."""
    return lambda node: node.entries(read)


def is_object(value: object) -> TypeGuard[Mapping[Any, Any]]:
    """Return whether a value is an object."""
    return type(value) is dict or isinstance(value, Mapping)  # the first is quick, and nearly always so


def join(path: str, key: str) -> str:
    """Return the path of `key` inside the object at `path`."""
    shown = quote(key)[1:-1]
    return f"{path}.{shown}" if path else shown

"""Convert between messages and the trees that the other formats carry, by the schema's own descriptors.

A field has the key of the record's field of that name; one that ends in `_json` holds the JSON text of a value; an enum
has the words of the records (RELATION_LEFT_OF is "left of"). What is unset is absent. Only images and outcomes, and the
messages that stand for a list or for their one field (`_LISTS`, `_WRAPPERS`), have another shape there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple

from google.protobuf.message import Message

from synod import contracts
from synod.formats import dump_json, load_json
from synod.records import Form, fields_of
from synod.v1 import reward_pb2 as pb

_LISTS: Final = ("Position", "GenEvalQuestion")  # the values of their fields, in order
_WRAPPERS: Final = ("Weights", "Rewards", "Reward", "ScoreStreamRequest")  # the value of their only field


class _Field(NamedTuple):
    name: str
    key: str
    optional: bool  # unset differs from empty
    read: Callable[[Any], Any]
    write: Callable[[Any], Any]


@cache
def form(name: str) -> Form:
    """Compile the message of this name. Its `write` raises ValueError, TypeError for what the schema cannot hold."""
    if name in _BY_HAND:
        return _BY_HAND[name]
    kind = getattr(pb, name)
    fields = _fields(kind.DESCRIPTOR)
    if name in _WRAPPERS:
        (only,) = fields
        return Form(_reader_of(only), lambda tree: kind(**{} if tree is None else {only.name: only.write(tree)}))
    if name in _LISTS:
        return Form(
            lambda message: [one.read(getattr(message, one.name)) for one in fields],
            lambda tree: kind(**{one.name: one.write(value) for one, value in zip(fields, tree, strict=True)}),
        )
    by_key = {key: (name, to_message) for name, key, _, _, to_message in fields}

    def read(message: Message) -> dict[str, Any]:
        tree = {}
        for name, key, optional, to_tree, _ in fields:
            if not optional or message.HasField(name):
                value = getattr(message, name)
                tree[key] = value if to_tree is _same else to_tree(value)
        return tree

    def write(tree: Mapping[str, Any]) -> Any:
        given = {}
        for key, value in tree.items():
            if value is not None:
                name, to_message = by_key[key]
                given[name] = value if to_message is _same else to_message(value)
        return kind(**given)

    return Form(read, write)


def word(enum: Any, value: int) -> str:
    """Return the word of an enum's value; a value without a meaning as digits, which no reader takes."""
    named = enum.values_by_number.get(value)
    return str(value) if named is None or value == 0 else _words(enum)[value]


def number(enum: Any, words: str) -> int:
    """Return the enum's value of a word. Raises ValueError for one that the schema has not."""
    for value, known in _words(enum).items():
        if known == words:
            return value
    raise ValueError(f"{enum.name} has no {words!r}")


@cache
def _words(enum: Any) -> dict[int, str]:
    """The words of an enum's values but the first, RELATION_UNSPECIFIED, whose name begins with their prefix."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {v.number: v.name.removeprefix(prefix).lower().replace("_", " ") for v in enum.values if v.number}


def _fields(message: Any) -> list[_Field]:
    record = getattr(contracts, message.name, None)
    keys = {} if record is None else {field.name: field.key for field in fields_of(record)}
    return [_field(one, keys.get(one.name, one.name.removesuffix("_json"))) for one in message.fields]


def _field(field: Any, key: str) -> _Field:
    optional = field.has_presence
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name["value"]
        if entry.message_type is None:
            return _Field(field.name, key, optional, dict, _same)
        inner = form(entry.message_type.name)
        return _Field(field.name, key, optional, lambda m: _each(m, inner.read), lambda tree: _each(tree, inner.write))
    read, write = _value(field)
    if field.default_value == []:  # repeated; `is_repeated` is protobuf 6's
        if read is _same:
            return _Field(field.name, key, optional, list, _same)
        return _Field(field.name, key, optional, lambda values: list(map(read, values)), lambda tree: map(write, tree))
    return _Field(field.name, key, optional, read, write)


def _value(field: Any) -> Form:
    if field.message_type is not None:
        return form(field.message_type.name)
    if field.enum_type is not None:
        return Form(lambda value: word(field.enum_type, value), lambda words: number(field.enum_type, words))
    if field.name.endswith("_json"):
        return Form(lambda text: load_json(text.encode()) if text else {}, lambda v: dump_json(v).decode() if v else "")
    return Form(_same, _same)


def _same(value: Any) -> Any:
    return value


def _each(values: Mapping[str, Any], convert: Callable[[Any], Any]) -> dict[str, Any]:
    return {key: convert(value) for key, value in values.items()}


def _reader_of(field: _Field) -> Callable[[Any], Any]:
    """The only field's value; None where it is unset, but for a request, which is then empty."""
    read, name = field.read, field.name
    if not field.optional or name == "request":
        return lambda message: read(getattr(message, name))
    return lambda message: read(getattr(message, name)) if message.HasField(name) else None


def _read_image(message: pb.Image) -> object:
    match message.WhichOneof("source"):
        case "encoded":
            return message.encoded
        case "raw":
            return {"data": message.raw.data, "shape": [message.raw.height, message.raw.width, 3]}
        case "digest":
            return {"digest": message.digest}
    return {}


def _write_image(tree: Any) -> pb.Image:
    if isinstance(tree, bytes):
        return pb.Image(encoded=tree)
    if "digest" in tree:
        return pb.Image(digest=tree["digest"])
    height, width, _ = tree["shape"]
    return pb.Image(raw=pb.RawImage(data=tree["data"], height=height, width=width))


def _read_outcome(message: pb.Outcome) -> dict[str, Any]:
    match message.WhichOneof("kind"):
        case "score":
            score: dict[str, Any] = _SCORE.read(message.score)
            return score
        case "failure":
            return {"error": _FAILURE.read(message.failure)}
    return {}


def _write_outcome(tree: Mapping[str, Any]) -> pb.Outcome:
    if "error" in tree:
        return pb.Outcome(failure=_FAILURE.write(tree["error"]))
    return pb.Outcome(score=_SCORE.write(tree))


_BY_HAND: Final = {"Image": Form(_read_image, _write_image), "Outcome": Form(_read_outcome, _write_outcome)}
_SCORE, _FAILURE = form("Score"), form("ScoreFailure")

"""Read and write the records of `synod.contracts` as trees: the objects, lists and values that all formats carry.

A type is compiled into a reader and a writer by its hints, its defaults and its `Annotated` metadata. Only what no type
says is written by hand: images, outcomes, errors, parts of a stream, and the rules between fields (`_RULES`).

    image    encoded bytes, {data: raw RGB bytes, shape: [H, W, 3]}, or {digest: of one that the service keeps}
    outcome  the fields of a Score, or {error: the fields of a ScoreFailure}
    part     {request_id, scored: {index, scorer, outcome}}, {request_id, rewards} or {request_id, error}
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

from synod import contracts as c
from synod.errors import InvalidRequest, ScorerFailed, SynodError
from synod.reader import MAX_ENTRIES, Node, is_object, quote

Tree = dict[str, Any]
ReadBytes = Callable[[Node], bytes]  # how a format carries bytes
PackBytes = Callable[["bytes | memoryview"], object]
IMAGE: Final = frozenset({bytes, np.ndarray, c.ImageRef})  # the members of the unions that are written by hand
IMAGE_DATA: Final = frozenset({bytes, np.ndarray})
OUTCOME: Final = frozenset({c.Score, c.ScoreFailure})
PART: Final = frozenset({c.ScoredItem, c.Rewards, c.RequestError})
_UNBOUNDED: Final = c.Bounds()
_USUAL: Final = c.Wire()
T = TypeVar("T")


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def no_bytes(node: Node) -> bytes:
    """Refuse an image where none belongs. Raises InvalidRequest."""
    raise node.error("no image belongs here")


class Form(NamedTuple):
    """How a value is read from a tree or a message and written as one. Walks of trees go by nodes."""

    read: Callable[[Any], Any]
    write: Callable[[Any], Any]


@dataclass(slots=True)
class _Root(Node):
    """The node where a walk begins; it keeps how the format carries bytes."""

    carry: Callable[[Any], Any] = no_bytes


def _as_is(node: Node) -> Any:
    """Write a value that is its own tree."""
    return node.value


@dataclass(frozen=True, slots=True)
class Kind:
    """A type hint taken apart: the type without None and `Annotated`, whether None is allowed, and the metadata."""

    type: Any
    nullable: bool = False
    bounds: c.Bounds = _UNBOUNDED
    pattern: c.Pattern | None = None
    not_empty: c.NotEmpty | None = None
    wire: c.Wire = _USUAL
    about: str | None = None

    @property
    def members(self) -> frozenset[Any]:
        """The types of a union."""
        return frozenset(get_origin(one) or one for one in get_args(self.type)) if _is_union(self.type) else frozenset()

    @property
    def entries(self) -> tuple[Kind, ...]:
        """The kinds of a tuple's entries, or of a mapping's key and value."""
        return tuple(kind_of(one) for one in get_args(self.type) if one is not Ellipsis)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a record. `name` is Python's, `key` that of JSON and msgpack. `required`: a reader wants it.
    `always`: it is written also when it holds its default."""

    name: str
    key: str
    kind: Kind
    default: Any
    required: bool
    always: bool


def read(hint: type[T], node: Node, read_bytes: ReadBytes = no_bytes) -> T:
    """Return the value of type `hint` that the node holds. Raises InvalidRequest with the path of the first fault."""
    value: T = form(kind_of(cast(Any, hint))).read(_Root(node.value, node.above, node.key, read_bytes))
    return value


def write(hint: Any, value: Any, pack: PackBytes = bytes) -> Any:
    """Return the tree of a value of type `hint`. Raises InvalidRequest for images and numbers that are out of bounds.

    An Outcome never raises: a score that no format can carry (NaN or an array in its detail) becomes a ScoreFailure.
    """
    return form(kind_of(hint)).write(_Root(value, carry=pack))


def read_item(node: Node, read_bytes: ReadBytes) -> c.ScoreItem:
    """Return the item that the node holds. Raises InvalidRequest with the path of the first fault."""
    return read(c.ScoreItem, node, read_bytes)


def read_error(node: Node) -> SynodError:
    """Return the error of a body {"error": {code, retryable, message, ..}}. Raises InvalidRequest for another body."""
    error: SynodError = node.fields("error").need("error", _read_error)
    return error


def error_tree(error: SynodError) -> Tree:
    """Return the body of an answer that is an error as a whole."""
    return {"error": _write_error(Node(error))}


def texts(record: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield every text in a record with its path, such as `items[0].reasoning.segments[1]`."""
    if isinstance(record, str):
        yield path, record
    elif isinstance(record, tuple):
        for i, entry in enumerate(record):
            yield from texts(entry, f"{path}[{i}]")
    elif is_dataclass(record):
        kind: type = type(record)
        for field in fields_of(kind):
            yield from texts(getattr(record, field.name), f"{path}.{field.key}")


_NUMBER: Final = Kind(float)


@cache
def kind_of(hint: Any) -> Kind:
    """Take a type hint apart."""
    metadata: list[Any] = []
    nullable = False
    while (annotated := get_origin(hint) is Annotated) or (_is_union(hint) and type(None) in get_args(hint)):
        if annotated:
            metadata += hint.__metadata__
            hint = hint.__origin__
        else:
            nullable, hint = True, Union[tuple(one for one in get_args(hint) if one is not type(None))]  # noqa: UP007
    names = {c.Bounds: "bounds", c.Pattern: "pattern", c.NotEmpty: "not_empty", c.Wire: "wire", str: "about"}
    return Kind(hint, nullable, **{names[type(one)]: one for one in reversed(metadata)})


@cache
def fields_of(record: type) -> tuple[Field, ...]:
    """Return the fields of a record in its own order."""
    hints = get_type_hints(record, include_extras=True)
    found = []
    for one in fields(record):
        kind = kind_of(hints[one.name])
        default = one.default if one.default_factory is MISSING else one.default_factory()
        required = kind.wire.required or (default is MISSING and not kind.nullable)
        key, default = kind.wire.key or one.name, None if default is MISSING else default
        found.append(Field(one.name, key, kind, default, required, required or kind.wire.always))
    return tuple(found)


@cache
def form(kind: Kind) -> Form:
    """Compile a kind: how it is read and written where it is not None."""
    by_hand = {IMAGE: _IMAGE, IMAGE_DATA: _IMAGE_DATA, OUTCOME: _OUTCOME, PART: _PART}
    if kind.members:
        return by_hand[kind.members]
    origin = get_origin(kind.type)
    if kind.type is SynodError:
        return Form(_read_error, _write_error)
    if isinstance(kind.type, type) and is_dataclass(kind.type):
        return _record(kind.type)
    if origin is Mapping:
        return _table(kind.entries[1])
    if origin is tuple:
        return _list(kind) if Ellipsis in get_args(kind.type) else _pair(kind)
    if kind.type is str and kind.pattern is None:
        return Form(Node.text, _as_is)
    if kind.type is bool:
        return Form(Node.boolean, _as_is)
    if origin is Literal:
        return Form(lambda node: node.choice(get_args(kind.type)), _as_is)
    low, high = kind.bounds.low, kind.bounds.high
    if kind.type is int:
        bounds = {name: int(one) for name, one in (("low", low), ("high", high)) if math.isfinite(one)}
        return Form(lambda node: node.integer(**bounds), _as_is)
    check: Callable[[Node], Any] = Node.json_value
    if kind.type is float:
        check = lambda node: node.number(low, high)  # noqa: E731
    elif (pattern := kind.pattern) is not None:
        check = lambda node: _matching(node, pattern)  # noqa: E731
    else:
        assert kind.type is Any, f"no form for {kind.type}"
    return Form(check, check)  # a number, a digest or a free-form value is also checked before it is sent


def _matching(node: Node, pattern: c.Pattern) -> str:
    text = node.text()
    if re.fullmatch(pattern.regex, text) is None:
        raise node.error(f"{quote(text)}; {pattern.words}")
    return text


def _list(kind: Kind) -> Form:
    (entry,) = kind.entries
    read_entry, write_entry = form(entry)
    not_empty = kind.not_empty

    def read_nullable(node: Node) -> Any:
        return None if node.value is None else read_entry(node)

    def read_not_empty(node: Node) -> tuple[Any, ...]:
        found = node.entries(read_entry)
        if not_empty is not None and not found:
            raise node.error(f"empty; send at least one {not_empty.entry}")
        return found

    def read_list(node: Node) -> tuple[Any, ...]:
        return node.entries(read_nullable if entry.nullable else read_entry)

    def read_texts(node: Node) -> tuple[str, ...]:
        values: Any = node.value
        few = values.__class__ is list and len(values) <= MAX_ENTRIES
        if few and all(one.__class__ is str and one.isascii() for one in values):  # as Node.text, without nodes
            return tuple(values)
        return node.entries(Node.text)

    def write_list(node: Node) -> list[Any]:
        values: Any = node.value
        return [None if one is None else write_entry(Node(one, node, i)) for i, one in enumerate(values)]

    readers = read_texts if read_entry is Node.text else read_list if not_empty is None else read_not_empty
    return Form(readers, _as_is if write_entry is _as_is else write_list)


def _pair(kind: Kind) -> Form:
    """A list of a fixed length."""
    readers = [form(entry).read for entry in kind.entries]

    def read_pair(node: Node) -> tuple[Any, ...]:
        parts = node.entries(lambda part: part)
        if len(parts) != len(readers):
            raise node.error(f"{len(parts)} entries; give {kind.about}")
        return tuple([read_part(part) for read_part, part in zip(readers, parts, strict=True)])

    return Form(read_pair, _as_is)


def _table(entry: Kind) -> Form:
    read_entry, write_entry = form(entry)
    write = _as_is if write_entry is _as_is else lambda node: node.table(write_entry)
    return Form(lambda node: node.table(read_entry), write)


def _record(record: type) -> Form:
    known = fields_of(record)
    read_fields, write_fields = _fields(known, _IGNORED.get(record, ()))
    rule = _RULES.get(record)

    def read_record(node: Node) -> Any:
        made = record(*read_fields(node))
        if rule is not None:
            rule(node, made)
        return made

    return Form(read_record, write_fields)


def _fields(known: tuple[Field, ...], ignored: tuple[str, ...] = ()) -> Form:
    """An object of fields: read as their values, written from a record. Null is absent; keys of `ignored` are
    also allowed as null."""
    keys = tuple(field.key for field in known)
    forms = [(field, form(field.kind)) for field in known]
    readers = [(field.key, one.read, field.required, field.default) for field, one in forms]
    forms.sort(key=lambda entry: entry[0].kind.wire.last)
    writers = [
        (f.name, f.key, one.write, f.always, f.default == () and not f.always, f.kind == _NUMBER) for f, one in forms
    ]

    def read_fields(node: Node) -> list[Any]:
        if ignored:
            rest = {key: value for key, value in node.mapping().items() if not (key in ignored and value is None)}
            node = Node(rest, node.above, node.key)
        get = node.fields(*keys).mapping().get
        found = []
        for key, read_field, required, default in readers:
            value = get(key)
            if value is not None:
                found.append(read_field(Node(value, node, key)))
            elif required:
                raise Node(None, node, key).error("missing")
            else:
                found.append(default)
        return found

    def write_fields(node: Node) -> Tree:
        tree: Tree = {}
        record = node.value
        for name, key, write_field, always, only_entries, is_number in writers:
            value = getattr(record, name)
            if value is None:
                if always:
                    tree[key] = None
            elif only_entries and not value:
                continue
            elif write_field is _as_is or (is_number and value.__class__ is float and value - value == 0.0):
                tree[key] = value  # text, or a finite number: without a node
            else:
                tree[key] = write_field(Node(value, node, key))
        return tree

    return Form(read_fields, write_fields)


# --- what no type says ---


def _carry(node: Node, data: Any) -> Any:
    """Read or write bytes as the format of this walk does."""
    above: Any = node
    while not isinstance(above, _Root):
        above = above.above
    return above.carry(data)


def _read_image(node: Node) -> c.ImageInput:
    if is_object(node.value) and "digest" in node.value:
        reference: c.ImageRef = _REFERENCE.read(node)
        return reference
    return _read_data(node)


def _read_data(node: Node) -> c.ImageData:
    if not is_object(node.value):
        encoded: bytes = _carry(node, node)
        return encoded
    of = node.fields("data", "shape")
    data: bytes = of.need("data", lambda data: _carry(data, data))
    shape = of.need("shape", lambda sides: sides.entries(lambda side: side.integer(1)))
    if isinstance(data, c.UnreadableImage):
        return data
    if len(shape) != 3 or shape[2] != 3:
        raise node.error(f"shape {list(shape)}; a raw image is [H, W, 3] in RGB")
    if len(data) != math.prod(shape):
        raise node.error(f"{len(data)} bytes for shape {list(shape)}, which needs {math.prod(shape)}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _write_image(node: Node) -> object:
    image: Any = node.value
    if isinstance(image, bytes):
        return _carry(node, image)
    if isinstance(image, c.ImageRef):
        return _REFERENCE.write(node)
    if not c.is_raw(image):
        raise node.error(f"{image.dtype} {list(image.shape)}; a raw image is uint8 [H, W, 3] in RGB")
    return {"data": _carry(node, np.ascontiguousarray(image).reshape(-1).data), "shape": list(image.shape)}


def _read_outcome(node: Node) -> c.Outcome:
    values = node.mapping()
    error = values.get("error")
    if error is not None and len(values) > 1:
        raise node.error("both an 'error' and a value; give one of them")
    outcome: c.Outcome = _SCORE.read(node) if error is None else _FAILURE.read(Node(error, node, "error"))
    return outcome


def _write_outcome(node: Node) -> Tree:
    outcome: Any = node.value
    if isinstance(outcome, c.Score):
        node.above, node.key = "", None  # its message names the path within the score
        try:
            score: Tree = _SCORE.write(node)
            return score
        except InvalidRequest as error:
            outcome = c.ScoreFailure.of(ScorerFailed(f"the score cannot be sent: {error}"))
    return {"error": _with_valid_message(_FAILURE.write(Node(outcome)))}


def _read_error(node: Node) -> SynodError:
    fields: c.ErrorFields = _ERROR.read(node)
    return fields.error()


def _write_error(node: Node) -> Tree:
    assert isinstance(node.value, SynodError)
    return _with_valid_message(_ERROR.write(Node(c.ErrorFields.of(node.value))))


def _with_valid_message(failure: Tree) -> Tree:
    return failure | {"message": failure["message"].encode(errors="replace").decode()}


def _read_part(node: Node) -> c.Part:
    of = node.fields("request_id", *_PARTS)
    request_id = of.need("request_id", Node.text)
    given = [key for key in _PARTS if key in of.mapping()]
    if len(given) != 1:
        raise node.error(f"{len(given)} of 'scored', 'rewards' and 'error'; a part is one of them")
    if given == ["scored"]:
        return c.ScoredItem(request_id, *of.need("scored", _SCORED.read))
    part: c.Part = form(Kind(_PARTS[given[0]])).read(node)
    return part


def _write_part(node: Node) -> Tree:
    part: Any = node.value
    if isinstance(part, c.ScoredItem):
        return {"request_id": part.request_id, "scored": _SCORED.write(node)}
    tree: Tree = write(type(part), part)
    return tree


def _one_truth_a_segment(node: Node, reasoning: c.Reasoning) -> None:
    truth, segments = len(reasoning.truth), len(reasoning.segments)
    if truth != segments:
        raise node.error(f"truth has {truth} entries for {segments} segments; give one a segment")


def _targets_exist(node: Node, geneval: c.GenEvalMetadata) -> None:
    for key in ("include", "exclude"):
        for i, clause in enumerate(getattr(geneval, key)):
            if clause.position is not None:
                position = Node(None, Node(None, Node(None, node, key), i), "position")
                Node(clause.position[1], position, 1).integer(0, len(geneval.include) - 1)


def _all_readable(node: Node, request: c.PutImagesRequest) -> None:
    for i, image in enumerate(request.images):
        if isinstance(image, c.UnreadableImage):
            raise Node(None, Node(None, node, "images"), i).error(image.why)


_RULES: Final[Mapping[type, Callable[[Node, Any], None]]] = {
    c.Reasoning: _one_truth_a_segment,
    c.GenEvalMetadata: _targets_exist,
    c.PutImagesRequest: _all_readable,
}
# GenEval++'s `region` and `size` are read by no rule; in tables every clause has them, as null
_IGNORED: Final[Mapping[type, tuple[str, ...]]] = {c.GenEvalClause: ("region", "size")}
_PARTS: Final[Mapping[str, type]] = {"scored": c.ScoredItem, "rewards": c.Rewards, "error": c.RequestError}
_IMAGE: Final = Form(_read_image, _write_image)
_IMAGE_DATA: Final = Form(_read_data, _write_image)
_OUTCOME: Final = Form(_read_outcome, _write_outcome)
_PART: Final = Form(_read_part, _write_part)
_REFERENCE, _SCORE, _FAILURE, _ERROR = (
    form(Kind(record)) for record in (c.ImageRef, c.Score, c.ScoreFailure, c.ErrorFields)
)
_SCORED: Final = _fields(tuple(field for field in fields_of(c.ScoredItem) if field.name != "request_id"))

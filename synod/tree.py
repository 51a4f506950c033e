"""Requests <-> the trees that all formats carry: objects, lists, strings, numbers, and bytes as the format has it.

    request   {items: [item..], scorers: [name..], ensemble, weights: {name: w >= 0}, timeout_ms >= 1, request_id}
    item      {image: image, prompt, references: [image..], reasoning, geneval, concept,
               source_prompt}
    image   encoded bytes, {data: raw RGB bytes, shape: [H, W, 3]}, or {digest: one that the service keeps}
    reasoning {text, segments: [text..], truth: [0..1, one a segment]}
    geneval   {tag, include: [clause..], exclude: [clause..], vqa_list: [[question, answer]..]}
    clause    {class, count >= 1, color, position: [relation, index of an `include` clause]}
    concept   {kind, class_word, token}
    put       {images: [image, not by digest..]}

Only `items` (one or more), the fields of `reasoning`, `tag`, `include`, `class`, `count` and `kind` are required.
`synod.answers` is the other half.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from synod.contracts import (
    CONCEPT_KINDS,
    RELATIONS,
    Concept,
    GenEvalClause,
    GenEvalMetadata,
    ImageData,
    ImageInput,
    ImageRef,
    PutImagesRequest,
    Reasoning,
    Relation,
    ScoreItem,
    ScoreRequest,
    UnreadableImage,
    is_raw,
)
from synod.digest import PREFIX, is_digest
from synod.errors import InvalidRequest
from synod.reader import Node, each, is_object, quote

Tree = dict[str, Any]
ReadBytes = Callable[[Node], bytes]
PackBytes = Callable[[bytes | memoryview], object]


def read_request(node: Node, read_bytes: ReadBytes) -> ScoreRequest:
    """Raises InvalidRequest with the path of the first field that is wrong."""
    of = node.fields("items", "scorers", "ensemble", "weights", "timeout_ms", "request_id")
    items = of.need("items", each(partial(read_item, read_bytes=read_bytes)))
    if not items:
        raise InvalidRequest("items: empty; send at least one item")
    return ScoreRequest(
        items,
        of.get("scorers", each(Node.text)) or (),
        of.get("ensemble", Node.text),
        of.get("weights", read_weights),
        of.get("timeout_ms", lambda limit: limit.integer(1)),
        of.get("request_id", Node.text),
    )


def read_item(node: Node, read_bytes: ReadBytes) -> ScoreItem:
    """Raises InvalidRequest with the path of the first field that is wrong."""
    of = node.fields("image", "prompt", "references", "reasoning", "geneval", "concept", "source_prompt")
    image = partial(_image, read_bytes=read_bytes)
    return ScoreItem(
        of.get("image", image),
        of.get("prompt", Node.text),
        of.get("references", each(image)) or (),
        of.get("reasoning", _reasoning),
        of.get("geneval", read_geneval),
        of.get("concept", _concept),
        of.get("source_prompt", Node.text),
    )


def read_put(node: Node, read_bytes: ReadBytes) -> PutImagesRequest:
    """Raises InvalidRequest with the path of the first field that is wrong."""
    images = node.fields("images").need("images", each(partial(_content, read_bytes=read_bytes)))
    if not images:
        raise InvalidRequest("images: empty; send at least one image")
    for i, image in enumerate(images):
        if isinstance(image, UnreadableImage):
            raise InvalidRequest(f"images[{i}]: {image.why}")
    return PutImagesRequest(images)


def read_geneval(node: Node) -> GenEvalMetadata:
    """Raises InvalidRequest with the path of the first field that is wrong."""
    of = node.fields("tag", "include", "exclude", "vqa_list")
    targets = len(of.need("include", each(lambda clause: clause)))
    clauses = each(partial(_clause, targets=targets))
    return GenEvalMetadata(
        of.need("tag", Node.text),
        of.need("include", clauses),
        of.get("exclude", clauses) or (),
        of.get("vqa_list", each(_question)) or (),
    )


def request_tree(request: ScoreRequest, pack: PackBytes) -> Tree:
    """Raises InvalidRequest for raw images that are not uint8 [H W 3], and for weights or truth out of range."""
    return present(
        items=[_item_tree(item, pack, f"items[{i}]") for i, item in enumerate(request.items)],
        scorers=list(request.scorers),
        ensemble=request.ensemble,
        weights=None if request.weights is None else read_weights(Node(request.weights, "weights")),
        timeout_ms=request.timeout_ms,
        request_id=request.request_id,
    )


def put_tree(request: PutImagesRequest, pack: PackBytes) -> Tree:
    """Raises InvalidRequest for raw images that are not uint8 [H W 3]."""
    return {"images": [_image_tree(image, pack, f"images[{i}]") for i, image in enumerate(request.images)]}


def read_digest(node: Node) -> str:
    """Raises InvalidRequest."""
    text = node.text()
    if not is_digest(text):
        raise node.error(f"{quote(text)}; a digest is '{PREFIX}' and 64 lower-case hex digits")
    return text


def read_weights(node: Node) -> dict[str, float]:
    """Finite weights >= 0 by scorer name. Raises InvalidRequest."""
    return node.table(lambda weight: weight.number(0))


def _truth(node: Node) -> tuple[float, ...]:
    return node.entries(lambda entry: entry.number(0, 1))


def _image(node: Node, read_bytes: ReadBytes) -> ImageInput:
    if is_object(node.value) and "digest" in node.value:
        return ImageRef(node.fields("digest").need("digest", read_digest))
    return _content(node, read_bytes)


def _content(node: Node, read_bytes: ReadBytes) -> ImageData:
    if not is_object(node.value):
        return read_bytes(node)
    of = node.fields("data", "shape")
    data, shape = of.need("data", read_bytes), of.need("shape", each(lambda side: side.integer(1)))
    if isinstance(data, UnreadableImage):
        return data
    if len(shape) != 3 or shape[2] != 3:
        raise node.error(f"shape {list(shape)}; a raw image is [H, W, 3] in RGB")
    if len(data) != math.prod(shape):
        raise node.error(f"{len(data)} bytes for shape {list(shape)}, which needs {math.prod(shape)}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _reasoning(node: Node) -> Reasoning:
    of = node.fields("text", "segments", "truth")
    text, segments, truth = of.need("text", Node.text), of.need("segments", each(Node.text)), of.need("truth", _truth)
    if len(truth) != len(segments):
        raise node.error(f"truth has {len(truth)} entries for {len(segments)} segments; give one a segment")
    return Reasoning(text, segments, truth)


def _clause(node: Node, targets: int) -> GenEvalClause:
    # GenEval++'s `region` and `size` are read by no rule; in tables every clause has them, as null
    values = {k: v for k, v in node.mapping().items() if not (k in ("region", "size") and v is None)}
    of = Node(values, node.above, node.key).fields("class", "count", "color", "position")
    position = of.get("position", partial(_position, targets=targets))
    return GenEvalClause(
        of.need("class", Node.text), of.need("count", lambda n: n.integer(1)), of.get("color", Node.text), position
    )


def _question(node: Node) -> tuple[str, str]:
    parts = node.entries(Node.text)
    if len(parts) != 2:
        raise node.error(f"{len(parts)} entries; give [question, expected answer]")
    return parts[0], parts[1]


def _position(node: Node, targets: int) -> tuple[Relation, int]:
    parts = node.entries(lambda part: part)
    if len(parts) != 2:
        raise node.error(f"{len(parts)} entries; give [relation, index of an 'include' clause]")
    return parts[0].choice(RELATIONS), parts[1].integer(0, targets - 1)


def _concept(node: Node) -> Concept:
    of = node.fields("kind", "class_word", "token")
    kind = of.need("kind", lambda kind: kind.choice(CONCEPT_KINDS))
    return Concept(kind, of.get("class_word", Node.text), of.get("token", Node.text))


def _item_tree(item: ScoreItem, pack: PackBytes, path: str) -> Tree:
    references = [_image_tree(r, pack, f"{path}.references[{i}]") for i, r in enumerate(item.references)]
    reasoning, geneval, concept = item.reasoning, item.geneval, item.concept
    return present(
        image=None if item.image is None else _image_tree(item.image, pack, f"{path}.image"),
        prompt=item.prompt,
        references=references or None,
        reasoning=None if reasoning is None else _reasoning_tree(reasoning, f"{path}.reasoning"),
        geneval=None if geneval is None else _geneval_tree(geneval),
        concept=concept and present(kind=concept.kind, class_word=concept.class_word, token=concept.token),
        source_prompt=item.source_prompt,
    )


def _image_tree(image: ImageInput, pack: PackBytes, path: str) -> object:
    if isinstance(image, bytes):
        return pack(image)
    if isinstance(image, ImageRef):
        return {"digest": read_digest(Node(image.digest, f"{path}.digest"))}
    if not is_raw(image):
        raise Node(None, path).error(f"{image.dtype} {list(image.shape)}; a raw image is uint8 [H, W, 3] in RGB")
    return {"data": pack(np.ascontiguousarray(image).reshape(-1).data), "shape": list(image.shape)}


def _reasoning_tree(reasoning: Reasoning, path: str) -> Tree:
    truth = _truth(Node(reasoning.truth, f"{path}.truth"))
    return {"text": reasoning.text, "segments": list(reasoning.segments), "truth": list(truth)}


def _geneval_tree(geneval: GenEvalMetadata) -> Tree:
    include, exclude = ([_clause_tree(c) for c in clauses] for clauses in (geneval.include, geneval.exclude))
    questions = [list(question) for question in geneval.vqa_list]
    return present(tag=geneval.tag, include=include, exclude=exclude or None, vqa_list=questions or None)


def _clause_tree(clause: GenEvalClause) -> Tree:
    position = None if clause.position is None else list(clause.position)
    return present(**{"class": clause.class_name}, count=clause.count, color=clause.color, position=position)


def present(**fields: object) -> Tree:
    """The fields that are not None."""
    return {key: value for key, value in fields.items() if value is not None}

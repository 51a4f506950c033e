"""Records <-> the trees that JSON and msgpack carry (objects, lists, strings, numbers, and bytes as the format has it).

    request   {items: [item..], scorers: [name..], ensemble, weights: {name: w >= 0}, timeout_ms >= 1, request_id}
    item      {image: picture, prompt, references: [picture..], reasoning, geneval, concept}
    picture   encoded bytes, or {data: raw RGB bytes, shape: [H, W, 3]}
    reasoning {text, segments: [text..], truth: [0..1, one a segment]}
    geneval   {tag, include: [clause..], exclude: [clause..]}
    clause    {class, count >= 1, color, position: [relation, index of an `include` clause]}
    concept   {kind, class_word, token}
    response  {request_id, results: [{scores: {name: outcome}, reward: outcome or null}..]}
    outcome   {value, detail} or {error: {code, retryable, message}}
    error     {error: {code, retryable, message}}

Only `items` (one or more), the fields of `reasoning`, `tag`, `include`, `class`, `count` and `kind` are required.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from synod.contracts import (
    CONCEPT_KINDS,
    RELATIONS,
    Concept,
    GenEvalClause,
    GenEvalMetadata,
    ItemResult,
    Outcome,
    Picture,
    Reasoning,
    Relation,
    Score,
    ScoreFailure,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
)
from synod.errors import InvalidRequest, ScorerFailed, SynodError, error_of
from synod.reader import Node, each

Tree = dict[str, Any]
ReadBytes = Callable[[Node], bytes]
PackBytes = Callable[[bytes | memoryview], object]


def read_request(node: Node, read_bytes: ReadBytes) -> ScoreRequest:
    """Raises InvalidRequest with the path of the first field that is wrong."""
    of = node.fields("items", "scorers", "ensemble", "weights", "timeout_ms", "request_id")
    items = of.need("items", each(partial(_item, read_bytes=read_bytes)))
    if not items:
        raise InvalidRequest("items: empty; send at least one item")
    return ScoreRequest(
        items,
        of.get("scorers", each(Node.text)) or (),
        of.get("ensemble", Node.text),
        of.get("weights", _weights),
        of.get("timeout_ms", lambda limit: limit.integer(1)),
        of.get("request_id", Node.text),
    )


def read_response(node: Node) -> ScoreResponse:
    """Raises InvalidRequest with the path of the first field that is wrong."""
    of = node.fields("request_id", "results")
    return ScoreResponse(of.need("results", each(_result)), of.need("request_id", Node.text))


def read_error(node: Node) -> SynodError:
    """The error that a whole-request error body tells of. Raises InvalidRequest when it is no such body."""
    failure = node.fields("error").need("error", _failure)
    return error_of(failure.code, failure.message, retryable=failure.retryable)


def read_geneval(node: Node) -> GenEvalMetadata:
    """Raises InvalidRequest with the path of the first field that is wrong."""
    of = node.fields("tag", "include", "exclude")
    targets = len(of.need("include", each(lambda clause: clause)))
    clauses = each(partial(_clause, targets=targets))
    return GenEvalMetadata(of.need("tag", Node.text), of.need("include", clauses), of.get("exclude", clauses) or ())


def request_tree(request: ScoreRequest, pack: PackBytes) -> Tree:
    """Raises InvalidRequest for raw pictures that are not uint8 [H W 3], and for weights or truth out of range."""
    return _present(
        items=[_item_tree(item, pack, f"items[{i}]") for i, item in enumerate(request.items)],
        scorers=list(request.scorers),
        ensemble=request.ensemble,
        weights=None if request.weights is None else _weights(Node(request.weights, "weights")),
        timeout_ms=request.timeout_ms,
        request_id=request.request_id,
    )


def response_tree(response: ScoreResponse) -> Tree:
    """Never raises: a score that no format can carry (NaN or an array in its detail) is sent as a scorer failure."""
    results = [
        {
            "scores": {name: _outcome_tree(outcome) for name, outcome in result.scores.items()},
            "reward": None if result.reward is None else _outcome_tree(result.reward),
        }
        for result in response.results
    ]
    return {"request_id": response.request_id, "results": results}


def error_tree(error: SynodError) -> Tree:
    """The body of an answer that is an error as a whole."""
    return _outcome_tree(ScoreFailure.of(error))


def _weights(node: Node) -> dict[str, float]:
    return node.table(lambda weight: weight.number(0))


def _truth(node: Node) -> tuple[float, ...]:
    return node.entries(lambda entry: entry.number(0, 1))


def _item(node: Node, read_bytes: ReadBytes) -> ScoreItem:
    of = node.fields("image", "prompt", "references", "reasoning", "geneval", "concept")
    picture = partial(_picture, read_bytes=read_bytes)
    return ScoreItem(
        of.get("image", picture),
        of.get("prompt", Node.text),
        of.get("references", each(picture)) or (),
        of.get("reasoning", _reasoning),
        of.get("geneval", read_geneval),
        of.get("concept", _concept),
    )


def _picture(node: Node, read_bytes: ReadBytes) -> Picture:
    if not isinstance(node.value, Mapping):
        return read_bytes(node)
    of = node.fields("data", "shape")
    data, shape = of.need("data", read_bytes), of.need("shape", each(lambda side: side.integer(1)))
    if len(shape) != 3 or shape[2] != 3:
        raise node.error(f"shape {list(shape)}; a raw picture is [H, W, 3] in RGB")
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
    of = node.fields("class", "count", "color", "position")
    position = of.get("position", partial(_position, targets=targets))
    return GenEvalClause(
        of.need("class", Node.text), of.need("count", lambda n: n.integer(1)), of.get("color", Node.text), position
    )


def _position(node: Node, targets: int) -> tuple[Relation, int]:
    parts = node.entries(lambda part: part)
    if len(parts) != 2:
        raise node.error(f"{len(parts)} entries; give [relation, index of an 'include' clause]")
    return parts[0].choice(RELATIONS), parts[1].integer(0, targets - 1)


def _concept(node: Node) -> Concept:
    of = node.fields("kind", "class_word", "token")
    kind = of.need("kind", lambda kind: kind.choice(CONCEPT_KINDS))
    return Concept(kind, of.get("class_word", Node.text), of.get("token", Node.text))


def _result(node: Node) -> ItemResult:
    of = node.fields("scores", "reward")
    return ItemResult(of.need("scores", lambda scores: scores.table(_outcome)), of.get("reward", _outcome))


def _outcome(node: Node) -> Outcome:
    of = node.fields("value", "detail", "error")
    failure = of.get("error", _failure)
    if failure is None:
        return Score(of.need("value", Node.number), of.get("detail", lambda detail: detail.table(Node.plain)) or {})
    if len(of.children) > 1:
        raise node.error("an 'error' beside a value; give one of them")
    return failure


def _failure(node: Node) -> ScoreFailure:
    of = node.fields("code", "retryable", "message")
    return ScoreFailure(of.need("code", Node.text), of.need("message", Node.text), of.need("retryable", Node.boolean))


def _item_tree(item: ScoreItem, pack: PackBytes, path: str) -> Tree:
    references = [_picture_tree(r, pack, f"{path}.references[{i}]") for i, r in enumerate(item.references)]
    reasoning, geneval, concept = item.reasoning, item.geneval, item.concept
    return _present(
        image=None if item.image is None else _picture_tree(item.image, pack, f"{path}.image"),
        prompt=item.prompt,
        references=references or None,
        reasoning=None if reasoning is None else _reasoning_tree(reasoning, f"{path}.reasoning"),
        geneval=None if geneval is None else _geneval_tree(geneval),
        concept=concept and _present(kind=concept.kind, class_word=concept.class_word, token=concept.token),
    )


def _picture_tree(picture: Picture, pack: PackBytes, path: str) -> object:
    if isinstance(picture, bytes):
        return pack(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise Node(None, path).error(f"{picture.dtype} {list(picture.shape)}; a raw picture is uint8 [H, W, 3] in RGB")
    return {"data": pack(np.ascontiguousarray(picture).reshape(-1).data), "shape": list(picture.shape)}


def _reasoning_tree(reasoning: Reasoning, path: str) -> Tree:
    truth = _truth(Node(reasoning.truth, f"{path}.truth"))
    return {"text": reasoning.text, "segments": list(reasoning.segments), "truth": list(truth)}


def _geneval_tree(geneval: GenEvalMetadata) -> Tree:
    include, exclude = ([_clause_tree(c) for c in clauses] for clauses in (geneval.include, geneval.exclude))
    return _present(tag=geneval.tag, include=include, exclude=exclude or None)


def _clause_tree(clause: GenEvalClause) -> Tree:
    position = None if clause.position is None else list(clause.position)
    return _present(**{"class": clause.class_name}, count=clause.count, color=clause.color, position=position)


def _outcome_tree(outcome: Outcome) -> Tree:
    if isinstance(outcome, Score):
        try:
            return {
                "value": Node(outcome.value, "value").number(),
                "detail": Node(outcome.detail, "detail").table(Node.plain),
            }
        except InvalidRequest as error:
            outcome = ScoreFailure.of(ScorerFailed(f"the score cannot be sent: {error}"))
    message = outcome.message.encode(errors="replace").decode()
    return {"error": {"code": outcome.code, "retryable": outcome.retryable, "message": message}}


def _present(**fields: object) -> Tree:
    return {key: value for key, value in fields.items() if value is not None}

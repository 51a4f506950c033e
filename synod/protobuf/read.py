"""Messages -> trees, of the same keys as in the other formats. A oneof that is unset becomes an object without keys."""

from __future__ import annotations

from typing import Any

from synod.formats import load_json
from synod.protobuf.words import word
from synod.v1 import reward_pb2 as pb

Tree = dict[str, Any]


def request(m: pb.ScoreRequest) -> Tree:
    return {
        "items": [_item(item) for item in m.items],
        "scorers": list(m.scorers),
        "weights": dict(m.weights.by_scorer) if m.HasField("weights") else None,
        **_given(m, "ensemble", "timeout_ms", "request_id"),
    }


def _item(m: pb.ScoreItem) -> Tree:
    return {
        "image": image(m.image) if m.HasField("image") else None,
        "references": [image(reference) for reference in m.references],
        "reasoning": _reasoning(m.reasoning) if m.HasField("reasoning") else None,
        "geneval": _geneval(m.geneval) if m.HasField("geneval") else None,
        "concept": _concept(m.concept) if m.HasField("concept") else None,
        **_given(m, "prompt", "source_prompt"),
    }


def image(m: pb.Image) -> object:
    match m.WhichOneof("source"):
        case "encoded":
            return m.encoded
        case "raw":
            return {"data": m.raw.data, "shape": [m.raw.height, m.raw.width, 3]}
        case "digest":
            return {"digest": m.digest}
    return {}


def _reasoning(m: pb.Reasoning) -> Tree:
    return {"text": m.text, "segments": list(m.segments), "truth": list(m.truth)}


def _geneval(m: pb.GenEvalMetadata) -> Tree:
    include, exclude = (list(map(_clause, clauses)) for clauses in (m.include, m.exclude))
    questions = [[one.question, one.answer] for one in m.vqa_list]
    return {"tag": m.tag, "include": include, "exclude": exclude, "vqa_list": questions}


def _clause(m: pb.GenEvalClause) -> Tree:
    position = [word(pb.Relation, m.position.relation), m.position.target] if m.HasField("position") else None
    return {"class": m.class_name, "count": m.count, "position": position, **_given(m, "color")}


def _concept(m: pb.Concept) -> Tree:
    return {"kind": word(pb.ConceptKind, m.kind), **_given(m, "class_word", "token")}


def response(m: pb.ScoreResponse) -> Tree:
    return {"request_id": m.request_id, "results": [_result(result) for result in m.results]}


def _result(m: pb.ItemResult) -> Tree:
    scores = {name: _outcome(outcome) for name, outcome in m.scores.items()}
    return {"scores": scores, "reward": _outcome(m.reward) if m.HasField("reward") else None}


def _outcome(m: pb.Outcome) -> Tree:
    match m.WhichOneof("kind"):
        case "score":
            detail = load_json(m.score.detail_json.encode()) if m.score.detail_json else {}
            origin = _origin(m.score.origin) if m.score.HasField("origin") else None
            return {"value": m.score.value, "detail": detail, "origin": origin}
        case "failure":
            return {"error": _failure(m.failure)}
    return {}


def _origin(m: pb.Origin) -> Tree:
    return {"model": m.model, "preprocessing": m.preprocessing, **_given(m, "rule_set")}


def _failure(m: pb.ScoreFailure | pb.Error) -> Tree:
    return {"code": m.code, "retryable": m.retryable, "message": m.message}


def error(m: pb.Error) -> Tree:
    return {"error": {**_failure(m), "digests": list(m.digests), **_given(m, "retry_after_s")}}


def part(m: pb.ScoreStreamResponse) -> Tree:
    named = {"request_id": m.request_id}
    match m.WhichOneof("part"):
        case "scored":
            scored = {"index": m.scored.index, "scorer": m.scored.scorer, "outcome": _outcome(m.scored.outcome)}
            return named | {"scored": scored}
        case "rewards":
            rewards = [_outcome(one.outcome) if one.HasField("outcome") else None for one in m.rewards.rewards]
            return named | {"rewards": rewards}
        case "error":
            return named | error(m.error)
    return named


def catalogue(m: pb.ListScorersResponse) -> Tree:
    names = ("name", "low", "high", "source", "summary")
    loaded = ("model", "device", "dtype", "load_s", "parameter_bytes")
    scorers = [
        {"needs": list(one.needs), **{name: getattr(one, name) for name in names}, **_given(one, *loaded)}
        for one in m.scorers
    ]
    ensembles = {name: _ensemble(ensemble) for name, ensemble in m.ensembles.items()}
    return {"scorers": scorers, "ensembles": ensembles, "limits": dict(m.limits)}


def _ensemble(m: pb.EnsembleInfo) -> Tree:
    tree: Tree = {
        "by_kind": {kind: dict(weights.by_scorer) for kind, weights in m.by_kind.items()},
        "missing": m.missing,
        "clip_at_zero": m.clip_at_zero,
    }
    return tree | ({"weights": dict(m.weights.by_scorer)} if m.HasField("weights") else {})


def _given(m: Any, *names: str) -> Tree:
    return {name: getattr(m, name) for name in names if m.HasField(name)}


def stream_request(m: pb.ScoreStreamRequest) -> Tree:
    return request(m.request)


def put_images(m: pb.PutImagesRequest) -> Tree:
    return {"images": [image(one) for one in m.images]}


def digests(m: pb.PutImagesResponse) -> Tree:
    return {"digests": list(m.digests)}

"""Trees -> messages."""

from __future__ import annotations

from typing import Any

from synod.formats import dump_json
from synod.protobuf.words import number
from synod.v1 import reward_pb2 as pb

Tree = dict[str, Any]


def request(tree: Tree) -> pb.ScoreRequest:
    weights = tree.get("weights")
    return pb.ScoreRequest(
        items=map(_item, tree["items"]),
        scorers=tree["scorers"],
        ensemble=tree.get("ensemble"),
        weights=None if weights is None else pb.Weights(by_scorer=weights),
        timeout_ms=tree.get("timeout_ms"),
        request_id=tree.get("request_id"),
    )


def _item(tree: Tree) -> pb.ScoreItem:
    content, reasoning, geneval, concept = (tree.get(key) for key in ("image", "reasoning", "geneval", "concept"))
    return pb.ScoreItem(
        image=None if content is None else image(content),
        prompt=tree.get("prompt"),
        references=map(image, tree.get("references") or ()),
        reasoning=None if reasoning is None else pb.Reasoning(**reasoning),
        geneval=None if geneval is None else _geneval(geneval),
        concept=None if concept is None else pb.Concept(**concept | {"kind": number(pb.ConceptKind, concept["kind"])}),
        source_prompt=tree.get("source_prompt"),
    )


def image(content: Any) -> pb.Image:
    if isinstance(content, bytes):
        return pb.Image(encoded=content)
    if "digest" in content:
        return pb.Image(digest=content["digest"])
    height, width, _ = content["shape"]
    return pb.Image(raw=pb.RawImage(data=content["data"], height=height, width=width))


def _geneval(tree: Tree) -> pb.GenEvalMetadata:
    include, exclude = (map(_clause, tree.get(key) or ()) for key in ("include", "exclude"))
    questions = (pb.GenEvalQuestion(question=q, answer=a) for q, a in tree.get("vqa_list") or ())
    return pb.GenEvalMetadata(tag=tree["tag"], include=include, exclude=exclude, vqa_list=questions)


def _clause(tree: Tree) -> pb.GenEvalClause:
    message = pb.GenEvalClause(class_name=tree["class"], count=tree["count"], color=tree.get("color"))
    if tree.get("position") is not None:
        relation, target = tree["position"]
        message.position.CopyFrom(pb.Position(relation=number(pb.Relation, relation), target=target))
    return message


def response(tree: Tree) -> pb.ScoreResponse:
    return pb.ScoreResponse(results=map(_result, tree["results"]), request_id=tree["request_id"])


def _result(tree: Tree) -> pb.ItemResult:
    scores = {name: _outcome(outcome) for name, outcome in tree["scores"].items()}
    return pb.ItemResult(scores=scores, reward=None if tree["reward"] is None else _outcome(tree["reward"]))


def _outcome(tree: Tree) -> pb.Outcome:
    if "error" in tree:
        return pb.Outcome(failure=pb.ScoreFailure(**tree["error"]))
    detail, origin = tree["detail"], tree.get("origin")
    score = pb.Score(
        value=tree["value"],
        detail_json=dump_json(detail).decode() if detail else "",
        origin=None if origin is None else pb.Origin(**origin),
    )
    return pb.Outcome(score=score)


def error(tree: Tree) -> pb.Error:
    return pb.Error(**tree["error"])


def part(tree: Tree) -> pb.ScoreStreamResponse:
    message = pb.ScoreStreamResponse(request_id=tree["request_id"])
    if "scored" in tree:
        scored = tree["scored"]
        outcome = _outcome(scored["outcome"])
        message.scored.CopyFrom(pb.ScoredItem(index=scored["index"], scorer=scored["scorer"], outcome=outcome))
    elif "rewards" in tree:
        rewards = [pb.Reward(outcome=None if one is None else _outcome(one)) for one in tree["rewards"]]
        message.rewards.CopyFrom(pb.Rewards(rewards=rewards))
    else:
        message.error.CopyFrom(error(tree))
    return message


def catalogue(tree: Tree) -> pb.ListScorersResponse:
    ensembles = {name: _ensemble(ensemble) for name, ensemble in tree["ensembles"].items()}
    scorers = [pb.ScorerInfo(**scorer) for scorer in tree["scorers"]]
    return pb.ListScorersResponse(scorers=scorers, ensembles=ensembles, limits=tree["limits"])


def _ensemble(tree: Tree) -> pb.EnsembleInfo:
    return pb.EnsembleInfo(
        weights=pb.Weights(by_scorer=tree["weights"]) if "weights" in tree else None,
        missing=tree["missing"],
        by_kind={kind: pb.Weights(by_scorer=by_scorer) for kind, by_scorer in tree["by_kind"].items()},
        clip_at_zero=tree["clip_at_zero"],
    )


def stream_request(tree: Tree) -> pb.ScoreStreamRequest:
    return pb.ScoreStreamRequest(request=request(tree))


def put_images(tree: Tree) -> pb.PutImagesRequest:
    return pb.PutImagesRequest(images=map(image, tree["images"]))


def digests(tree: Tree) -> pb.PutImagesResponse:
    return pb.PutImagesResponse(digests=tree["digests"])

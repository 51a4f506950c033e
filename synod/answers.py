"""Answers <-> the trees that all formats carry.

    response  {request_id, results: [{scores: {name: outcome}, reward: outcome or null}..]}
    outcome   {value, detail, origin} or {error: {code, retryable, message}}
    origin    {model, preprocessing, rule_set}
    error     {error: {code, retryable, message, digests: [digest..], retry_after_s}}
    part      {request_id, scored: {index, scorer, outcome}}, {request_id, rewards: [outcome or null..]}
              or {request_id, error: as above}
    catalogue {scorers: [{name, needs: [field..], low, high, source, summary}..],
               ensembles: {name: {weights: {scorer: w >= 0}, by_kind: {kind: as weights}, missing, clip_at_zero}},
               limits: {name: n >= 0}}
    digests   {digests: [digest..]}

`origin`, `rule_set`, an error's `digests` and `retry_after_s` may be absent: older services do not send them. An
ensemble's `weights` are absent where it has weights by concept kind only.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from synod.contracts import (
    Catalogue,
    EnsembleInfo,
    ItemResult,
    Origin,
    Outcome,
    Part,
    PutImagesResponse,
    RequestError,
    Rewards,
    Score,
    ScoredItem,
    ScoreFailure,
    ScoreResponse,
    ScorerInfo,
)
from synod.errors import InvalidRequest, ScorerFailed, SynodError, UnknownImage, error_of
from synod.reader import Fields, Node, each
from synod.tree import Tree, present, read_digest, read_weights

MISSING: Final = ("fail", "renormalise")


def read_response(node: Node) -> ScoreResponse:
    """Raises InvalidRequest with the path of the first field that is wrong."""
    of = node.fields("request_id", "results")
    return ScoreResponse(of.need("results", each(_result)), of.need("request_id", Node.text))


def read_error(node: Node) -> SynodError:
    """The error that a whole-request error body tells of. Raises InvalidRequest when it is no such body."""
    return node.fields("error").need("error", _error)


def read_part(node: Node) -> Part:
    """Raises InvalidRequest with the path of the first field that is wrong."""
    of = node.fields("request_id", "scored", "rewards", "error")
    request_id = of.need("request_id", Node.text)
    given = [key for key in ("scored", "rewards", "error") if key in of.values]
    if len(given) != 1:
        raise node.error(f"{len(given)} of 'scored', 'rewards' and 'error'; a part is one of them")
    if given == ["scored"]:
        scored = of.need("scored", lambda scored: scored.fields("index", "scorer", "outcome"))
        return _scored(request_id, scored)
    if given == ["rewards"]:
        return Rewards(request_id, of.need("rewards", each(lambda one: None if one.value is None else _outcome(one))))
    return RequestError(request_id, of.need("error", _error))


def read_digests(node: Node) -> PutImagesResponse:
    """Raises InvalidRequest with the path of the first field that is wrong."""
    return PutImagesResponse(node.fields("digests").need("digests", each(read_digest)))


def read_catalogue(node: Node) -> Catalogue:
    """Raises InvalidRequest with the path of the first field that is wrong."""
    of = node.fields("scorers", "ensembles", "limits")
    return Catalogue(
        of.need("scorers", each(_scorer)),
        of.get("ensembles", lambda ensembles: ensembles.table(_ensemble)) or {},
        of.get("limits", lambda limits: limits.table(lambda limit: limit.integer(0))) or {},
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
    body = _failure_tree(ScoreFailure.of(error))
    digests = list(error.digests) if isinstance(error, UnknownImage) else None
    return {"error": present(**body["error"], digests=digests or None, retry_after_s=error.retry_after_s)}


def part_tree(part: Part) -> Tree:
    """Never raises, as `response_tree`."""
    named = {"request_id": part.request_id}
    if isinstance(part, ScoredItem):
        return named | {"scored": {"index": part.index, "scorer": part.scorer, "outcome": _outcome_tree(part.outcome)}}
    if isinstance(part, Rewards):
        return named | {"rewards": [None if one is None else _outcome_tree(one) for one in part.rewards]}
    return named | error_tree(part.error)


def digests_tree(response: PutImagesResponse) -> Tree:
    """Never raises."""
    return {"digests": list(response.digests)}


def catalogue_tree(catalogue: Catalogue) -> Tree:
    """Never raises."""
    tree = asdict(catalogue)
    ensembles = {name: present(**ensemble) for name, ensemble in tree["ensembles"].items()}
    return {**tree, "scorers": [present(**scorer) for scorer in tree["scorers"]], "ensembles": ensembles}


def _result(node: Node) -> ItemResult:
    of = node.fields("scores", "reward")
    return ItemResult(of.need("scores", lambda scores: scores.table(_outcome)), of.get("reward", _outcome))


def _scored(request_id: str, of: Fields) -> ScoredItem:
    index, scorer = of.need("index", lambda index: index.integer(0)), of.need("scorer", Node.text)
    return ScoredItem(request_id, index, scorer, of.need("outcome", _outcome))


def _outcome(node: Node) -> Outcome:
    of = node.fields("value", "detail", "origin", "error")
    failure = of.get("error", _failure)
    if failure is None:
        detail = of.get("detail", lambda detail: detail.table(Node.json_value)) or {}
        return Score(of.need("value", Node.number), detail, of.get("origin", _origin))
    if len(of.values) > 1:
        raise node.error("an 'error' beside a value; give one of them")
    return failure


def _origin(node: Node) -> Origin:
    of = node.fields("model", "preprocessing", "rule_set")
    return Origin(of.need("model", Node.text), of.need("preprocessing", Node.text), of.get("rule_set", Node.text))


def _failure(node: Node) -> ScoreFailure:
    return _failed(node.fields("code", "retryable", "message"))


def _failed(of: Fields) -> ScoreFailure:
    return ScoreFailure(of.need("code", Node.text), of.need("message", Node.text), of.need("retryable", Node.boolean))


def _error(node: Node) -> SynodError:
    of = node.fields("code", "retryable", "message", "digests", "retry_after_s")
    failure = _failed(of)
    digests = of.get("digests", each(read_digest)) or ()
    wait_s = of.get("retry_after_s", lambda seconds: seconds.number(0))
    return error_of(failure.code, failure.message, retryable=failure.retryable, digests=digests, retry_after_s=wait_s)


def _scorer(node: Node) -> ScorerInfo:
    of = node.fields(*ScorerInfo.__slots__)
    low, high = of.need("low", Node.number), of.need("high", Node.number)
    name, needs = of.need("name", Node.text), of.need("needs", each(Node.text))
    return ScorerInfo(
        name,
        needs,
        low,
        high,
        of.need("source", Node.text),
        of.need("summary", Node.text),
        model=of.get("model", Node.text),
        device=of.get("device", Node.text),
        dtype=of.get("dtype", Node.text),
        load_s=of.get("load_s", lambda seconds: seconds.number(0)),
        parameter_bytes=of.get("parameter_bytes", lambda size: size.integer(0)),
    )


def _ensemble(node: Node) -> EnsembleInfo:
    of = node.fields("weights", "by_kind", "missing", "clip_at_zero")
    return EnsembleInfo(
        of.get("weights", read_weights),
        of.need("by_kind", lambda kinds: kinds.table(read_weights)),
        of.need("missing", lambda missing: missing.choice(MISSING)),
        of.need("clip_at_zero", Node.boolean),
    )


def _outcome_tree(outcome: Outcome) -> Tree:
    if isinstance(outcome, Score):
        try:
            return present(
                value=Node(outcome.value, "value").number(),
                detail=Node(outcome.detail, "detail").table(Node.json_value),
                origin=_origin_tree(outcome.origin),
            )
        except InvalidRequest as error:
            outcome = ScoreFailure.of(ScorerFailed(f"the score cannot be sent: {error}"))
    return _failure_tree(outcome)


def _origin_tree(origin: Origin | None) -> Tree | None:
    if origin is None:
        return None
    return present(model=origin.model, preprocessing=origin.preprocessing, rule_set=origin.rule_set)


def _failure_tree(failure: ScoreFailure) -> Tree:
    message = failure.message.encode(errors="replace").decode()
    return {"error": {"code": failure.code, "retryable": failure.retryable, "message": message}}

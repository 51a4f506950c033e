"""Serve the endpoints of other reward servers: Tencent UniRL's `/score` and OpenRLHF's `remote_url`. JSON only.

Both read their body into a ScoreRequest, call the gateway and write their own response. Images are base64 (never
pickle, a path or a URL). A missing score is never a number: UniRL's protocol has `errors` for it; OpenRLHF's has no
field, so the whole response is a typed error with its status. Unknown fields are ignored, as both servers do; videos,
CUDA handles and gradients are refused.

Neither client can send a bearer token, but both send the credentials in their URL: `http://any:TOKEN@service:8000`
arrives as Basic credentials, whose password is used as the token.
"""

from __future__ import annotations

import asyncio
import binascii
import time
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request, Response

from services.gateway.core import Gateway
from services.gateway.disconnect import cancel_on_disconnect
from services.gateway.http import ErrorBoundaryRoute, authenticate, gateway_of, json_response, opened, read_body
from services.gateway.quota import Caller
from services.settings import DEFAULT_TIMEOUT_MS, CompatSettings
from synod.contracts import ITEM_FIELDS, ImageData, ImageInput, Outcome, Score, ScoreFailure, ScoreItem, ScoreRequest
from synod.errors import InvalidRequest, PayloadTooLarge, UnknownScorer
from synod.formats import load_json, read_base64
from synod.reader import Node, each, quote
from synod.records import read_item
from synod.scoring import geneval
from synod.values import values_of

PROTOCOL = "1"
IDENTITY = ("request_id", "sample_id", "group_id", "source_rank", "policy_version", "idempotency_key")
_METADATA = tuple(name for name in ITEM_FIELDS if name not in ("image", "prompt"))
_REFUSED = ("image_ipc", "video_b64", "video_path")


@dataclass(frozen=True, slots=True)
class UniRLRequest:
    """One request of UniRL's batch: its item, the scorers and ensembles it names, and the fields to send back."""

    item: ScoreItem
    rewards: tuple[str, ...]
    identity: Mapping[str, Any]


def routers(settings: CompatSettings) -> list[APIRouter]:
    """Return the endpoints that the settings enable."""
    return [*([_unirl()] if settings.unirl else []), *([_openrlhf(settings.openrlhf)] if settings.openrlhf else [])]


def _unirl() -> APIRouter:
    router = APIRouter(route_class=ErrorBoundaryRoute)

    @router.post("/score", response_class=Response, summary="Tencent UniRL's reward service: score")
    async def score(http: Request) -> Response:
        """`{requests: [{history: [{text, image_b64}], required_rewards, metadata}]}` -> `{results, errors}`."""
        gateway, caller = gateway_of(http), _authenticate(http)
        requests = await asyncio.to_thread(read_unirl, await read_body(http))
        named = {name for one in requests for name in one.rewards}
        items = tuple(one.item for one in requests)
        ensemble = next((name for name in sorted(named) if name in gateway.ensembles), None)
        whole = ScoreRequest(items, tuple(sorted(named - gateway.ensembles.keys())), ensemble)
        opened(http).accept(whole, gateway.backend.specs, gateway.ensembles)
        outcomes = await cancel_on_disconnect(http, _score_all(gateway, requests, caller))
        return json_response(unirl_response(requests, outcomes))

    @router.get("/rewards", response_class=Response, summary="Tencent UniRL's reward service: rewards")
    async def rewards(http: Request) -> Response:
        """Return the names that `required_rewards` may hold."""
        _authenticate(http)
        return json_response({"rewards": sorted(_served(gateway_of(http)))})

    @router.get("/health", response_class=Response, summary="Tencent UniRL's reward service: health")
    async def health(http: Request) -> Response:
        """Return 200 and the rewards served. UniRL checks the names; readiness is `/readyz`."""
        _authenticate(http)
        return json_response({"status": "ok", "rewards": {name: ["ok"] for name in sorted(_served(gateway_of(http)))}})

    return router


def _openrlhf(reward: str) -> APIRouter:
    router = APIRouter(route_class=ErrorBoundaryRoute)

    @router.post("/openrlhf", response_class=Response, summary="OpenRLHF's remote reward model")
    async def rewards(http: Request) -> Response:
        """`{query, prompts, labels}` -> `{rewards}`; if a score is missing, the response is its error."""
        gateway, caller = gateway_of(http), _authenticate(http)
        items = await asyncio.to_thread(read_openrlhf, await read_body(http))
        request = opened(http).accept(_request(gateway, items, (reward,)), gateway.backend.specs, gateway.ensembles)
        values = values_of(await cancel_on_disconnect(http, gateway.score(request, caller)), "raise")
        return json_response({"rewards": list(values.scores[reward] if request.scorers else values.rewards)})

    return router


def read_unirl(body: bytes) -> list[UniRLRequest]:
    """Read UniRL's batch. Raises InvalidRequest with the path of the first invalid field."""
    of = _parse(body)
    version = of.get("protocol_version", Node.text) or PROTOCOL
    if version != PROTOCOL:
        raise InvalidRequest(f"protocol_version: {quote(version)}; this service speaks '{PROTOCOL}'")
    if of.get("grad_mode", Node.boolean):
        raise InvalidRequest("grad_mode: true; this service computes no gradients, send false")
    return list(of.need("requests", each(_unirl_request)))


def unirl_response(requests: Sequence[UniRLRequest], outcomes: Sequence[Mapping[str, Outcome]]) -> dict[str, Any]:
    """Return UniRL's response: `results[i][name]` is {"score": value}, or else `errors[i][name]` gives the reason."""
    return {
        "protocol_version": PROTOCOL,
        "results": [{n: {"score": o.value} for n, o in one.items() if isinstance(o, Score)} for one in outcomes],
        "errors": [
            {n: f"{o.code}: {o.message}" for n, o in one.items() if isinstance(o, ScoreFailure)} for one in outcomes
        ],
        "identities": [{**one.identity, "scorer_version": None} for one in requests],
    }


def read_openrlhf(body: bytes) -> tuple[ScoreItem, ...]:
    """Return one item per query. Raises InvalidRequest with the path of the first invalid field."""
    of = _parse(body)
    queries = of.need("query", each(lambda query: query))
    prompts = of.need("prompts", each(Node.text))
    labels = of.get("labels", each(lambda label: label)) or tuple(Node(None, "labels") for _ in queries)
    if not len(queries) == len(prompts) == len(labels):
        raise InvalidRequest(
            f"{len(queries)} query, {len(prompts)} prompts, {len(labels)} labels; the numbers must be equal"
        )
    if not queries:
        raise InvalidRequest("query: empty; send at least one query")
    return tuple(map(_rollout, queries, prompts, labels))


async def _score_all(gateway: Gateway, requests: Sequence[UniRLRequest], caller: Caller) -> list[dict[str, Outcome]]:
    """Return each request's outcomes by reward. Requests for the same scorers are scored together, ensembles alone.

    One such group is scored after another, within one timeout: at once they would compete for their caller's quota.
    Raises UnknownScorer, and what `Gateway.score` raises.
    """
    if len(requests) > gateway.limits.max_items:
        raise PayloadTooLarge(
            f"{len(requests)} requests, the limit is {gateway.limits.max_items}; lower UniRL's request_batch_size"
        )
    found: list[dict[str, Outcome]] = [{} for _ in requests]
    deadline_s = time.monotonic() + DEFAULT_TIMEOUT_MS / 1000
    for names, indexes in _by_rewards(gateway, requests).items():
        request = _request(gateway, tuple(requests[i].item for i in indexes), names)
        left_ms = int(1000 * (deadline_s - time.monotonic()))
        response = await gateway.score(replace(request, timeout_ms=max(1, left_ms)), caller)
        for i, result in zip(indexes, response.results, strict=True):
            for name in names:
                outcome = result.scores[name] if request.scorers else result.reward
                assert outcome is not None
                found[i][name] = outcome
    return found


def _by_rewards(gateway: Gateway, requests: Sequence[UniRLRequest]) -> dict[tuple[str, ...], list[int]]:
    """Return the indexes of the requests for each set of scorers and for each ensemble."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, one in enumerate(requests):
        scorers = tuple(sorted(name for name in set(one.rewards) if name in gateway.backend.specs))
        alone = sorted(set(one.rewards) - set(scorers))
        for name in alone:
            if name not in gateway.ensembles:
                served = ", ".join(sorted(_served(gateway)))
                raise UnknownScorer(
                    f"requests[{i}].required_rewards: no reward {quote(name)}; this service has {served}"
                )
        for names in ((scorers,) if scorers else ()) + tuple((name,) for name in alone):
            groups.setdefault(names, []).append(i)
    return groups


def _request(gateway: Gateway, items: tuple[ScoreItem, ...], names: tuple[str, ...]) -> ScoreRequest:
    """Return the request for `names`: scorers, or one ensemble."""
    if names[0] in gateway.backend.specs:
        return ScoreRequest(items, names)
    return ScoreRequest(items, ensemble=names[0])


def _served(gateway: Gateway) -> set[str]:
    return {*gateway.backend.specs, *gateway.ensembles}


def _unirl_request(of: Node) -> UniRLRequest:
    if of.get("scorer_version", Node.text) is not None:
        raise of.error("'scorer_version' cannot be pinned in this service; remove expected_scorer_version")
    rewards = of.need("required_rewards", each(Node.text))
    identity = {name: of.get(name, Node.json_value) for name in IDENTITY}
    return UniRLRequest(_with_history(of.get("metadata", _metadata) or ScoreItem(), of), rewards, identity)


def _with_history(item: ScoreItem, of: Node) -> ScoreItem:
    """Add the history to an item: the last turn is scored, and images of earlier turns are references."""
    turns = of.need("history", each(_turn))
    if not turns:
        raise of.error("'history' is empty; give a turn with its text and image_b64")
    *earlier, (text, image) = turns
    references = tuple(earlier_image for _, earlier_image in earlier if earlier_image is not None)
    return replace(item, image=image, prompt=text or None, references=(*references, *item.references))


def _turn(of: Node) -> tuple[str, ImageData | None]:
    for name in _REFUSED:
        if of.get(name, Node.text) is not None:
            raise of.error(f"'{name}' is not supported; send image_b64")
    return of.need("text", Node.text), of.get("image_b64", read_base64)


def _metadata(node: Node) -> ScoreItem:
    """Read an item's fields, and GenEval's own at the top level; ignore the rest, which is for the trainer."""
    given: Mapping[str, Any] = node.table(lambda child: child.value)
    if given.get("geneval") is None and geneval.is_metadata(given):
        given = geneval.item_fields(given)
    return read_item(Node({name: given[name] for name in _METADATA if name in given}, node.path), read_base64)


def _rollout(query: Node, prompt: str, label: Node) -> ScoreItem:
    """Return the item of one rollout.

    A query is the text of prompt and answer, or {"image": base64} for a generated image. A label that is an object, or
    the JSON text of one, gives the item's fields; the answer becomes the text of its `reasoning`.
    """
    fields = {"prompt": prompt or None, **_label(label)}
    image: ImageInput | None = None
    if isinstance(query.value, Mapping):
        image = query.need("image", read_base64)
    else:
        answer = query.text().removeprefix(prompt)
        if isinstance(fields.get("reasoning"), Mapping):
            fields["reasoning"] = {"text": answer, **fields["reasoning"]}
    item = read_item(Node(fields, label.path), read_base64)
    return item if image is None else replace(item, image=image)


def _label(label: Node) -> dict[str, Any]:
    value = label.value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = load_json(value.encode(errors="surrogatepass"))
        except (ValueError, RecursionError) as error:
            raise label.error(f"the text starts like a JSON object and is not valid JSON ({error})") from None
    return dict(value) if isinstance(value, Mapping) else {}


def _parse(body: bytes) -> Node:
    try:
        return Node(load_json(body))
    except (ValueError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise InvalidRequest(f"the body is not valid JSON: {why}") from None


def _authenticate(http: Request) -> Caller:
    """Return the caller, by a bearer token or by the password of Basic credentials."""
    kind, _, word = http.headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return authenticate(http, "score")
    try:
        password = b64decode(word.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        password = ""
    return authenticate(http, "score", f"Bearer {password}")

"""`synod score` and `synod replay` after argument parsing. Each returns its exit status."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from synod.client import SynodClient
from synod.codec import JSON
from synod.contracts import Score, ScoreRequest, ScoreResponse
from synod.errors import SettingsError, SynodError
from synod.scoring import show
from synod.scoring.compare import Comparison, Pair, compare, status
from synod.scoring.inputs import Loaded, Source
from synod.scoring.log import Line, ScoreLog, failures, outcomes, result_tree
from synod.scoring.run import Scored, score_all


def score_to_screen(client: SynodClient, sources: Sequence[Source], template: ScoreRequest, *, as_json: bool) -> int:
    """Print a row per item, or the whole response as JSON. `template` is the request without items."""
    scored = list(show.progress(score_all(client, sources, template), len(sources)))
    results = [one.result for one in scored if one.result is not None]
    if as_json:
        print(JSON.encode_response(ScoreResponse(tuple(results), "")).decode())
    else:
        names = dict.fromkeys(name for result in results for name in outcomes(result))
        cells = [[show.format_outcome(outcomes(result).get(name)) for name in names] for result in results]
        images = [str(source.fields.get("image", source.label)) for source in sources]
        show.print_table(["IMAGE", *names], [[image, *row] for image, row in zip(images, cells, strict=True)])
    failed = [_failure_line(one, name) for one in scored if one.result for name in failures(one.result)]
    for line in failed:
        show.notify(line)
    return 1 if failed else 0


def score_to_log(client: SynodClient, sources: Sequence[Source], template: ScoreRequest, out: Path) -> int:
    """Append a line for each item that has none. `template` is the request without items.

    Failures in lines of earlier runs also give status 1: they are final until their lines are removed. Raises
    SynodError when the service becomes unavailable; the log keeps what was scored.
    """
    logged, logged_failed = 0, 0
    failed: Counter[str] = Counter()
    unfinished: list[str] = []
    with ScoreLog(out) as log:
        if log.truncated:
            show.notify(f"the last line of {out} is incomplete; its item is scored again")

        def is_logged(loaded: Loaded) -> bool:
            nonlocal logged_failed
            codes = log.pop_logged(loaded, template)
            failed.update(codes or ())
            logged_failed += bool(codes)
            return codes is not None

        try:
            for one in show.progress(score_all(client, sources, template, is_logged), len(sources)):
                if one.result is None:
                    logged += 1
                    continue
                lost = failures(one.result)
                if any(failure.retryable for failure in lost.values()):
                    name = next(name for name, failure in lost.items() if failure.retryable)
                    unfinished.append(_failure_line(one, name))
                    continue
                log.write(one.loaded, template, one.result)
                failed.update(failure.code for failure in lost.values())
        except SynodError as error:
            raise type(error)(f"{error}\n{out} keeps what was scored; run the command again to continue") from None
    new = len(sources) - logged - len(unfinished)
    show.notify(f"{out}: {new} items scored, {logged} already logged, {_failure_counts(failed)}")
    if logged_failed:
        show.notify(
            f"{logged_failed} of the logged items failed and are not scored again while {out} holds their lines; "
            'remove the lines that contain "error" and run the command again'
        )
    if unfinished:
        show.notify(
            f"{len(unfinished)} items failed temporarily and have no line; run the command again. "
            f"The first: {unfinished[0]}"
        )
    return 1 if failed or unfinished else 0


def replay(
    client: SynodClient,
    lines: Sequence[Line],
    names: Mapping[str, str],
    *,
    ensemble: str | None,
    tolerance: float,
    out: Path | None,
    as_json: bool,
) -> int:
    """Score the log's items again and compare them with the log.

    `names` maps scorers of the log to those of the service; empty means the log's own. Returns 1 when an item that had
    a value has none now. Raises SettingsError for a log that cannot be compared.
    """
    names = names or {name: name for name in dict.fromkeys(name for line in lines for name in line.result.scores)}
    ensemble = ensemble or _ensemble(lines)
    template = ScoreRequest((), tuple(dict.fromkeys(names.values())), ensemble)
    if not lines or (not template.scorers and ensemble is None):
        raise SettingsError("the log holds no scores; give one that `synod score --out` wrote")
    scored = list(show.progress(score_all(client, [line.source for line in lines], template), len(lines)))
    if out is not None:
        with ScoreLog(out) as log:
            for line, one in zip(lines, scored, strict=True):
                assert one.result is not None
                log.write(one.loaded, template, one.result, before=result_tree(line.result))
    compared = [*names.items(), *([("reward", "reward")] if ensemble is not None else [])]
    found = {old: compare(_pairs(lines, scored, old, new), tolerance) for old, new in compared}
    if as_json:
        print(json.dumps({name: _tree(one) for name, one in found.items()}, indent=2))
    else:
        show.print_comparisons(found)
    return int(any(isinstance(pair.before, Score) for one in found.values() for pair in one.status_changed))


def _pairs(lines: Sequence[Line], scored: Sequence[Scored], old: str, new: str) -> list[Pair]:
    pairs = []
    for line, one in zip(lines, scored, strict=True):
        assert one.result is not None
        before, after = outcomes(line.result).get(old), outcomes(one.result).get(new)
        if before is not None and after is not None:
            pairs.append(Pair(line.source.label, before, after))
    return pairs


def _ensemble(lines: Sequence[Line]) -> str | None:
    names = sorted({line.ensemble for line in lines if line.ensemble is not None})
    if len(names) > 1:
        raise SettingsError(f"the log holds rewards of {', '.join(names)}; select one of them with --ensemble")
    return names[0] if names else None


def _failure_line(one: Scored, name: str) -> str:
    assert one.result is not None
    return f"{one.loaded.source.label}: {name}: {failures(one.result)[name].message}"


def _failure_counts(failed: Mapping[str, int]) -> str:
    if not failed:
        return "no failures"
    return f"{sum(failed.values())} failures ({', '.join(f'{code}: {n}' for code, n in sorted(failed.items()))})"


def _tree(one: Comparison) -> dict[str, Any]:
    changes = [{"item": p.label, "before": status(p.before), "after": status(p.after)} for p in one.status_changed]
    return {**asdict(one), "status_changed": changes}

"""`synod score` and `synod replay`, their arguments read. Each returns the exit status: 1 when a score failed."""

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
from synod.scoring.log import Line, ScoreLog, answer, failures, outcomes
from synod.scoring.run import Scored, score_all


def score_shown(client: SynodClient, found: Sequence[Source], asked: ScoreRequest, *, as_json: bool) -> int:
    """Print a row per item, or the whole answer as JSON."""
    scored = list(show.progress(score_all(client, found, asked), len(found)))
    results = [one.result for one in scored if one.result is not None]
    if as_json:
        print(JSON.encode_response(ScoreResponse(tuple(results), "")).decode())
    else:
        names = dict.fromkeys(name for result in results for name in outcomes(result))
        cells = [[show.cell(outcomes(result).get(name)) for name in names] for result in results]
        wheres = [str(source.fields.get("image", source.where)) for source in found]
        show.table(["IMAGE", *names], [[where, *row] for where, row in zip(wheres, cells, strict=True)])
    told = [_told(one, name) for one in scored if one.result for name in failures(one.result)]
    for line in told:
        show.say(line)
    return 1 if told else 0


def score_into(client: SynodClient, found: Sequence[Source], asked: ScoreRequest, out: Path) -> int:
    """Append a line per item that has none yet. Raises SynodError when the service goes away: what was scored is kept.

    1 also when the lines that were there hold failures: they are final, and stay until their lines are removed.
    """
    here, here_failed = 0, 0
    failed: Counter[str] = Counter()
    later: list[str] = []
    with ScoreLog(out) as log:
        if log.torn:
            show.say(f"{out}: its last line was cut off; that item is scored again")

        def is_here(loaded: Loaded) -> bool:
            nonlocal here_failed
            codes = log.take(loaded, asked)
            failed.update(codes or ())
            here_failed += bool(codes)
            return codes is not None

        try:
            for one in show.progress(score_all(client, found, asked, is_here), len(found)):
                if one.result is None:
                    here += 1
                    continue
                lost = failures(one.result)
                if any(failure.retryable for failure in lost.values()):
                    later.append(_told(one, next(name for name, failure in lost.items() if failure.retryable)))
                    continue
                log.write(one.loaded, asked, one.result)
                failed.update(failure.code for failure in lost.values())
        except SynodError as error:
            raise type(error)(f"{error}\n{out} keeps what was scored; run this again to go on") from None
    show.say(f"{out}: {len(found) - here - len(later)} items scored, {here} were there, {_failures(failed)}")
    if here_failed:
        show.say(
            f"{here_failed} of the items that were there failed, and are not scored again while {out} has their lines; "
            'remove the lines that hold "error", and run this again'
        )
    if later:
        show.say(f"{len(later)} items have no line yet, run this again; the first: {later[0]}")
    return 1 if failed or later else 0


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
    """Score the log's items again and compare. `names` are scorers before -> now; empty means all of the log's.

    Raises SettingsError for a log that cannot be compared so. 1 when an item that had a value has none now.
    """
    names = names or {name: name for name in dict.fromkeys(name for line in lines for name in line.result.scores)}
    ensemble = ensemble or _ensemble(lines)
    asked = ScoreRequest((), tuple(dict.fromkeys(names.values())), ensemble)
    if not lines or (not asked.scorers and ensemble is None):
        raise SettingsError("the log holds no scores; give one that `synod score --out` wrote")
    scored = list(show.progress(score_all(client, [line.source for line in lines], asked), len(lines)))
    if out is not None:
        with ScoreLog(out) as log:
            for line, one in zip(lines, scored, strict=True):
                assert one.result is not None
                log.write(one.loaded, asked, one.result, before=answer(line.result))
    compared = [*names.items(), *([("reward", "reward")] if ensemble is not None else [])]
    found = {old: compare(_pairs(lines, scored, old, new), tolerance) for old, new in compared}
    if as_json:
        print(json.dumps({name: _tree(one) for name, one in found.items()}, indent=2))
    else:
        show.comparisons(found)
    return int(any(isinstance(pair.before, Score) for one in found.values() for pair in one.status_changed))


def _pairs(lines: Sequence[Line], scored: Sequence[Scored], old: str, new: str) -> list[Pair]:
    pairs = []
    for line, one in zip(lines, scored, strict=True):
        assert one.result is not None
        before, after = outcomes(line.result).get(old), outcomes(one.result).get(new)
        if before is not None and after is not None:
            pairs.append(Pair(line.source.where, before, after))
    return pairs


def _ensemble(lines: Sequence[Line]) -> str | None:
    named = sorted({line.ensemble for line in lines if line.ensemble is not None})
    if len(named) > 1:
        raise SettingsError(f"the log holds rewards of {', '.join(named)}; give --ensemble one of them")
    return named[0] if named else None


def _told(one: Scored, name: str) -> str:
    assert one.result is not None
    source, failure = one.loaded.source, failures(one.result)[name]
    return f"{source.where}: {name}: {failure.message}"


def _failures(failed: Mapping[str, int]) -> str:
    if not failed:
        return "no failures"
    return f"{sum(failed.values())} failures ({', '.join(f'{code}: {n}' for code, n in sorted(failed.items()))})"


def _tree(one: Comparison) -> dict[str, Any]:
    changes = [{"item": p.where, "before": status(p.before), "after": status(p.after)} for p in one.status_changed]
    return {**asdict(one), "status_changed": changes}

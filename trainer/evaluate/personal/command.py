"""`synod evaluate --suite unify`, and the other suites of SUITES: a personalised policy and its controls.

OUT/evaluation.json   what decides the answers: items, weights, sampler, seed
OUT/plan.jsonl        what is asked and drawn, a line for each item of the arm "concept"
OUT/answers/          the policy's answers (`trainer.evaluate.personal.answers`); with --answers those of DIR count
OUT/rows.jsonl        what came of each item of each arm (`trainer.evaluate.personal.score`)
OUT/table.md, table.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from synod.client import SynodClient
from synod.contracts import Score, ScoreFailure
from synod.errors import SettingsError
from synod.scoring import show
from trainer.evaluate import runner
from trainer.evaluate.personal.answers import Speaker, answer_items, folder_of, merge
from trainer.evaluate.personal.arms import ARMS, Arm, in_arm
from trainer.evaluate.personal.items import SUITES, Item, plan
from trainer.evaluate.personal.measures import MEASURES, Line, Row, markdown, table
from trainer.evaluate.personal.score import MAX_REFERENCES, answered, score
from trainer.images import write_whole
from trainer.personalize.folder import read_folder
from trainer.personalize.readers import dreambench, dreambench_pp, mc_llava, yollava
from trainer.personalize.records import ConceptRecord
from trainer.settings import PolicySettings

READERS: Final = {
    **dict.fromkeys(("unify", "unify_pp"), read_folder),
    "yollava": yollava.read,
    "mc_llava": mc_llava.read,
    "dreambench": dreambench.read,
    "dreambench_pp": dreambench_pp.read,
}
TIMEOUT_S: Final = 600.0  # of a request of 32 items, with its retries while the service restarts
RETRIES: Final = 100  # as many as fit into TIMEOUT_S
Plans = Mapping[Arm, Sequence[Item]]


def evaluate(options: argparse.Namespace, policy: PolicySettings | None, url: str, out: Path, template: str) -> int:
    """Answer, score and print a suite; return the exit status. `policy` None: the answers are those of --answers.

    `template` is the query about facts, with {facts}, {prompt} and, if wanted, {name}.

    Raises SettingsError for wrong options and data, OutOfMemory, and the SynodError of a service that fails.
    """
    records = READERS[options.suite](options.data)
    if bare := [record for record in records.values() if not record.train]:
        raise SettingsError(f"{bare[0].folder}: no images of {bare[0].name} to compare with; give at least one")
    items = plan(
        list(records.values()),
        SUITES[options.suite],
        images=options.images,
        limit=options.limit,
        seed=options.seed,
        template=template,
    )
    plans: Plans = {arm: in_arm(items, arm, records) for arm in ARMS}
    with SynodClient(url, timeout_s=TIMEOUT_S, retries=RETRIES) as client:
        served = _served(client, items, options.scorers)
        from trainer.distributed import joined  # imported here: --help and wrong usage need no torch
        from trainer.out_of_memory import explain_large_batch

        with joined() as ranks:
            answers = out / "answers" if options.answers is None else options.answers
            with ranks.together():
                speaker = None if policy is None else load_speaker(policy, list(records))
            if speaker is not None:
                ranks.check_equal(speaker.digest, "digest of the weights; give the same model on every machine")
            with ranks.together():
                if ranks.is_first:
                    _prepare(out, options, items, records, {} if policy is None else _decides(policy, speaker))
            with ranks.together():
                if speaker is not None:
                    with explain_large_batch(options.batch, " and a new --out, because answers depend on the batch"):
                        _answer(plans, speaker, answers, options, ranks.rank, ranks.world)
            with ranks.together():
                if ranks.is_first and speaker is not None:
                    for arm, found in plans.items():
                        merge(found, folder_of(answers, arm))
                status = _score(plans, records, client, served, answers, out, options) if ranks.is_first else 0
            return int(ranks.gather_all(status)[0])


def load_speaker(policy: PolicySettings, concepts: Sequence[str]) -> Speaker:
    """Load a policy that knows the concepts of these names. Raises SettingsError, also if it does not know one."""
    from trainer.evaluate.draw import Drawer

    return Drawer(policy, concepts)


def _decides(policy: PolicySettings, speaker: Speaker | None) -> dict[str, Any]:
    """Return what decides an answer besides its item, as JSON."""
    weights = None if speaker is None else speaker.digest
    return {"weights": weights, "sampler": policy.sampler.model_dump(mode="json"), "dtype": policy.dtype}


def _answer(plans: Plans, speaker: Speaker, answers: Path, options: argparse.Namespace, rank: int, world: int) -> None:
    for arm, items in plans.items():
        if not items:
            continue
        with tqdm(total=len(items), desc=f"answering, {arm}", unit="item", disable=rank > 0) as bar:
            answer_items(
                items,
                speaker,
                folder_of(answers, arm),
                seed=options.seed,
                size=options.batch,
                rank=rank,
                world=world,
                done=bar.update,
            )


def _score(
    plans: Plans,
    records: Mapping[str, ConceptRecord],
    client: SynodClient,
    served: set[str],
    answers: Path,
    out: Path,
    options: argparse.Namespace,
) -> int:
    """Score the answers, write and print the table, and return the exit status."""
    has_answers = {arm: items for arm, items in plans.items() if arm == "concept" or folder_of(answers, arm).exists()}
    absent = [arm for arm, items in plans.items() if items and arm not in has_answers]
    notes = [f"no control '{arm}': {folder_of(answers, arm)} does not exist" for arm in absent]
    found = {item.column for item in plans["concept"]}
    notes += [
        f"column '{name}' is empty: no concept has a file for it" for name in SUITES[options.suite] if name not in found
    ]
    rows = score(answered(has_answers, answers, options.seed), records, client, served, out)
    lines = table(rows, [one for one in MEASURES if one.scorer is None or one.scorer in served])
    lacking = sorted({name for one in plans["concept"] for name in one.scorers} - served)
    notes += [f"the service has no scorer {name}: its measures are left out" for name in lacking]
    failures = first_failures(rows)
    shown = markdown(lines, failures, notes)
    tree = {"suite": options.suite, "out": str(out), "table": [_tree(line) for line in lines], "notes": notes}
    write_whole(out / "table.md", shown.encode())
    write_whole(out / "table.json", (json.dumps(tree, indent=2) + "\n").encode())
    print(json.dumps(tree, indent=2) if options.json else shown, end="\n" if options.json else "")
    missing = sum(cell.missing for line in lines for cell in line.cells.values())
    if missing:
        show.notify(f"{missing} values are missing; the same command scores them again")
    return 1 if missing else 0


def first_failures(rows: Sequence[Row]) -> dict[str, ScoreFailure]:
    """Return the first failure of each scorer."""
    found: dict[str, ScoreFailure] = {}
    for row in rows:
        for name, outcome in row.outcomes.items():
            if not isinstance(outcome, Score):
                found.setdefault(name, outcome)
    return found


def _tree(line: Line) -> dict[str, Any]:
    return {
        "measure": line.measure,
        "arms": {arm: asdict(cell) for arm, cell in line.cells.items()},
        "differences": {arm: {"mean": mean, "stderr": error} for arm, (mean, error) in line.differences.items()},
        "reached_by": list(line.reached),
        "mark": line.mark,
    }


def _served(client: SynodClient, items: Sequence[Item], wanted: Sequence[str]) -> set[str]:
    """Return the scorers to use: those that the items need and the service has. Raises SettingsError."""
    needed = {name for one in items for name in one.scorers}
    if unknown := sorted(set(wanted) - needed):
        raise SettingsError(f"--scorers {', '.join(unknown)}: this suite has {', '.join(sorted(needed)) or 'none'}")
    if not items:
        raise SettingsError("the folder of --data has nothing that this suite asks or draws; see docs/evaluation.md")
    served = {str(one["name"]) for one in client.scorers()}
    if absent := sorted(set(wanted) - served):
        raise SettingsError(f"the service has no scorer {', '.join(absent)}; it has {', '.join(sorted(served))}")
    for name in sorted(needed - served):
        show.notify(f"the service has no scorer {name}: its measures are left out (docs/evaluation.md)")
    return needed & served & (set(wanted) or needed)


def _prepare(
    out: Path,
    options: argparse.Namespace,
    items: Sequence[Item],
    records: Mapping[str, ConceptRecord],
    decides: Mapping[str, Any],
) -> None:
    """Write OUT/evaluation.json and OUT/plan.jsonl, or check that they are of this evaluation. Raises SettingsError."""
    lines = b"".join(_planned(one, options.data) for one in items)
    conditions: dict[str, Any] = {
        "suite": options.suite,
        "items": hashlib.blake2b(lines, digest_size=16).hexdigest(),
        "photographs": _content(items, records),
        "images": options.images,
        "limit": options.limit,
        "seed": options.seed,
    }
    if options.answers is not None:
        conditions["answers"] = str(options.answers.resolve())
    else:
        conditions |= {**decides, "batch": options.batch}  # rounding depends on a batch's size
    runner.prepare(out, conditions)
    write_whole(out / "plan.jsonl", lines)


def _content(items: Sequence[Item], records: Mapping[str, ConceptRecord]) -> str:
    """Return a digest of the images that questions show, and of those that drawn images are compared with.

    Raises SettingsError for a missing one.
    """
    shown = [one.shown for one in items if one.shown is not None]
    paths = dict.fromkeys([*shown, *(path for record in records.values() for path in record.train[:MAX_REFERENCES])])
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            digest.update(hashlib.blake2b(path.read_bytes()).digest())
        except OSError as error:
            raise SettingsError(f"{path}: {error.strerror}; correct the folder of --data") from None
    return digest.hexdigest()


def _planned(one: Item, data: Path) -> bytes:
    tree = {
        "column": one.column,
        "concept": one.concept,
        "number": one.number,
        "image": one.image,
        "query": one.query,
        "shown": None if one.shown is None else os.path.relpath(one.shown, data),
        "prompt": one.prompt,
        "file": one.file,
    }
    return json.dumps(tree).encode() + b"\n"

"""The command `synod evaluate POLICY`: draw a benchmark's images, score them, print the table."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from synod import memory, toml
from synod.client import SynodClient
from synod.contracts import GenEvalMetadata, Score
from synod.errors import SettingsError, SynodError
from synod.records import write
from synod.scoring import show
from trainer.data.prompts import read_prompts
from trainer.errors import OtherRankFailed, OutOfMemory
from trainer.evaluate import geneval, runner
from trainer.evaluate.base import Benchmark, Row, Table, spread
from trainer.evaluate.estimate import Estimate
from trainer.evaluate.prompts import Prompts
from trainer.processes import processes
from trainer.settings import FlowSettings, PolicySettings, PromptSettings, SyncR1Settings, load, read_policy
from trainer.settings.data import TEMPLATES, read_template
from trainer.settings.personalize import load_personalize
from trainer.types import Prompt

if TYPE_CHECKING:
    from trainer.distributed import Ranks

URL: Final = "http://127.0.0.1:8000"
TIMEOUT_S: Final = 600.0  # of a request of 32 images, with its retries while the service restarts
RETRIES: Final = 100  # as many as fit into TIMEOUT_S
PERSONAL: Final = (  # suites of trainer.evaluate.personal
    *("unify", "unify_pp", "yollava", "mc_llava", "dreambench", "dreambench_pp"),
)
GIVEN: Final = {"image", "prompt"}  # what every drawn image has for a scorer; GenEval's prompts have their metadata too
DESCRIPTION: Final = """Draw images from a policy, score them by a running service, and print means with their errors.

POLICY is one of
  a run's directory     the trained policy in RUN/policy, with the sampler and the service of its settings; with
                        data.query, the policy answers it about each prompt first
  a settings TOML       the policy that its [trainer.policy] names, before any training; one of `synod personalize`:
                        with the concept that it has trained
  a model directory or hub id, such as showlab/show-o-512x512, with the default sampler of its family: Show-o's
                        published one (50 steps, guidance 5), or 20 steps of the ODE at guidance 4.5 for a pipeline
                        directory; for a pipeline's hub id give a settings TOML

Suites of prompts:
  geneval   GenEval's 553 prompts, 4 images of each; the service needs a scorer of kind geneval. Prints the share of
            right images by GenEval's own rules for each of its six tasks, and their mean, which is GenEval's score
  prompts   the prompts of --prompts FILE (.jsonl with a "prompt", or .txt); prints the mean of each of --scorers

Suites of personalised policies, on the concepts of --data DIR (docs/evaluation.md):
  unify        UnifyBench: recognition, questions, and drawing the concepts
  unify_pp     UnifyBench++: long and vague prompts, passages, held-out facts
  yollava, mc_llava, dreambench, dreambench_pp    those data sets, as published (dreambench_pp is DreamBench++)
They print each measure next to its controls: the class word in place of the name, another concept's name, a black
image. --answers DIR scores another model's answers instead of a POLICY's.

The same command resumes a stopped evaluation: it draws no image twice, scores again what has failed, and adds what
another of --scorers asks for, and in suites of prompts what a larger --images or --limit does; suites of personalised
policies need a new --out for those. A missing score is left out and counted, never a 0. Standard errors are clustered
by prompt, because images of one prompt are alike; in suites of personalised policies they are over concepts.
"""
EXAMPLES: Final = """examples:
  synod evaluate runs/train --suite geneval
  synod evaluate showlab/show-o-512x512 --suite geneval --limit 60 --images 1   a quick look: 10 prompts of each task
  synod evaluate runs/train --suite prompts --prompts parti.txt --scorers hpsv3,clip_t --json > scores.json
  synod evaluate deploy/configs/embedded.toml --suite geneval --prompts embedded/data/prompts/heldout.jsonl
  synod evaluate deploy/configs/embedded.toml --concepts runs/*/concept --suite unify --data embedded/data/unify
  synod evaluate --answers other/ --suite unify --data embedded/data/unify
  synod replay runs/train/evaluation/geneval/rows.jsonl --url http://other.example:8000
  torchrun --standalone --nproc-per-node 8 -m trainer evaluate runs/train --suite geneval     on 8 GPUs

As a Ray job: ray job submit -- python -m trainer evaluate runs/train --suite geneval

Exit status: 0 on success, 1 when anything failed (one missing score is enough), 2 for wrong usage.
"""


@dataclass(frozen=True, slots=True)
class Subject:
    """What to evaluate: the policy's settings, the service it is usually scored by, and the default directory.

    `template` is the query about facts that it was trained with, or "plain". `query` is what the policy is asked about
    each prompt before it draws (`data.query`), None for nothing.
    """

    policy: PolicySettings
    url: str
    out: Path
    template: str = TEMPLATES["plain"]
    query: str | None = None


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(arguments)
    memory.keep_freed_memory()
    try:
        return _evaluate(options)
    except SettingsError as error:
        return _fail(error, 2)
    except (SynodError, OSError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130


def _evaluate(options: argparse.Namespace) -> int:
    if options.suite in PERSONAL:
        return _evaluate_personal(options)
    if options.policy is None or options.data or options.answers or options.concepts:
        raise SettingsError(f"--suite {options.suite} needs POLICY, and takes no --data, --answers or --concepts")
    found = resolve(options.policy, options.suite)
    out = (options.out or found.out).resolve()
    policy = with_sampler(found.policy, _sampler_of(options))
    subject = replace(found, policy=policy, url=options.url or found.url, out=out)
    benchmark, scorers = _benchmark(options)
    images = runner.plan(spread(benchmark.prompts, options.limit), options.images)
    processes(os.environ)
    with SynodClient(subject.url) as client:
        check_scorers(client.scorers(), scorers, benchmark)
    if subject.query is not None:
        show.notify("each prompt is drawn with the policy's answer to the query of its settings (data.query)")

    from trainer.distributed import joined  # imported here: --help and wrong usage need no torch

    with joined() as ranks:
        try:
            _draw_and_score(options, benchmark, scorers, images, subject, ranks)
        except OutOfMemory as error:
            return _fail(f"{error}\n{out} keeps images and scores, and the command continues with them", 1)
        except (SynodError, OtherRankFailed) as error:
            if isinstance(error, SettingsError):
                raise
            return _fail(f"{error}\n{out} keeps images and scores; run the same command again to continue", 1)
        with ranks.together():
            status = _print(options, benchmark, scorers, images, out) if ranks.is_first else 0
        return int(ranks.gather_all(status)[0])


def _sampler_of(options: argparse.Namespace) -> dict[str, Any]:
    changes = {"denoising_steps": options.steps, "guidance_scale": options.guidance, "temperature": options.temperature}
    return {name: value for name, value in changes.items() if value is not None}


def _evaluate_personal(options: argparse.Namespace) -> int:
    """Evaluate a policy, or the answers of another model, on concepts; return the exit status."""
    if options.data is None or (options.policy is None) == (options.answers is None):
        raise SettingsError(f"--suite {options.suite} needs --data DIR, and either POLICY or --answers DIR")
    if options.answers is not None and options.concepts:
        raise SettingsError("--answers are of another model: leave out --concepts")
    if options.prompts is not None:
        raise SettingsError(f"--suite {options.suite} has its own prompts; leave out --prompts")
    if options.textual_template is not None and options.suite != "unify_pp":
        raise SettingsError(f"--suite {options.suite} states no facts; leave out --textual-template")
    from trainer.evaluate.personal import command as personal

    if options.answers is not None:
        default = Path("evaluation") / f"{options.answers.resolve().name}-{options.suite}"
        policy, url, template = None, URL, TEMPLATES["plain"]
    else:
        subject = resolve(options.policy, options.suite, has_concepts=bool(options.concepts))
        default, url, template = subject.out, subject.url, subject.template
        policy = with_sampler(subject.policy, _sampler_of(options))
        if options.concepts:
            policy = policy.model_copy(update={"concepts": tuple(path.resolve() for path in options.concepts)})
    out = (options.out or default).resolve()
    if options.textual_template is not None:
        try:
            template = read_template(options.textual_template)
        except ValueError as error:
            raise SettingsError(f"--textual-template: {error}") from None
    processes(os.environ)
    try:
        return personal.evaluate(options, policy, options.url or url, out, template)
    except OutOfMemory as error:
        return _fail(error, 1)
    except (SynodError, OtherRankFailed) as error:
        if isinstance(error, SettingsError):
            raise
        return _fail(f"{error}\n{out} keeps answers and scores; run the same command again to continue", 1)


def _draw_and_score(
    options: argparse.Namespace,
    benchmark: Benchmark,
    scorers: Sequence[str],
    images: Sequence[runner.Image],
    subject: Subject,
    ranks: Ranks,
) -> None:
    """Draw and score this rank's share of the images; a failure on one rank ends all.

    Raises the SynodError of a failure, and OutOfMemory; on every other rank OtherRankFailed, or SettingsError if it is
    one.
    """
    from trainer.evaluate.draw import Drawer
    from trainer.out_of_memory import explain_large_batch

    out = subject.out
    with ranks.together():
        drawer = Drawer(subject.policy, query=subject.query)
    unknown = drawer.unknown_names([prompt.text for prompt in benchmark.prompts]) if ranks.is_first else []
    if unknown:
        show.notify(
            f"the policy has no token for {', '.join(unknown)}, and reads each as several pieces of words; name the "
            "concepts in [trainer.policy] concepts, and give that settings TOML as POLICY"
        )
    ranks.check_equal(drawer.digest, "digest of the weights; give the same model on every machine")
    with ranks.together():
        if ranks.is_first:
            runner.prepare(out, conditions(benchmark, subject.policy, drawer.digest, options.seed, subject.query))
            runner.merge_rows(out)
    with ranks.together():
        if not (out / runner.CONDITIONS).exists():
            raise SettingsError(f"{out} is another directory on rank 0; give --out one that every machine mounts")
    own = runner.share(images, options.batch, ranks.rank, ranks.world)
    with (
        ranks.together(),
        explain_large_batch(options.batch),
        SynodClient(subject.url, timeout_s=TIMEOUT_S, retries=RETRIES) as client,
    ):
        runner.run(
            benchmark, own, drawer, client, scorers, out, seed=options.seed, batch=options.batch, rank=ranks.rank
        )


def _print(
    options: argparse.Namespace,
    benchmark: Benchmark,
    scorers: Sequence[str],
    images: Sequence[runner.Image],
    out: Path,
) -> int:
    """Print the table of all images; return the exit status."""
    runner.merge_rows(out)
    rows = runner.rows(images, out)
    table = benchmark.reduce(rows)
    if options.json:
        print(json.dumps({"suite": benchmark.name, "out": str(out), "table": _tree(table)}, indent=2))
    else:
        print_table(table)
        print(f"images and scores: {out}")
    return report_missing(rows, scorers)


def resolve(policy: str, suite: str, *, has_concepts: bool = False) -> Subject:
    """Return what POLICY names; `has_concepts`: the caller gives the concepts. Raises SettingsError."""
    path = Path(policy)
    if path.suffix == ".toml":
        tree = toml.read(path, os.environ)
        if "personalize" in tree and "data" not in tree.get("trainer", {}):
            url = tree.get("trainer", {}).get("rewards", {}).get("url", URL)
            return _personalized(path, suite, url, has_concepts=has_concepts)
        settings = load(path, os.environ)
        asked: dict[str, Any] = {}
        if isinstance(settings.data, SyncR1Settings):
            asked = {"template": settings.data.template}
        elif isinstance(settings.data, PromptSettings):
            asked = {"query": settings.data.query}
        out = settings.run_dir / "evaluation" / f"{suite}-start"
        return Subject(settings.policy, settings.rewards.url, out, **asked)
    if (path / "settings.json").is_file():
        return _run(path, suite)
    if (path / "connector").is_dir():
        raise SettingsError(
            f"POLICY {policy} has a connector: it was trained to draw from a language model (bridge = 'queries'), "
            "not from its own text encoder; give the run's directory, or its settings TOML"
        )
    try:
        family = {"family": "flow"} if (path / "model_index.json").is_file() else {}
        chosen = read_policy({"model": policy, **family})
    except ValidationError as error:
        raise SettingsError(f"POLICY {policy}: {error.errors()[0]['msg']}") from None
    return Subject(chosen, URL, Path("evaluation") / f"{path.resolve().name}-{suite}")


def _personalized(path: Path, suite: str, url: str, *, has_concepts: bool) -> Subject:
    """Return the base policy of `synod personalize` with the concept that it has trained. Raises SettingsError.

    The concept need not be there if the caller gives concepts.
    """
    settings = load_personalize(path, os.environ)
    concept = settings.run_dir / "concept"
    if not has_concepts and not (concept / "concept.json").is_file():
        raise SettingsError(f"{concept} is not there yet; `synod personalize {path}` writes it after its last stage")
    policy = settings.policy.model_copy(update={"concepts": (concept,)})
    return Subject(policy, url, settings.run_dir / "evaluation" / suite)


def _run(run: Path, suite: str) -> Subject:
    """Return an ended run's policy. What else its settings name, such as prompts, may have been removed since."""
    path, trained = run / "settings.json", run / "policy"
    if not trained.is_dir():
        raise SettingsError(
            f"the run {run} has no trained policy yet, which is written when it ends; finish it, or evaluate its "
            "settings TOML for the policy it starts from"
        )
    try:
        settings = json.loads(path.read_text())
        table = {**settings["policy"], "model": str(trained.resolve()), "lora": None}  # adapters are merged
        if table.get("vq") and (trained / "vq").is_dir():  # the same
            table["vq"] = None
        if "concepts" in table:  # the model has their tokens
            table |= {"concepts": (), "train": "all"}
        if table.get("language"):
            table["language"] = {**table["language"], "model": str(trained.resolve() / "language")}
        data = settings.get("data", {})
        template = read_template(data.get("textual_template", "plain"))
        query = data.get("query") if data.get("task") == "prompts" else None  # another's is about an image
        return Subject(read_policy(table), settings["rewards"]["url"], run / "evaluation" / suite, template, query)
    except ValidationError as error:
        raise toml.settings_error(path, error.errors(), "trainer.policy") from None
    except (ValueError, TypeError, KeyError) as error:
        raise SettingsError(f"{path} holds no settings of a run ({error!r}); evaluate {trained} instead") from None


def with_sampler(policy: PolicySettings, changes: Mapping[str, Any]) -> PolicySettings:
    """Return the settings with these of the sampler. Raises SettingsError, which names option, value and limit.

    A flow policy that evaluates by the ODE has its steps changed.
    """
    changes = dict(changes)
    if isinstance(policy, FlowSettings) and policy.sampler.evaluation_steps and "denoising_steps" in changes:
        changes["evaluation_steps"] = changes.pop("denoising_steps")
    try:
        sampler = type(policy.sampler).model_validate({**policy.sampler.model_dump(), **changes})
    except ValidationError as error:
        names = {
            "denoising_steps": "--steps",
            "evaluation_steps": "--steps",
            "guidance_scale": "--guidance",
            "temperature": "--temperature",
        }
        named = ((names.get(str(next(iter(e["loc"]), "")), "the sampler:"), e) for e in error.errors())
        raise SettingsError("; ".join(f"{option} {e['input']}: {e['msg']}" for option, e in named)) from None
    return policy.model_copy(update={"sampler": sampler})


def _benchmark(options: argparse.Namespace) -> tuple[Benchmark, tuple[str, ...]]:
    """Return the suite and the scorers to use. Raises SettingsError."""
    names = tuple(dict.fromkeys(options.scorers))
    if options.suite == "geneval":
        found = read_prompts(options.prompts or geneval.PROMPTS, options.column, show.notify)
        kept = [prompt for prompt in found if prompt.geneval is not None]
        if kept and len(kept) < len(found):
            show.notify(f"{len(found) - len(kept)} prompts of {options.prompts} have no GenEval metadata: left out")
        return geneval.GenEval(kept, (names or (geneval.SCORER,))[0]), names or (geneval.SCORER,)
    if options.prompts is None:
        raise SettingsError("--suite prompts needs --prompts FILE")
    if not names:
        raise SettingsError("--suite prompts needs --scorers (`synod scorers` lists what the service has)")
    return Prompts(read_prompts(options.prompts, options.column, show.notify), names), names


def check_scorers(served: Sequence[Mapping[str, Any]], scorers: Sequence[str], benchmark: Benchmark) -> None:
    """Raise SettingsError for a scorer that is not served, or that needs more than an image drawn from a prompt."""
    needs = {str(one["name"]): set(one.get("needs", ())) for one in served}
    has = GIVEN | ({"geneval"} if all(prompt.geneval is not None for prompt in benchmark.prompts) else set())
    for name in scorers:
        if name not in needs:
            raise SettingsError(f"the service has no scorer '{name}'; give --scorers of {', '.join(sorted(needs))}")
        if needs[name] - has:
            raise SettingsError(
                f"the scorer '{name}' needs {', '.join(sorted(needs[name] - has))}, which these prompts do not have; "
                f"give --scorers of {', '.join(sorted(n for n, need in needs.items() if need <= has))}"
            )


def conditions(
    benchmark: Benchmark, policy: PolicySettings, weights: str, seed: int, query: str | None = None
) -> dict[str, Any]:
    """Return what decides an image, as JSON: two runs with equal conditions draw the same images."""
    return {
        "prompts": _digest_of(benchmark.prompts),
        "weights": weights,
        "sampler": policy.sampler.model_dump(mode="json"),
        "dtype": policy.dtype,
        "seed": seed,
        **policy.model_dump(include={"resolution", "max_text_length"}),  # of a flow policy
        **({} if query is None else {"query": query}),
    }


def _digest_of(prompts: Sequence[Prompt]) -> str:
    known = [[p.text, None if p.geneval is None else write(GenEvalMetadata, p.geneval)] for p in prompts]
    return hashlib.blake2b(json.dumps(known).encode(), digest_size=16).hexdigest()


def report_missing(rows: Sequence[Row], scorers: Sequence[str]) -> int:
    """Report missing scores, and scorers whose model changed within the evaluation; return the exit status."""
    missing, may_recover = 0, False
    for name in scorers:
        outcomes = [row.outcomes.get(name) for row in rows]
        lost = [one for one in outcomes if not isinstance(one, Score)]
        missing += len(lost)
        may_recover |= any(one is None or one.retryable for one in lost)
        if lost:
            first = next((one.message for one in lost if one is not None), "not scored yet")
            show.notify(f"{name}: {len(lost)} of {len(rows)} scores are missing, the first: {first}")
        origins = {show.format_origin(one.origin) for one in outcomes if isinstance(one, Score)}
        if len(origins) > 1:
            show.notify(f"{name}: scores of different origins are mixed ({'; '.join(sorted(origins))})")
    if missing:
        why = "" if may_recover else ", which fails again unless the service or its scorers change"
        show.notify(f"the same command scores them again{why}")
    return 1 if missing else 0


def print_table(table: Table) -> None:
    """Print a line for each row: its measures with standard errors, then how many prompts and images."""
    measures = list(dict.fromkeys(name for cells in table.cells.values() for name in cells))
    lines = []
    for label, cells in table.cells.items():
        counts = next(iter(cells.values()))
        shown = [format_estimate(cells[name]) if name in cells else "" for name in measures]
        lines.append([label, *shown, str(counts.prompts), str(counts.images), str(counts.missing)])
    headers = ["", *(f"{name.upper()} ± S.E." for name in measures), "PROMPTS", "IMAGES", "MISSING"]
    show.print_table(headers, lines)
    for note in (*table.notes, "S.E.: standard error, clustered by prompt"):
        print(note)


def format_estimate(one: Estimate) -> str:
    """Return a mean and its standard error, with a dash for what does not exist."""
    mean, stderr = (("-" if value is None else f"{value:.4f}") for value in (one.mean, one.stderr))
    return f"{mean} ± {stderr}"


def _tree(table: Table) -> dict[str, Any]:
    return {label: {name: asdict(one) for name, one in cells.items()} for label, cells in table.cells.items()}


def _fail(error: Exception | str, status: int) -> int:
    print(f"synod evaluate: {error}", file=sys.stderr)
    return status


def _count(text: str) -> int:
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"'{text}' contains an empty name; give names such as ber,hpsv3")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="synod evaluate",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("policy", metavar="POLICY", nargs="?", help="a run's directory, a settings TOML, a model directory or a hub id")
    add("--suite", choices=("geneval", "prompts", *PERSONAL), required=True, help="what to ask, draw and summarise")
    add("--data", type=Path, metavar="DIR", help="the folder of concepts to ask about and draw")
    add("--concepts", type=Path, nargs="+", metavar="DIR", help="concepts of `synod personalize`, in place of POLICY's")
    add("--answers", type=Path, metavar="DIR", help="another model's answers to such a suite, in place of POLICY")
    add(
        "--textual-template",
        metavar="NAME|TEXT",
        help=f"unify_pp: the query about facts, as [trainer.data] textual_template: {', '.join(TEMPLATES)}, or a text "
        "(default: of the run or TOML, else plain)",
    )
    add("--prompts", type=Path, metavar="FILE", help="prompts to draw; for geneval in place of the published 553")
    add("--column", default="prompt", help="the prompts' column in a .jsonl or .parquet (default: prompt)")
    add("--images", type=_count, default=4, metavar="N", help="images of each prompt (default: 4)")
    # under torchrun --n is refused: it could be torchrun's --nnodes
    add(
        "--limit",
        "--n",
        type=_count,
        metavar="N",
        help="only N prompts, evenly from all tasks; for concepts N of each column and concept (default: all)",
    )
    add(
        "--scorers",
        action="extend",
        type=_names,
        default=[],
        metavar="A[,B]",
        help="scorers (default: geneval; for concepts all that are served)",
    )
    add("--url", help=f"URL of the service (default: that of the run or TOML, else {URL})")
    add("--out", type=Path, metavar="DIR", help="images, rows and conditions (default: RUN/evaluation/SUITE)")
    add("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    add("--batch", type=_count, default=4, metavar="N", help="images to draw at a time; limits memory (default: 4)")
    add("--steps", type=_count, metavar="N", help="denoising steps (default: that of POLICY's sampler)")
    add("--guidance", type=float, metavar="G", help="guidance scale (default: that of POLICY's sampler)")
    add("--temperature", type=float, metavar="T", help="temperature of a Show-o (default: that of POLICY's sampler)")
    add("--json", action="store_true", help="print the table as JSON")
    return parser

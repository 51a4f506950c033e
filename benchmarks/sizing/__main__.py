"""Size a cluster: predict the step of a training on many GPUs.

    python -m benchmarks.sizing                                     named policies on 8, 64 and 512 GPUs
    python -m benchmarks.sizing --run runs/train                    from the phase times of your own run on one GPU
    python -m benchmarks.sizing --docs                              writes the tables of docs/scaling.md

`python -m benchmarks.ranks --only sizing` compares the model with measured steps of one and two ranks.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from PIL import Image
from safetensors import safe_open

from benchmarks.sizing.model import (
    Disk,
    Network,
    Policy,
    Prediction,
    Screen,
    Service,
    Work,
    mean_previews,
    predict,
    slowest_draw,
)
from benchmarks.sizing.policies import Case, cases
from synod.errors import SettingsError
from trainer.checkpoint import latest
from trainer.report.metrics import read

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs/scaling.md"
WORLDS: Final = (8, 64, 512)
GROUPS: Final = 2  # of each GPU, in the table of named policies


# -- the phase times of a run ----------------------------------------------------------------------------------------


def of_run(run: Path, trained: float | None = None) -> tuple[Case, Service, Disk]:
    """Return what the metrics, settings and newest checkpoint of a run of one process say; the first step is left out.

    `trained` is the count of trained numbers, for a run without a checkpoint. `parameters` is NaN where frozen weights
    are not counted. Raises SettingsError for a directory that
    is not a run's, lacks something, or is of several ranks.
    """
    records = read(run)[1:]
    if not records:
        raise SettingsError(f"{run} has fewer than two steps; give the directory of a run, such as runs/train")
    if any(record.get("ranks") for record in records):
        raise SettingsError(f"{run} trained on several ranks, whose phases include waiting; give a run of one process")
    settings = json.loads((run / "settings.json").read_text())
    groups = sum(len(record["keys"]) for record in records)
    screen = _screen(run, settings["screen"], records, groups)
    policy = _policy(run) if trained is None else Policy(trained, trained)
    policy = replace(policy, passes=_passes(settings))
    if settings["policy"].get("lora") or settings["policy"].get("train") == "norms":
        policy = replace(policy, parameters=math.nan)  # its checkpoints do not have the frozen weights
    work = work_of(records, groups, screen.whole)
    service = Service(image_bytes=_image_bytes(run))
    return Case(str(run), work, policy, screen), service, Disk(checkpoint_every=settings["checkpoint_every"])


def _screen(run: Path, settings: dict[str, Any], records: Sequence[dict[str, Any]], groups: int) -> Screen:
    """Return the screen of a run: by the pass rate of the steps that had a threshold, or by what "auto" drew."""
    if (rule := settings.get("select", "first_above")) == "auto":
        return _auto_screen(settings, records, groups)
    if rule != "first_above":
        raise SettingsError(f"{run} has [trainer.screen] select = '{rule}'; only 'auto' and 'first_above' are modelled")
    rate = None
    if settings["threshold"] != "none":
        rates = [one["pass_rate"] for one in records if None not in (one["pass_rate"], one["threshold"])]
        if not rates:
            raise SettingsError(
                f"{run} has no threshold in any of its {len(records)} steps after the first, so every preview passed; "
                "a key has one after its first group: train until keys have been drawn twice, or give another run"
            )
        rate = statistics.fmean(rates)
    return Screen(settings["group_size"], settings["preview_batch_size"], settings["max_previews"], rate)


def _auto_screen(settings: dict[str, Any], records: Sequence[dict[str, Any]], groups: int) -> Screen:
    """Return the shares of the groups of "auto", which follow from how many images were drawn and finished.

    A plain group draws G and finishes G images, a screened one 2G and G, a measured one or one that is screened at the
    last step 2G and 2G.
    """
    size = settings["group_size"]
    drawn, finished = (sum(record[name] for record in records) / (size * groups) for name in ("previews", "kept"))
    whole = min(1.0, max(0.0, finished - 1))
    screened = min(1 - whole, max(0.0, drawn - finished))
    return Screen(size, settings["preview_batch_size"], 2 * size, None, screened, whole)


def _passes(settings: dict[str, Any]) -> int:
    """Return the backward passes of a group's images in an update, as `trainer.passes` makes them."""
    group, loss = settings["screen"]["group_size"], settings["loss"]
    steps = max(1, round(loss["loss_step_fraction"] * settings["policy"]["sampler"]["denoising_steps"]))
    return int(steps * math.ceil(group / (loss["micro_batch"] or group)))


def _image_bytes(run: Path) -> int:
    """Return the bytes of an image of the run as raw pixels. Raises SettingsError without one."""
    if (first := next(run.glob("images/*/*.png"), None)) is None:
        raise SettingsError(f"{run} has no image in images/ whose size would be read; give the directory of a run")
    with Image.open(first) as image:
        return 3 * image.width * image.height


def work_of(records: Sequence[dict[str, Any]], groups: int, whole: float = 0.0) -> Work:
    """Return the mean work of `groups` groups that one process trained in these records of metrics.jsonl.

    The share `whole` of them finished twice as many images, and took twice as long to finish them.
    Decoding is shared between previews and finished images by their numbers. What is in no phase is records.
    """
    seconds: dict[str, float] = {}
    for record in records:
        for phase, spent in record["seconds"].items():
            seconds[phase] = seconds.get(phase, 0.0) + spent
    previews, finished = (sum(record[name] for record in records) for name in ("previews", "kept"))
    decoded = seconds.get("decode", 0.0) / (previews + finished)
    drawing = sum(seconds.get(phase, 0.0) for phase in ("reason", "preview", "surrogate"))
    rest = 2 * seconds["total"] - sum(seconds.values())
    return Work(
        preview_s=drawing / previews + decoded,
        finish_s=(seconds.get("finish", 0.0) + decoded * finished) / (groups * (1 + whole)),
        update_s=seconds["update"] / groups,
        record_s=max(0.0, rest) / groups,
        step_s=seconds.get("reward_wait", 0.0) / len(records),
    )


def _policy(run: Path) -> Policy:
    """Return what the newest checkpoint trains, and its bytes for each number. Raises SettingsError without one."""
    if (last := latest(run / "checkpoints")) is None:
        raise SettingsError(f"{run} has no checkpoint to count what is trained; give --trained NUMBER")
    with safe_open(last / "tensors.safetensors", framework="numpy") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys() if "/policy/" in name]  # noqa: SIM118
    trained = sum(map(math.prod, shapes))
    stored = sum(path.stat().st_size for path in last.iterdir())
    return Policy(trained, trained, checkpoint_bytes=stored / trained)


# -- tables ----------------------------------------------------------------------------------------------------------

COLUMNS: Final = (
    "groups a step", "step, s", "time for waiting", "time for records", "time for messages", "images/s (finished)",
    "scorer GPUs", "MB/s to the service", "checkpoint, GB", "checkpoint, s", "time for checkpoints",
)  # fmt: skip


def row(found: Prediction) -> list[str]:
    """Return a prediction as the cells of COLUMNS."""
    return [
        f"{found.groups:,}",
        _short(found.step_s),
        _percent(found.wait_share),
        _percent(found.record_share),
        _percent(found.communication_share),
        _short(found.images_per_s),
        _short(found.scorer_gpus),
        _short(found.service_mb_s),
        _short(found.checkpoint_gb),
        _short(found.checkpoint_s),
        _percent(found.checkpoint_share),
    ]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def docs_tables() -> str:
    """Return the tables of docs/scaling.md: named policies, and the waiting for the slowest rank."""
    rows = [
        [
            _name(case.name, case.policy),
            str(world),
            *row(predict(case.work, case.screen, case.policy, GROUPS * world, world)),
        ]
        for case in cases()
        for world in WORLDS
    ]
    return table(("policy", "GPUs", *COLUMNS), rows)


def straggler_table() -> str:
    """Return the seconds in which the slowest rank draws, over those of the mean, by groups of each rank and ranks."""
    work, screen = cases()[0].work, Screen()
    mean = work.preview_s * mean_previews(screen) + work.finish_s
    counts = (1, 2, 4, 8)
    rows = [
        [str(world), *(f"{slowest_draw(work, screen, g * world, world) / (g * mean):.2f}" for g in counts)]
        for world in WORLDS
    ]
    return table(("GPUs", *(f"{g} group{'s' * (g > 1)} a GPU" for g in counts)), rows)


BLOCKS: Final = {"policies": docs_tables, "stragglers": straggler_table}


def generated(page: str) -> str:
    """Return a page with its generated blocks written again. Raises ValueError if one is missing."""
    for name, make in BLOCKS.items():
        begin, end = f"<!-- begin {name}: python -m benchmarks.sizing --docs -->\n", f"\n<!-- end {name} -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"the page has no block '{name}'; it starts with {begin!r} and ends with {end!r}")
        page = before + begin + make() + end + after
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table, or write those of the page."""
    options = _parser().parse_args(arguments)
    if options.docs:
        PAGE.write_text(generated(PAGE.read_text()))
        return 0
    try:
        print(_table(options))
    except ValueError as error:  # SettingsError is one
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _table(options: argparse.Namespace) -> str:
    """Return the table of the run or of the named policies, with the values that the command line changes."""
    chosen, service, disk = cases(), Service(), Disk()
    if options.run is not None:
        case, service, disk = of_run(options.run, options.trained)
        chosen = [case]
    network, service, disk = _changed(Network(), options), _changed(service, options), _changed(disk, options)
    rows, failed = [], list[ValueError]()
    for case in chosen:
        work, screen, policy = (_changed(part, options) for part in (case.work, case.screen, case.policy))
        if policy.shard > 1 and math.isnan(policy.parameters):
            raise SettingsError(
                f"{case.name} trains a part of its weights, and --shard sends all of them; give --parameters NUMBER"
            )
        for world in options.worlds:
            groups = round(options.groups_per_gpu * world)
            try:
                predicted = predict(work, screen, policy, groups, world, network=network, service=service, disk=disk)
                cells = row(predicted)
            except ValueError as error:
                failed.append(error)
                cells = [str(error), *[""] * (len(COLUMNS) - 1)]
            rows.append([_name(case.name, policy), str(world), *cells])
    if len(failed) == len(rows):
        raise failed[0]
    return table(("policy", "GPUs", *COLUMNS), rows)


def _name(name: str, policy: Policy) -> str:
    return name if policy.shard == 1 else f"{name}, FSDP2 over {policy.shard}"


def _changed(record: Any, options: argparse.Namespace) -> Any:
    """Return a record of inputs with the values of the command line."""
    given = {one.name: getattr(options, one.name) for one in fields(record)}
    return replace(record, **{name: value for name, value in given.items() if value is not None})


MAY_BE_ZERO: Final = {"screened", "whole", "preview_s", "finish_s", "update_s", "record_s", "step_s", "latency_s"}
AT_MOST_ONE: Final = {"pass_rate", "utilisation", "screened", "whole"}


def _number(name: str, kind: type[int | float]) -> Callable[[str], float]:
    """Return a reader of an option that refuses a number outside its limits."""

    def read(text: str) -> float:
        value = kind(text)
        if not (math.isfinite(value) and (value > 0 or (value == 0 and name in MAY_BE_ZERO))):
            limit = "at least 0" if name in MAY_BE_ZERO else "above 0"
            raise argparse.ArgumentTypeError(f"{text} is not a number {limit}")
        if name in AT_MOST_ONE and value > 1:
            raise argparse.ArgumentTypeError(f"{text} is above 1; it is a share, such as 0.25")
        return value

    read.__name__ = kind.__name__  # named in the message for other text
    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sizing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="a run of one process, whose phase times replace the arithmetic")
    parser.add_argument("--worlds", type=_number("worlds", int), nargs="+", default=WORLDS, help="numbers of GPUs")
    parser.add_argument(
        "--groups-per-gpu",
        type=_number("groups_per_gpu", float),
        default=GROUPS,
        help="prompts_per_step / GPUs, at least 1",
    )
    parser.add_argument("--docs", action="store_true", help=f"write the tables of {PAGE.relative_to(ROOT)}")
    for kind in (Work, Screen, Policy, Network, Service, Disk):
        box = parser.add_argument_group(kind.__name__.lower(), (kind.__doc__ or "").partition("\n")[0])
        for one in fields(kind):
            default = f"default {one.default:g}" if isinstance(one.default, int | float) else "by policy"
            number = _number(one.name, int if one.type == "int" else float)
            box.add_argument(f"--{one.name.replace('_', '-')}", type=number, metavar="N", help=default)
    return parser


if __name__ == "__main__":
    sys.exit(main())

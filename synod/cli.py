"""The `synod` command: score images, replay a score log, list scorers, serve, train, personalize, evaluate.

Exit status: 0 on success, 1 when anything failed (one score is enough), 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.machinery
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from synod import toml
from synod.client import SynodClient
from synod.client.transport import scheme_of
from synod.contracts import ScoreRequest
from synod.errors import SettingsError, SynodError
from synod.scoring import commands, show
from synod.scoring.inputs import sources
from synod.scoring.log import read_log

URL: Final = "http://127.0.0.1:8000"
EXAMPLES: Final = """examples:
  synod serve deploy/configs/embedded.toml            serve five scorers on this machine until Ctrl-C
  synod scorers                                       list the service's scorers and the inputs they need
  synod score cat.png --prompt "a red cat" --scorers ber
  synod score out/ --prompt "a photo of <bo>" --scorers ber,der --references bo.png
  synod score items.jsonl --ensemble sync_r1 --out scores.jsonl    run again to resume after an interruption
  synod replay scores.jsonl --url http://new.example:8000          compare a log with another service's scores
  synod scorers --url http://service.example:8000       or https://, grpc://, grpcs://; set SYNOD_TOKEN to the token
  synod warm deploy/configs/sync_r1.toml              download every model of these settings before serving them
  synod verify deploy/configs/embedded.toml           check that scorers rank good inputs above bad ones
  synod train deploy/configs/embedded.toml            train the embedded policy on that service (`synod train --help`)
  synod personalize deploy/configs/personalize.toml   teach a policy a concept (`synod personalize --help`)
  synod evaluate runs/train --suite geneval           draw, score and summarise a benchmark (`synod evaluate --help`)

Exit status: 0 on success, 1 when anything failed (one score is enough), 2 for wrong usage.
"""
SCORE_EXAMPLES: Final = """examples:
  synod score cat.png --prompt "a red cat" --scorers ber             a table
  synod score out/ --prompt "a photo of <bo>" --scorers ber,der --references refs/
  synod score cat.png --prompt "a red cat" --scorers ber --json | jq '.results[0].scores.ber.value'
  synod score items.jsonl --scorers geneval --out scores.jsonl       a log; run again to resume

Each line of a .jsonl is one item, with images as paths relative to the .jsonl's folder. --prompt, --source-prompt and
--references apply to items that have none:
  {"image": "1.png", "prompt": "<bo> in a hat", "references": ["bo.png"], "concept": {"kind": "animal"}}
  {"image": "2.png", "geneval": {"tag": "counting", "include": [{"class": "cup", "count": 2}]}}

With --out, items that the log already holds are not scored again, and an incomplete last line is scored again. An item
that failed temporarily (unavailable, overloaded or late) gets no line, so that the next run scores it again.
"""
REPLAY_EXAMPLES: Final = """examples:
  synod replay scores.jsonl --url http://new.example:8000            the log's scorers, on another service
  synod replay scores.jsonl --scorers ber=ber_v2                     compare ber's scores with those of ber_v2
  synod replay scores.jsonl --tolerance 1e-6 --out again.jsonl       log the new scores together with the old ones

Prints per scorer: the number of items with both values (n), how many differ by more than the tolerance, the largest
difference, Pearson's and Spearman's correlation, the items that were scored before and fail now or the reverse, and the
models' digests before and after. An item whose image has changed since it was scored fails.
"""


class Usage(Exception):
    """Invalid arguments, found after parsing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    missing = [name for name in ("rich", "tqdm") if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(f"the command needs {' and '.join(missing)}; install them: pip install 'synod[cli]'", 2)
    try:
        if argv[:1] == ["train"]:
            train(argv[1:])
        if argv[:1] == ["personalize"]:
            personalize(argv[1:])
        if argv[:1] == ["evaluate"]:
            evaluate(argv[1:])
        options = build_parser().parse_args(argv)
        return int(options.run(options))
    except (Usage, SettingsError) as error:
        return _fail(error, 2)
    except SynodError as error:
        return _fail(error, 1)
    except BrokenPipeError:  # `synod ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def score(options: argparse.Namespace) -> int:
    """Score images. Print a row for each, or append a line for each to a log, which a later run resumes."""
    found = sources(options.inputs, options.prompt, options.references, options.source_prompt, show.notify)
    template = ScoreRequest((), tuple(dict.fromkeys(options.scorers)), options.ensemble)
    if not template.scorers and template.ensemble is None:
        raise Usage("no scorer was given; give --scorers (`synod scorers` lists them) or --ensemble")
    if options.json and options.out:
        raise Usage("--json and --out exclude each other; the log is JSON with details")
    with SynodClient(options.url, timeout_s=options.timeout) as client:
        if options.out is not None:
            return commands.score_to_log(client, found, template, options.out)
        return commands.score_to_screen(client, found, template, as_json=options.json)


def replay(options: argparse.Namespace) -> int:
    """Score a log's items again, with another service or other scorers, and compare item by item."""
    names = {old: new or old for old, _, new in (name.partition("=") for name in options.scorers)}
    if options.out is not None and options.out.exists():
        raise Usage(f"{options.out} already exists; give --out a new file")
    lines = read_log(options.log)
    with SynodClient(options.url, timeout_s=options.timeout) as client:
        return commands.replay(
            client,
            lines,
            names,
            ensemble=options.ensemble,
            tolerance=options.tolerance,
            out=options.out,
            as_json=options.json,
        )


def scorers(options: argparse.Namespace) -> int:
    """List the scorers of a service: the inputs they need, their range and what they measure."""
    with SynodClient(options.url, timeout_s=options.timeout) as client:
        served = client.scorers()
    if options.json:
        print(json.dumps(served, indent=2))
        return 0
    rows = [
        [str(one["name"]), ", ".join(one.get("needs", ())), _range(one), str(one.get("summary", ""))] for one in served
    ]
    show.print_table(["SCORER", "NEEDS", "RANGE", "WHAT IT MEASURES"], rows)
    return 0


def serve(options: argparse.Namespace) -> NoReturn:
    """Serve the settings' scorers on this machine, in the foreground."""
    given = {"--port": options.port, "--run-dir": options.run_dir}
    passed = [word for option, value in given.items() if value is not None for word in (option, str(value))]
    _exec_service("up", options.config, *passed)


def warm(options: argparse.Namespace) -> int:
    """Download every model of the settings, the trainer's policy too, and read its files; print source, revision, size
    and digest."""
    return _check_models("warm", options.config)


def verify(options: argparse.Namespace) -> int:
    """Check that each scorer, and the trainer's policy, ranks known-good inputs above known-bad ones."""
    return _check_models("verify", options.config, *([] if options.pairs is None else ["--pairs", str(options.pairs)]))


def train(arguments: Sequence[str]) -> NoReturn:
    """Run the trainer's program with its own arguments, also --help."""
    _exec(_package_home("trainer"), "trainer", *arguments)


def evaluate(arguments: Sequence[str]) -> NoReturn:
    """Run the trainer's evaluation with its own arguments, also --help."""
    _exec(_package_home("trainer"), "trainer", "evaluate", *arguments)


def personalize(arguments: Sequence[str]) -> NoReturn:
    """Run the trainer's personalization with its own arguments, also --help."""
    _exec(_package_home("trainer"), "trainer", "personalize", *arguments)


def _package_home(program: str) -> Path:
    """Return the folder that holds a program's package. Raises SynodError when it is not found."""
    spec = importlib.machinery.PathFinder.find_spec(program, [os.getcwd(), *sys.path])
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    home = next((folder.parent for folder in folders if (folder / "__main__.py").exists()), None)
    if home is None:
        raise SynodError(
            f"the package '{program}' was not found; run the command from a checkout of Synod after `make setup`, "
            "or in Synod's container image"
        )
    return home


def _check_models(command: str, config: Path, *arguments: str) -> int:
    """Run a command of the service, of the trainer, or both in turn: of those that the settings have a table for.

    An image holds one of the packages; the table of the other is left out, with a note.
    """
    tree = toml.read(_existing(config), {})
    homes: dict[str, Path] = {}
    for program, table in (("services", "scorers"), ("trainer", "trainer")):
        if table in tree:
            try:
                homes[program] = _package_home(program)
            except SynodError:
                show.notify(f"the models of [{table}] are left out: the package '{program}' is not installed here")
    if not homes:
        raise SynodError(
            f"nothing was checked: {config} has no [scorers] or [trainer] table whose package ('services', 'trainer') "
            "is installed here"
        )
    statuses = []
    for program, home in homes.items():
        line, environ = _command_line(home, program, command, str(config.resolve()), *arguments)
        statuses.append(subprocess.run(line, env=environ, check=False).returncode)
    failed = next((status for status in statuses if status), 0)
    return failed if failed >= 0 else 128 - failed  # killed by a signal


def _exec_service(command: str, config: Path, *arguments: str) -> NoReturn:
    _exec(_package_home("services"), "services", command, str(_existing(config).resolve()), *arguments)


def _existing(config: Path) -> Path:
    if not config.is_file():
        raise Usage(f"the settings file {config} does not exist; give one such as deploy/configs/embedded.toml")
    return config


def _exec(home: Path, program: str, *arguments: str) -> NoReturn:
    line, environ = _command_line(home, program, *arguments)
    os.execve(sys.executable, line, environ)


def _command_line(home: Path, program: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs a program's package, and its environment."""
    path = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
    return [sys.executable, "-m", program, *arguments], {**os.environ, "PYTHONPATH": path}


def _range(scorer: dict[str, object]) -> str:
    return f"{scorer.get('low', '?')} .. {scorer.get('high', '?')}"


def _fail(error: Exception | str, status: int) -> int:
    print(f"synod: {error}", file=sys.stderr)
    return status


def _command(
    named: Any, name: str, service: argparse.ArgumentParser, what: str, run: Callable[..., int], examples: str
) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = named.add_parser(
        name,
        parents=[service],
        help=what,
        description=run.__doc__,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.set_defaults(run=run)
    return one


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"'{text}' contains an empty name; give names such as ber,der")
    return names


def _tolerance(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (tolerance := float(text)) < math.inf:
            return tolerance
    raise argparse.ArgumentTypeError(f"'{text}' is not a tolerance; give a number >= 0")


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < 1e6:
            return seconds
    raise argparse.ArgumentTypeError(f"'{text}' is not a timeout; give seconds above 0")


def _url(text: str) -> str:
    try:
        scheme_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="synod",
        description="Score generated images with the reward models of a Synod service.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    named = parser.add_subparsers(required=True, metavar="COMMAND")
    service = argparse.ArgumentParser(add_help=False)
    service.add_argument("--url", type=_url, default=URL, help="URL of the service (default: %(default)s)")
    service.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="S", help="seconds to wait for a response (default: 60)"
    )
    service.add_argument("--json", action="store_true", help="print JSON with details")

    one = _command(named, "score", service, "score images", score, SCORE_EXAMPLES)
    one.add_argument("inputs", nargs="+", type=Path, metavar="IMAGE|DIR|JSONL", help="images, folders of images, items")
    one.add_argument("--prompt", help="the prompt that the images were generated from")
    one.add_argument("--source-prompt", metavar="PROMPT", help="for edits: the prompt of the first reference")
    one.add_argument(
        "--scorers",
        "--scorer",
        action="extend",
        type=_names,
        default=[],
        metavar="NAME[,NAME]",
        help="scorers to run; repeatable",
    )
    one.add_argument("--ensemble", metavar="NAME", help="compute the reward of this ensemble, too")
    one.add_argument(
        "--references",
        "--reference",
        action="append",
        default=[],
        type=Path,
        metavar="IMAGE|DIR",
        help="reference images of the concept; repeatable",
    )
    one.add_argument("--out", type=Path, metavar="JSONL", help="the log to write or resume")
    one = _command(named, "replay", service, "score a log again and compare", replay, REPLAY_EXAMPLES)
    one.add_argument("log", type=Path, metavar="LOG", help="a log that `synod score --out` wrote")
    one.add_argument(
        "--scorers",
        action="extend",
        type=_names,
        default=[],
        metavar="NAME[=NEW]",
        help="compare these scorers, with NEW in place of NAME (default: all in the log)",
    )
    one.add_argument("--ensemble", metavar="NAME", help="the ensemble whose rewards to compare (default: the log's)")
    one.add_argument(
        "--tolerance", type=_tolerance, default=0.0, metavar="X", help="ignore differences up to X (default: 0)"
    )
    one.add_argument(
        "--out", type=Path, metavar="JSONL", help="write a log of the new scores together with the old ones"
    )
    one = named.add_parser("scorers", parents=[service], help="list a service's scorers", description=scorers.__doc__)
    one.set_defaults(run=scorers)
    one = named.add_parser("serve", help="serve scorers on this machine until Ctrl-C", description=serve.__doc__)
    one.add_argument("config", type=Path, help="settings TOML, such as deploy/configs/embedded.toml")
    one.add_argument("--port", type=int, metavar="N", help="override [server] port")
    one.add_argument("--run-dir", type=Path, metavar="DIR", help="directory of logs and state (default: runs/service)")
    one.set_defaults(run=serve)
    for command, what in (
        (warm, "download the models of settings"),
        (verify, "check that scorers and policy rank good above bad"),
    ):
        one = named.add_parser(command.__name__, help=what, description=command.__doc__)
        one.add_argument("config", type=Path, help="settings TOML, such as deploy/configs/embedded.toml")
        one.set_defaults(run=command)
    one.add_argument(
        "--pairs", type=Path, metavar="JSONL", help="pairs to score (default: the file that the settings name)"
    )
    one = named.add_parser("train", help="train a policy on a service's rewards", add_help=False)
    one.add_argument("arguments", nargs="*", help="the trainer's arguments")
    one = named.add_parser("personalize", help="teach a policy a concept from photographs", add_help=False)
    one.add_argument("arguments", nargs=argparse.REMAINDER, help="the personalization's arguments")
    one = named.add_parser("evaluate", help="draw images from a policy and score them", add_help=False)
    one.add_argument("arguments", nargs=argparse.REMAINDER, help="the evaluation's arguments")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""The `synod` command: score images on a service, replay a score log, list scorers, serve a service, train a policy.

Exit status: 0 when everything asked for was done, 1 when something failed (a single score counts), 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.machinery
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from synod.client import SynodClient
from synod.client.transport import scheme_of
from synod.contracts import ScoreRequest
from synod.errors import SettingsError, SynodError
from synod.scoring import commands, show
from synod.scoring.inputs import sources
from synod.scoring.log import read_log

URL: Final = "http://127.0.0.1:8000"
EXAMPLES: Final = """examples:
  synod serve deploy/configs/embedded.toml            serve five scorers on this machine, until Ctrl-C
  synod scorers                                       what the service serves, and what each scorer needs
  synod score cat.png --prompt "a red cat" --scorers ber
  synod score out/ --prompt "a photo of <bo>" --scorers ber,der --references bo.png
  synod score items.jsonl --ensemble sync_r1 --out scores.jsonl    run it again to go on after a stop
  synod replay scores.jsonl --url http://new.example:8000          what would another service have said?
  synod scorers --url http://service.example:8000       or grpc://, https://, grpcs://; SYNOD_TOKEN holds the token
  synod warm deploy/configs/sync_r1.toml              fetch every model that these settings name, before they are served
  synod verify deploy/configs/embedded.toml           do the scorers, on their own weights, know better from worse?
  synod train deploy/configs/embedded.toml            train the embedded policy on that service (`synod train --help`)
"""
SCORE_EXAMPLES: Final = """examples:
  synod score cat.png --prompt "a red cat" --scorers ber             a table
  synod score out/ --prompt "a photo of <bo>" --scorers ber,der --references refs/
  synod score cat.png --prompt "a red cat" --scorers ber --json | jq '.results[0].scores.ber.value'
  synod score items.jsonl --scorers geneval --out scores.jsonl       a log; run it again to go on after a stop

A line of a .jsonl is one item, its images paths from the .jsonl's folder on; --prompt, --source-prompt and
--references are for items without their own:
  {"image": "1.png", "prompt": "<bo> in a hat", "references": ["bo.png"], "concept": {"kind": "animal"}}
  {"image": "2.png", "geneval": {"tag": "counting", "include": [{"class": "cup", "count": 2}]}}

With --out an item that is in the log already is not scored again, a line that was cut off is redone, and an item that
failed for want of a replica, room or time gets no line, so that the next run asks again.
"""
REPLAY_EXAMPLES: Final = """examples:
  synod replay scores.jsonl --url http://new.example:8000            the log's scorers, on another service
  synod replay scores.jsonl --scorers ber=ber_v2                     what was ber's, by the scorer ber_v2
  synod replay scores.jsonl --tolerance 1e-6 --out again.jsonl       a log of the new scores, the old ones beside them

Per scorer: items with both values (n), how many differ by more than the tolerance, the largest difference, Pearson's
and Spearman's correlation, the items that were scored and fail now or the reverse, and the models' digests before and
after. An image that is not the one that was scored fails its item.
"""


class Usage(Exception):
    """Arguments that cannot work, found after parsing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    missing = [name for name in ("rich", "tqdm") if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(f"the command needs {' and '.join(missing)}: pip install 'synod[cli]'", 2)
    try:
        if given[:1] == ["train"]:
            train(given[1:])
        options = _parser().parse_args(given)
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
    """Score images: a row each on the screen, or a line each in a log that the next run goes on with."""
    found = sources(options.inputs, options.prompt, options.references, options.source_prompt, show.notify)
    asked = ScoreRequest((), tuple(dict.fromkeys(options.scorers)), options.ensemble)
    if not asked.scorers and asked.ensemble is None:
        raise Usage("nothing to compute: give --scorers (`synod scorers` lists them) or --ensemble")
    if options.json and options.out:
        raise Usage("--json and --out: give one of them; the log is JSON, details included")
    with SynodClient(options.url, timeout_s=options.timeout) as client:
        if options.out is not None:
            return commands.score_to_log(client, found, asked, options.out)
        return commands.score_to_screen(client, found, asked, as_json=options.json)


def replay(options: argparse.Namespace) -> int:
    """Score a log's items again, through another service or other scorers, and compare item by item."""
    names = {old: new or old for old, _, new in (name.partition("=") for name in options.scorers)}
    if options.out is not None and options.out.exists():
        raise Usage(f"{options.out} exists; give --out a file that does not")
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
    """Print what the service serves."""
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
    """Become the service's program, in the foreground."""
    _become_service("up", options.config)


def warm(options: argparse.Namespace) -> NoReturn:
    """Fetch every model that the settings name, and read its files: a table of source, revision, size and digest."""
    _become_service("warm", options.config)


def verify(options: argparse.Namespace) -> NoReturn:
    """Score pairs of items on the settings' own weights, and tell which relations (better above worse) hold."""
    _become_service("verify", options.config, *([] if options.pairs is None else ["--pairs", str(options.pairs)]))


def train(arguments: Sequence[str]) -> NoReturn:
    """Become the trainer's program: `synod train --help` is its own."""
    _become(_home("trainer", "the trainer's program"), "trainer", *arguments)


def _home(program: str, what: str) -> Path:
    """The folder that holds a program's package. Raises SynodError when it is not here."""
    spec = importlib.machinery.PathFinder.find_spec(program, [os.getcwd(), *sys.path])
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    home = next((folder.parent for folder in folders if (folder / "__main__.py").exists()), None)
    if home is None:
        raise SynodError(
            f"{what} ('{program}') is not here; run this from a checkout of Synod after `make setup`, "
            "or run Synod's image"
        )
    return home


def _become_service(command: str, config: Path, *arguments: str) -> NoReturn:
    home = _home("services", "the service's program")
    if not config.is_file():
        raise Usage(f"no settings file {config}; give one such as deploy/configs/embedded.toml")
    _become(home, "services", command, str(config.resolve()), *arguments)


def _become(home: Path, program: str, *arguments: str) -> NoReturn:
    path = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
    os.execve(sys.executable, [sys.executable, "-m", program, *arguments], {**os.environ, "PYTHONPATH": path})


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
        raise argparse.ArgumentTypeError(f"'{text}' holds an empty name; give names such as ber,der")
    return names


def _tolerance(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (tolerance := float(text)) < math.inf:
            return tolerance
    raise argparse.ArgumentTypeError(f"'{text}' is no number from 0 on")


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < 1e6:
            return seconds
    raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds above 0")


def _url(text: str) -> str:
    try:
        scheme_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="synod",
        description="Score generated images with the reward models of a Synod service.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    named = parser.add_subparsers(required=True, metavar="COMMAND")
    service = argparse.ArgumentParser(add_help=False)
    service.add_argument("--url", type=_url, default=URL, help="the service's address (default: %(default)s)")
    service.add_argument("--timeout", type=_seconds, default=60.0, metavar="S", help="seconds to wait (default: 60)")
    service.add_argument("--json", action="store_true", help="print JSON, details included")

    one = _command(named, "score", service, "score images", score, SCORE_EXAMPLES)
    one.add_argument("inputs", nargs="+", type=Path, metavar="IMAGE|DIR|JSONL", help="images, folders of them, items")
    one.add_argument("--prompt", help="the prompt that images should show")
    one.add_argument(
        "--source-prompt", metavar="PROMPT", help="what the first reference shows, of which these are edits"
    )
    one.add_argument(
        "--scorers",
        "--scorer",
        action="extend",
        type=_names,
        default=[],
        metavar="NAME[,NAME]",
        help="what to compute; repeatable",
    )
    one.add_argument("--ensemble", metavar="NAME", help="adds the reward of this ensemble")
    one.add_argument(
        "--references",
        "--reference",
        action="append",
        default=[],
        type=Path,
        metavar="IMAGE|DIR",
        help="images of the concept; repeatable",
    )
    one.add_argument("--out", type=Path, metavar="JSONL", help="the log to write, or to go on with")
    one = _command(named, "replay", service, "score a log again and compare", replay, REPLAY_EXAMPLES)
    one.add_argument("log", type=Path, metavar="LOG", help="what `synod score --out` wrote")
    one.add_argument(
        "--scorers",
        action="extend",
        type=_names,
        default=[],
        metavar="NAME[=NEW]",
        help="compare these; NEW is asked in NAME's place (default: all that the log holds)",
    )
    one.add_argument("--ensemble", metavar="NAME", help="the ensemble asked for rewards (default: the log's)")
    one.add_argument(
        "--tolerance", type=_tolerance, default=0.0, metavar="X", help="differences up to X are none (default: 0)"
    )
    one.add_argument("--out", type=Path, metavar="JSONL", help="a log of the new scores, with those before")
    one = named.add_parser("scorers", parents=[service], help="list the scorers served", description=scorers.__doc__)
    one.set_defaults(run=scorers)
    one = named.add_parser("serve", help="serve a service here, until Ctrl-C", description=serve.__doc__)
    one.add_argument("config", type=Path, help="settings TOML, such as deploy/configs/embedded.toml")
    one.set_defaults(run=serve)
    for command, what in ((warm, "fetch the models that settings name"), (verify, "check scorers on their weights")):
        one = named.add_parser(command.__name__, help=what, description=command.__doc__)
        one.add_argument("config", type=Path, help="settings TOML, such as deploy/configs/embedded.toml")
        one.set_defaults(run=command)
    one.add_argument("--pairs", type=Path, metavar="JSONL", help="the pairs to score (default: the settings' own)")
    one = named.add_parser("train", help="train a policy on a service's rewards", add_help=False)
    one.add_argument("arguments", nargs="*", help="the trainer's own")
    return parser


if __name__ == "__main__":
    sys.exit(main())

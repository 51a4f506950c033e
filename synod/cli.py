"""The `synod` command: score pictures on a plane, list its scorers, serve one, train a policy on its rewards.

Exit status: 0 when everything asked for was done, 1 when something failed (a single score counts), 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.machinery
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from synod.client import SynodClient
from synod.client.transport import scheme_of
from synod.codec import CODECS
from synod.contracts import Outcome, Score, ScoreItem, ScoreRequest, ScoreResponse
from synod.errors import SettingsError, SynodError

URL: Final = "http://127.0.0.1:8000"
EXAMPLES: Final = """examples:
  synod serve deploy/configs/embedded.toml            serve five scorers on this machine, until Ctrl-C
  synod scorers                                       what the plane serves, and what each scorer needs
  synod score cat.png --prompt "a red cat" --scorer ber
  synod score out/*.png --prompt "a photo of <bo>" --scorer ber --scorer der --reference bo.png
  synod score cat.png --prompt "a red cat" --scorer ber --json | jq '.results[0].scores.ber.value'
  synod scorers --url http://plane.example:8000       or grpc://, https://, grpcs://; SYNOD_TOKEN holds the token
  synod train deploy/configs/embedded.toml            train the embedded policy on that plane (`synod train --help`)
"""


class Usage(Exception):
    """Arguments that cannot work, found after parsing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
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
    """Score every picture under one prompt and print a row each."""
    references = tuple(_read(path) for path in options.reference)
    names = tuple(dict.fromkeys(options.scorers))
    items = tuple(ScoreItem(_read(path), options.prompt, references) for path in options.images)
    with SynodClient(options.url, timeout_s=options.timeout) as client:
        response = client.score(ScoreRequest(items, names))
    failures = [
        f"{path}: {name}: {outcome.message}"
        for path, result in zip(options.images, response.results, strict=True)
        for name, outcome in result.scores.items()
        if not isinstance(outcome, Score)
    ]
    if options.json:
        print(CODECS["application/json"].encode_response(response).decode())
    else:
        print(_table(options.images, names, response))
    for failure in failures:
        print(f"synod: {failure}", file=sys.stderr)
    return 1 if failures else 0


def scorers(options: argparse.Namespace) -> int:
    """Print what the plane serves."""
    with SynodClient(options.url, timeout_s=options.timeout) as client:
        served = client.scorers()
    if options.json:
        print(json.dumps(served, indent=2))
        return 0
    rows = [
        [str(one["name"]), ", ".join(one.get("needs", ())), _range(one), str(one.get("summary", ""))] for one in served
    ]
    print(_columns([["SCORER", "NEEDS", "RANGE", "WHAT IT MEASURES"], *rows]))
    return 0


def serve(options: argparse.Namespace) -> NoReturn:
    """Become the plane's program, in the foreground."""
    config = options.config.resolve()
    home = _home("services", "the plane's program")
    if not config.is_file():
        raise Usage(f"no settings file {options.config}; give one such as deploy/configs/embedded.toml")
    _become(home, "services", "up", str(config))


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


def _become(home: Path, program: str, *arguments: str) -> NoReturn:
    path = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
    os.execve(sys.executable, [sys.executable, "-m", program, *arguments], {**os.environ, "PYTHONPATH": path})


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Usage(f"{path}: {error.strerror}; give a PNG, JPEG or WebP file") from None


def _table(images: Sequence[Path], names: Sequence[str], response: ScoreResponse) -> str:
    rows = [
        [str(path), *(_cell(result.scores[name]) for name in names)]
        for path, result in zip(images, response.results, strict=True)
    ]
    return _columns([["IMAGE", *names], *rows])


def _cell(outcome: Outcome) -> str:
    return f"{outcome.value:.4f}" if isinstance(outcome, Score) else outcome.code


def _range(scorer: dict[str, object]) -> str:
    return f"{scorer.get('low', '?')} .. {scorer.get('high', '?')}"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _fail(error: Exception, status: int) -> int:
    print(f"synod: {error}", file=sys.stderr)
    return status


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
        description="Score generated images with the reward models of a Synod plane.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    plane = argparse.ArgumentParser(add_help=False)
    plane.add_argument("--url", type=_url, default=URL, help="the plane's address (default: %(default)s)")
    plane.add_argument("--timeout", type=_seconds, default=60.0, metavar="S", help="seconds to wait (default: 60)")
    plane.add_argument("--json", action="store_true", help="print JSON, details included")

    one = commands.add_parser("score", parents=[plane], help="score pictures", description=score.__doc__)
    one.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="PNG, JPEG or WebP files")
    one.add_argument("--prompt", help="the prompt that all of them should show")
    one.add_argument(
        "--scorer", dest="scorers", action="append", required=True, metavar="NAME", help="repeat for several"
    )
    one.add_argument(
        "--reference",
        action="append",
        default=[],
        type=Path,
        metavar="IMAGE",
        help="of the concept; repeat for several",
    )
    one.set_defaults(run=score)
    one = commands.add_parser("scorers", parents=[plane], help="list the scorers served", description=scorers.__doc__)
    one.set_defaults(run=scorers)
    one = commands.add_parser("serve", help="serve a plane here, until Ctrl-C", description=serve.__doc__)
    one.add_argument("config", type=Path, help="settings TOML, such as deploy/configs/embedded.toml")
    one.set_defaults(run=serve)
    one = commands.add_parser("train", help="train a policy on a plane's rewards", add_help=False)
    one.add_argument("arguments", nargs="*", help="the trainer's own")
    return parser


if __name__ == "__main__":
    sys.exit(main())

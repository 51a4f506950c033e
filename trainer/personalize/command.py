"""The command `synod personalize CONFIG | prepare FOLDER | import SOURCE OUT | export CONCEPT OUT`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from synod import memory
from synod.contracts import CONCEPT_KINDS
from synod.errors import SettingsError, SynodError
from trainer.settings.personalize import PersonalizeSettings, load_personalize

DESCRIPTION: Final = """Teach a policy one concept from a few photographs: train the tokens of its name, nothing else.

The concept's folder ([personalize] data) holds 3 to 15 photographs and info.json; `synod personalize prepare FOLDER`
makes questions and answers from them. Three stages follow, each from the rows of the one before:
  1  understanding: questions about the photographs train `<name>` and the shared tokens s
  2  generation: masked codes of the photographs train the tokens g too
  3  the model draws the concept; regions of its images start the tokens u, which questions and photographs train

RUN_DIR/report.html shows the photographs next to images drawn after each stage, and the losses; RUN_DIR/stage-N has the
stage's tokens in concept/. The same command skips stages that are done and resumes a stopped one from its last
checkpoint. RUN_DIR/concept is the result; use it in a training or an evaluation:

  [trainer.policy]
  concepts = ["runs/bo/concept"]        # prompts and questions may then say <bo>
  train = "rows"                        # Sync-GRPO trains the tokens alone (docs/personalization.md)
"""
EXAMPLES: Final = """examples:
  synod personalize deploy/configs/personalize.toml
  synod personalize CONFIG.toml --data photographs/bo --run-dir runs/bo      another concept by the same settings
  synod personalize CONFIG.toml --stages 1,2                                 without stage 3, as in Sync-R1
  SYNOD__PERSONALIZE__STAGE_2__LR=1e-2 synod personalize CONFIG.toml --run-dir runs/faster
  synod personalize prepare photographs/bo                                   questions for a folder of photographs
  synod personalize import saves/bo/example OUT --base MODEL --name "<bo>" --class dog --kind animal
  synod personalize export runs/bo/concept OUT                               the three files of the authors' code

Exit status: 0 on success and after a stop, 1 for an error, 130 for an interrupt.
"""
IMPORT: Final = """Write a concept directory from the three files of the authors' code, epoch_E_embed.pt and so on.

They hold rows and nothing else: give the base model that they were trained on, and what the concept is. 17, 25 and 33
rows are read as the authors' stages 1, 2 and 3. SOURCE may also be a concept directory, to be used with another base
model by --force-base.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    given = list(arguments)
    try:
        if given[:1] == ["prepare"]:
            from trainer.personalize.prepare import main as prepare

            return prepare(given[1:])
        if given[:1] == ["import"]:
            return _import(_import_parser().parse_args(given[1:]))
        if given[:1] == ["export"]:
            return _export(given[1:])
        return _personalize(_parser().parse_args(given))
    except (SynodError, SettingsError, OSError, ArithmeticError) as error:
        print(f"synod personalize: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _personalize(options: argparse.Namespace) -> int:
    values = {
        "DATA": options.data and f'"{options.data.resolve()}"',
        "RUN_DIR": options.run_dir and f'"{options.run_dir.resolve()}"',
        "STAGES": options.stages and f"[{options.stages}]",
    }
    overrides = {f"SYNOD__PERSONALIZE__{key}": str(value) for key, value in values.items() if value is not None}
    settings: PersonalizeSettings = load_personalize(options.config, {**os.environ, **overrides})
    memory.keep_freed_memory()
    from trainer.personalize.run import personalize  # imported here: --help and a wrong setting need no torch

    return personalize(settings, force_base=options.force_base, skip_bad=options.skip_bad)


def _import(options: argparse.Namespace) -> int:
    from trainer.personalize import files
    from trainer.personalize.tokens import base_digest, insert, vq_digest
    from trainer.policy.show_o.loading import load

    policy = load(options.base, vq=options.vq)
    base, vq, width = base_digest(policy), vq_digest(policy), policy.config.phi.hidden_size
    if (options.source / files.CONCEPT).exists():
        info, rows = files.load_concept(options.source)
        files.check_base(options.source, info, base, vq, force_base=options.force_base)
        found = "a concept directory"
    else:
        needed = {"--name": options.name, "--class": options.word, "--kind": options.kind}
        if missing := [name for name, value in needed.items() if value is None]:
            raise SettingsError(f"{options.source} has rows and nothing else; give {', '.join(missing)}")
        info, rows, found = files.read_public(
            options.source, options.name, options.word, options.kind, base, width=width, counts=options.tokens
        )
    insert(policy, info.tokens, rows)  # refuses what the model cannot use
    files.save_concept(options.out, files.with_base(info, base, vq), rows)
    print(f"{info.tokens.name}: {found}; wrote {options.out}")
    return 0


def _export(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="synod personalize export", description="Write the three files of the authors' code from a concept."
    )
    parser.add_argument("concept", type=Path, help="a concept directory, such as RUN_DIR/concept")
    parser.add_argument("out", type=Path, help="the folder to write to")
    parser.add_argument("--epoch", type=int, default=20, metavar="E", help="the E of epoch_E_embed.pt (default: 20)")
    options = parser.parse_args(arguments)
    from trainer.personalize.files import load_concept, write_public

    for path in write_public(options.out, load_concept(options.concept)[1], options.epoch):
        print(f"wrote {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="synod personalize",
        usage="synod personalize CONFIG [options], or synod personalize prepare|import|export --help",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="settings TOML with [personalize] and [trainer.policy]")
    parser.add_argument("--data", type=Path, metavar="DIR", help="override [personalize] data")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="override [personalize] run_dir")
    parser.add_argument("--stages", metavar="1,2,3", help="override [personalize] stages")
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read")
    parser.add_argument(
        "--force-base", action="store_true", help="continue from a stage whose rows were trained on another base model"
    )
    return parser


def _import_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="synod personalize import",
        description=IMPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="the folder with the three files, or a concept directory")
    parser.add_argument("out", type=Path, help="the concept directory to write")
    parser.add_argument("--base", required=True, metavar="MODEL", help="directory or hub id of the base model")
    parser.add_argument("--vq", metavar="MODEL", help="its image tokenizer, if the model's directory has none")
    parser.add_argument("--name", help="the concept's name, such as '<bo>'")
    parser.add_argument("--class", dest="word", metavar="WORD", help="its class word, such as dog")
    parser.add_argument("--kind", choices=CONCEPT_KINDS, help="its kind")
    parser.add_argument("--tokens", metavar="K,M,N", help="the numbers of soft tokens, for another number of rows")
    parser.add_argument("--force-base", action="store_true", help="use rows that were trained on another base model")
    return parser

"""The commands `synod warm CONFIG` and `synod verify CONFIG`, for the policy of `[trainer]`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from synod import hub, toml
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import SettingsError, SynodError
from synod.scoring import pairs, show
from synod.scoring.pairs import POLICY, Verdict
from trainer.data.concepts import concept_names
from trainer.distributed import device
from trainer.policy import registry
from trainer.policy.registry import FAMILIES
from trainer.policy.weights import Source, directory_of
from trainer.settings import PolicySettings, load_personalize
from trainer.settings import load as load_settings


def main(arguments: Sequence[str]) -> int:
    """Run `warm` or `verify` and return its exit status: 0, or 1 if the policy cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    parser.add_argument(
        "command", choices=("warm", "verify"), help="download and check the policy, or rank pairs with it"
    )
    parser.add_argument("config", type=Path, help="settings TOML with a [trainer] table")
    parser.add_argument("--pairs", type=Path, help="pairs to rank (default: the file that the settings name)")
    options = parser.parse_args(arguments)
    try:
        policy, concepts = _wanted(options.config)
        if options.command == "warm":
            return warm(policy, concepts)
        return verify(policy, concepts, options.pairs or _pairs_file(options.config))
    except (SettingsError, SynodError, OSError) as error:
        print(f"synod {options.command}: {error}", file=sys.stderr)
        return 1


def _wanted(config: Path) -> tuple[PolicySettings, list[str]]:
    """Return the policy of a TOML and the concepts that its prompts use; of one for personalization alone none."""
    tree = toml.read(config)
    if "personalize" in tree and tree.get("trainer", {}).keys() <= {"policy"}:
        return load_personalize(config).policy, []
    settings = load_settings(config)
    return settings.policy, concept_names(settings.data)


def warm(settings: PolicySettings, concepts: Sequence[str]) -> int:
    """Download the policy's parts, print source, revision, size and digest of each, and check that they fit."""
    family = FAMILIES[settings.family]
    rows = [_row(source) for source in family.sources(settings)]
    show.print_table(["MODEL", "SOURCE", "REVISION", "SIZE", "DIGEST", "SECONDS"], rows)
    family.check(settings, concepts)
    print("the policy's weights, tokenizers and config.json fit each other")
    return 0


def verify(settings: PolicySettings, concepts: Sequence[str], path: Path | None) -> int:
    """Load the policy, and check that it finds an image likelier for its caption than for another."""
    policy = registry.load(settings, concepts=concepts)
    state = policy.module.state_dict()
    unusable = [key for key, value in state.items() if not value.isfinite().all()]
    if unusable:
        raise SettingsError(f"policy {settings.model} has NaN or infinity in {unusable[0]}; download it again")
    print(f"policy: {sum(value.numel() for value in state.values()):,} values in {len(state)} tensors, all finite")
    own = pairs.pairs_for(POLICY, POLICY, pairs.load(path)) if path is not None else []
    if not own:
        print(f"policy: there is no pair to rank; name a file of pairs with scorers = ['{POLICY}']")
        return 0
    policy.to(device())
    mean_logp = FAMILIES[settings.family].mean_logp

    def score(item: ScoreItem) -> Outcome:
        if item.image is None or item.prompt is None:
            return ScoreFailure("missing_input", "the policy ranks items with an image and a prompt")
        return Score(mean_logp(policy, item.pixels(), item.prompt))

    verdicts = [Verdict(pair.name, POLICY, score(pair.better), score(pair.worse)) for pair in own]
    show.print_table(["SCORER", "PAIR", "BETTER", "WORSE", ""], map(pairs.table_row, verdicts))
    held = sum(one.holds for one in verdicts)
    print(f"{held} of {len(verdicts)} relations hold")
    return 0 if held == len(verdicts) else 1


def _row(source: Source) -> list[str]:
    began_s = time.monotonic()
    folders = (source.folder,) if source.folder else ()
    root = directory_of(source.name, configs_only=source.configs_only, what=source.setting, folders=folders)
    path = root / source.folder
    files = hub.files(path)
    if source.configs_only:
        files = [file for file in files if file.suffix not in hub.WEIGHTS]
    size = f"{sum(file.stat().st_size for file in files) / 2**20:.1f} MiB"
    revision = "local" if Path(source.name).exists() else root.name[:12]
    digest = hub.digest(str(path))[:16]
    setting = "/".join(filter(None, (source.setting, source.folder)))
    return [setting, source.name, revision, size, digest, f"{time.monotonic() - began_s:.1f}"]


def _pairs_file(config: Path) -> Path | None:
    named = toml.read(config).get("pairs")
    try:
        return None if named is None else Path(toml.model_source(named, config.resolve().parent))
    except ValueError as error:
        raise SettingsError(f"settings file {config}: pairs: {error}") from None

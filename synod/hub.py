"""Find the files of a model: a directory, a file, or a Hugging Face repository at a revision."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth")
CONFIGS: Final = (".json", ".jinja", ".txt", ".model")
VARIANTS: Final = ("*.fp16*", "*.bf16*", "*.int4*")  # other forms of the same weights
_CHUNK_BYTES: Final = 2**20


def resolve(source: str, configs_only: bool = False, folders: Sequence[str] = ()) -> Path:
    """Return the local path of a model source. A hub id is downloaded into the hub cache unless HF_HUB_OFFLINE is set.

    'org/name@REVISION' is that branch, tag or commit, else the repository's default branch is meant.
    Safetensors are preferred; a repository without any is fetched with its `.bin` weights, or else its `.pt` weights,
    which are read with `weights_only=True`. Code is never fetched. `configs_only` fetches no weights, `folders` those
    of these folders alone, as safetensors. Raises what huggingface_hub raises when the id is unknown or the hub cannot
    be reached.
    """
    path = Path(source)
    if path.exists():
        return path.resolve()
    from huggingface_hub import snapshot_download  # imported here: the client does not need it

    name, _, revision = source.partition("@")
    fetch = partial(snapshot_download, name, revision=revision or None)
    patterns = [f"*{suffix}" for suffix in CONFIGS]
    if configs_only:
        return Path(fetch(allow_patterns=patterns))
    if folders:
        weights = [f"{folder}/*.safetensors" for folder in folders]
        return Path(fetch(allow_patterns=[*patterns, *weights], ignore_patterns=list(VARIANTS)))
    for suffix in (".safetensors", ".bin", ".pt"):
        folder = Path(fetch(allow_patterns=[*patterns, f"*{suffix}"]))
        if any(folder.glob(f"*{suffix}")):
            break
    return folder


def files(path: Path) -> list[Path]:
    """Return a model's weight and config files, by name: those directly in a directory, or the file itself."""
    return [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in WEIGHTS + CONFIGS)


def digest(source: str) -> str:
    """sha256 (hex) over the sorted names and contents of a model's weight and config files."""
    total = hashlib.sha256()
    for file in files(resolve(source)):
        total.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                total.update(chunk)
    return total.hexdigest()


def remedy(error: Exception) -> str:
    """Return what to do about an error of `resolve`, or "" for an error that has its own remedy."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}:
        return ". HF_HUB_OFFLINE is set or the hub cannot be reached: run this where it can, and share the cache"
    if names & {"RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError"}:
        return ". Correct the id or its @REVISION; a gated model needs HF_TOKEN"
    return ""

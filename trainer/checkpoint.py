"""Checkpoints: everything that a run needs to resume exactly. No pickle.

    <directory>/step-000020/   tensors.safetensors   every tensor of the state
                               state.json            the rest of the state, and the settings of the run

A checkpoint is written under another name, flushed to the disk and then renamed: a directory named step-* is complete,
whatever stopped the program.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from synod.errors import SettingsError
from trainer.settings import PolicySettings, ShowOSettings, SyncR1Settings, TrainerSettings

# A run may resume with other values of these settings, which do not change what it computes. `steps` is one of them
# only if the learning rate does not depend on the length of the run.
FREE: Final = {
    *("steps", "run_dir", "rewards.url", "rewards.patience_s", "checkpoint_every", "evaluate", "report"),
    *("loss.micro_batch", "policy.checkpointing", "ranks"),
}
# Where data is. Its content counts instead, so that a run may move; so it is with the policy (`contents`).
PATHS: Final = {"data.prompts", "data.heldout", "data.concepts"}
KEEP: Final = 2
Settings = TrainerSettings | Mapping[str, Any]  # of a training, or a fingerprint with whole keys
_TENSORS, _STATE = "tensors.safetensors", "state.json"
_NAME, _PARTIAL, _COMPLETE = "step-{:06d}", ".partial-", re.compile(r"step-(\d+)")


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written; earlier ones are intact."""


class CheckpointMismatch(SettingsError):
    """A checkpoint has other settings, or cannot be read."""


def save(directory: Path, step: int, state: Mapping[str, Any], settings: Settings, ranks: int = 1) -> Path:
    """Write `state` as the checkpoint after `step` steps, and remove all but the last KEEP.

    `state` is a tree of dicts with str or int keys, lists, tuples, tensors, strings, floats, ints, bools and None;
    `load` returns the same tree, bit for bit. `ranks`, the number of processes that train, is only recorded. An
    existing checkpoint of this step is left unchanged. Raises CheckpointNotWritten, for example on a full disk, and
    TypeError for anything else in the tree.
    """
    target, partial = directory / _NAME.format(step), directory / f"{_PARTIAL}{step}"
    tensors: dict[str, Tensor] = {}
    document = {"step": step, "ranks": ranks, "settings": _print_of(settings), "state": _split(state, "", tensors)}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            save_file(_unshared(tensors), partial / _TENSORS)
            (partial / _STATE).write_text(json.dumps(document))
            for path in (partial / _TENSORS, partial / _STATE, partial):
                _flush(path)
            partial.rename(target)
            _flush(directory)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        last = latest(directory)
        raise CheckpointNotWritten(
            f"the checkpoint of step {step} could not be written to {directory} ({error}); "
            f"{'no earlier one exists' if last is None else f'{last.name} is intact'}. Free some space "
            f"(it takes {sum(t.nbytes for t in tensors.values()) / 1e6:.0f} MB) and train again"
        ) from error
    _prune(directory, KEEP)
    return target


def latest(directory: Path) -> Path | None:
    """Return the newest checkpoint of `directory`, or None."""
    return next(reversed(_all(directory)), None)


def check(directory: Path, settings: Settings) -> int | None:
    """Return on how many ranks the newest checkpoint of `directory` was written; None: not known. Read no tensors.

    Raises CheckpointMismatch if it has other settings.
    """
    last = latest(directory)
    return None if last is None else _document(last, settings).get("ranks")


def load(path: Path, settings: Settings) -> tuple[int, dict[str, Any]]:
    """Read a checkpoint: (steps done, state), with tensors on the CPU. Raises CheckpointMismatch."""
    document = _document(path, settings)
    with _readable(path):
        return document["step"], _join(document["state"], load_file(path / _TENSORS))


def _document(path: Path, settings: Settings) -> dict[str, Any]:
    """Read state.json. Raises CheckpointMismatch for other settings."""
    with _readable(path):
        document: dict[str, Any] = json.loads((path / _STATE).read_text())
        theirs, ours = document["settings"], _print_of(settings)
        table = "trainer." if isinstance(settings, TrainerSettings) else ""
        changes = differences(theirs, ours, "there", "now", table)
    if changes:
        raise CheckpointMismatch(
            f"checkpoint {path} has other settings:\n" + "\n".join(changes) + "\nResume with its settings, or give "
            "a new `run_dir` to start again"
        )
    return document


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise CheckpointMismatch(
            f"checkpoint {path} cannot be read ({type(error).__name__}: {error}). Remove it to resume from the "
            "previous one, or give a new `run_dir`"
        ) from error


def _print_of(settings: Settings) -> dict[str, Any]:
    return fingerprint(settings) if isinstance(settings, TrainerSettings) else dict(settings)


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], where: str, there: str, table: str = "trainer."
) -> list[str]:
    """Return a line for each setting in which two fingerprints differ, in order."""
    different = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
    return [f"  {table}{key}: {_shown(first, key)} {where}, {_shown(second, key)} {there}" for key in different]


def fingerprint(settings: TrainerSettings, free: Set[str] | None = None) -> dict[str, Any]:
    """Return settings by dotted key but those of `free` and PATHS, as JSON values, and digests of the training data.

    None: what a checkpoint must match.
    """
    if free is None:
        free = FREE if settings.optimizer.schedule == "constant" else FREE - {"steps"}
    tree = {**settings.model_dump(mode="json"), "policy": contents(settings.policy)}
    found = {**flattened(tree, {*free, *PATHS}), "data.prompts (content)": file_digest(settings.data.prompts)}
    if isinstance(settings.data, SyncR1Settings):
        found["data.concepts (content)"] = folder_digest(settings.data.concepts)
    return found


def contents(policy: PolicySettings) -> dict[str, Any]:
    """Return a policy's settings as JSON values, wherever its files are.

    Concept tokens are there by name and digest; models are not: their weights have a digest (`TrainState.base`).
    """
    tree = policy.model_dump(mode="json", exclude={"model": True, "vq": True, "language": {"model"}})
    if isinstance(policy, ShowOSettings):
        tree["concepts"] = [f"{folder.name} {folder_digest(folder)}" for folder in policy.concepts]
    return tree


def flattened(tree: Mapping[str, Any], free: Set[str] = frozenset()) -> dict[str, Any]:
    """Return the values of nested tables by dotted key, but not those of the keys `free`."""
    flat: dict[str, Any] = {}
    pending = list(tree.items())
    while pending:
        key, value = pending.pop()
        if key in free:
            continue
        if isinstance(value, dict):
            pending += [(f"{key}.{name}", below) for name, below in value.items()]
        else:
            flat[key] = value
    return flat


def file_digest(path: Path) -> str:
    """Return a digest of a file's bytes: another file under the same name is another file."""
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def folder_digest(folder: Path) -> str:
    """Return a digest of the names and contents of all files in a directory."""
    files = sorted(one for one in folder.rglob("*") if one.is_file())
    listed = "\n".join(f"{file.relative_to(folder)} {file_digest(file)}" for file in files)
    return hashlib.blake2b(listed.encode(), digest_size=8).hexdigest()


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "absent"


def _all(directory: Path) -> list[Path]:
    """Return every checkpoint, oldest first."""
    found = {int(m[1]): path for path in directory.glob("*") if (m := _COMPLETE.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


def _prune(directory: Path, keep: int) -> None:
    """Remove all but the last `keep`, and incomplete ones; a failure to remove is ignored."""
    with contextlib.suppress(OSError):
        for old in _all(directory)[:-keep]:
            old.rename(directory / f"{_PARTIAL}{old.name}")
    for leftover in directory.glob(f"{_PARTIAL}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _split(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return `node` as JSON: containers become [kind, content], tensors move to `tensors`."""
    if isinstance(node, Tensor):
        name = f"{len(tensors)}{path}"
        tensors[name] = node.detach()
        return ["tensor", name]
    if isinstance(node, Mapping):
        for key in node:
            if type(key) not in (str, int):
                raise TypeError(f"{path}: key {key!r} is not a string or an integer, the only keys of a checkpoint")
        return ["dict", [[key, _split(value, f"{path}/{key}", tensors)] for key, value in node.items()]]
    if type(node) in (list, tuple):
        return [type(node).__name__, [_split(value, f"{path}/{i}", tensors) for i, value in enumerate(node)]]
    if node is None or type(node) in (bool, int, float, str):
        return node
    raise TypeError(f"{path}: a checkpoint cannot hold a {type(node).__name__}; give tensors, lists, dicts or scalars")


def _join(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(node, list):
        return node
    kind, content = node
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _join(value, tensors) for key, value in content}
    values = [_join(value, tensors) for value in content]
    return tuple(values) if kind == "tuple" else values


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors without shared memory, which tied weights have and safetensors refuses."""
    seen: set[tuple[torch.device, int]] = set()
    own = {}
    for key, tensor in tensors.items():
        place = (tensor.device, tensor.untyped_storage().data_ptr())
        own[key] = tensor.clone() if place in seen else tensor
        own[key] = own[key].contiguous()
        seen.add(place)
    return own


def _flush(path: Path) -> None:
    """Flush a file or directory to the disk, so that a rename never comes before its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

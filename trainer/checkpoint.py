"""Checkpoints: everything that a run needs to go on as if it had never stopped. No pickle.

    <directory>/step-000020/   tensors.safetensors   every tensor of the state
                               state.json            the rest of it, and the settings it was made with

A checkpoint is written beside the others under another name and renamed when it is whole and on the disk: a directory
named step-* is complete, whatever stopped the program.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from synod.errors import SettingsError
from trainer.settings import TrainerSettings

# A run may go on under other values of these: they change how far and where it runs, not what it computes.
FREE: Final = ("steps", "run_dir", "service", "checkpoint_every", "evaluation_prompts")
KEEP: Final = 2
_TENSORS, _STATE = "tensors.safetensors", "state.json"
_NAME, _PARTIAL, _COMPLETE = "step-{:06d}", ".partial-", re.compile(r"step-(\d+)")


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written; those that were there are intact."""


class CheckpointMismatch(SettingsError):
    """A checkpoint that was made under other settings, or cannot be read."""


def save(directory: Path, step: int, state: Mapping[str, Any], settings: TrainerSettings) -> Path:
    """Write `state` as the checkpoint after `step` steps, and remove all but the last KEEP.

    `state` is a tree of dicts with str or int keys, lists, tuples, tensors, strings, finite and other floats, ints,
    bools and None; `load` gives the same tree back, bit for bit. A step that is there already is left as it is.
    Raises CheckpointNotWritten (a full disk, say), TypeError for anything else in the tree.
    """
    target, partial = directory / _NAME.format(step), directory / f"{_PARTIAL}{step}"
    tensors: dict[str, Tensor] = {}
    document = {"step": step, "settings": fingerprint(settings), "state": _split(state, "", tensors)}
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
            f"{'there is none before it' if last is None else f'{last.name} is intact'}. Free some space "
            f"(it takes {sum(t.nbytes for t in tensors.values()) / 1e6:.0f} MB) and train again"
        ) from error
    _prune(directory, KEEP)
    return target


def latest(directory: Path) -> Path | None:
    """The newest checkpoint of `directory`; None when there is none."""
    return next(reversed(_all(directory)), None)


def load(path: Path, settings: TrainerSettings) -> tuple[int, dict[str, Any]]:
    """(steps done, state) of a checkpoint, tensors on the CPU. Raises CheckpointMismatch."""
    try:
        document = json.loads((path / _STATE).read_text())
        theirs, ours = document["settings"], fingerprint(settings)
        different = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
        if different:
            told = [f"  trainer.{key}: {_shown(theirs, key)} there, {_shown(ours, key)} now" for key in different]
            raise CheckpointMismatch(
                f"checkpoint {path} was made with other settings:\n" + "\n".join(told) + "\nGo on with its settings, "
                "or give [trainer] a new `run_dir` directory to start afresh"
            )
        return document["step"], _join(document["state"], load_file(path / _TENSORS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        if isinstance(error, CheckpointMismatch):
            raise
        raise CheckpointMismatch(
            f"checkpoint {path} cannot be read ({type(error).__name__}: {error}). Remove it to go on from the one "
            "before, or give [trainer] a new `run_dir` directory"
        ) from error


def fingerprint(settings: TrainerSettings) -> dict[str, Any]:
    """The settings that a run is bound to, by dotted key, as JSON carries them."""
    tree = settings.model_dump(mode="json", exclude=set(FREE))
    flat: dict[str, Any] = {}
    pending = list(tree.items())
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{key}.{name}", below) for name, below in value.items()]
        else:
            flat[key] = value
    return flat


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "absent"


def _all(directory: Path) -> list[Path]:
    """Every checkpoint, oldest first."""
    found = {int(m[1]): path for path in directory.glob("*") if (m := _COMPLETE.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


def _prune(directory: Path, keep: int) -> None:
    """Remove all but the last `keep` and what was left half-written. What cannot be removed does no harm."""
    with contextlib.suppress(OSError):
        for old in _all(directory)[:-keep]:
            old.rename(directory / f"{_PARTIAL}{old.name}")
    for leftover in directory.glob(f"{_PARTIAL}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _split(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`node` as JSON carries it: containers become [kind, content], tensors move to `tensors` under number and path."""
    if isinstance(node, Tensor):
        name = f"{len(tensors)}{path}"
        tensors[name] = node.detach()
        return ["tensor", name]
    if isinstance(node, Mapping):
        for key in node:
            if type(key) not in (str, int):
                raise TypeError(f"{path}: key {key!r} is no string or whole number, the only keys of a checkpoint")
        return ["dict", [[key, _split(value, f"{path}/{key}", tensors)] for key, value in node.items()]]
    if type(node) in (list, tuple):
        return [type(node).__name__, [_split(value, f"{path}/{i}", tensors) for i, value in enumerate(node)]]
    if node is None or type(node) in (bool, int, float, str):
        return node
    raise TypeError(
        f"{path}: a {type(node).__name__} does not go into a checkpoint; give tensors, lists, dicts, scalars"
    )


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
    """Contiguous tensors, each with memory of its own (tied weights share theirs, which safetensors refuse)."""
    seen: set[tuple[torch.device, int]] = set()
    own = {}
    for key, tensor in tensors.items():
        place = (tensor.device, tensor.untyped_storage().data_ptr())
        own[key] = tensor.clone() if place in seen else tensor
        own[key] = own[key].contiguous()
        seen.add(place)
    return own


def _flush(path: Path) -> None:
    """To the disk, so that a rename never outruns what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

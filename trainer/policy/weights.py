"""Read and write the weights of a model directory: safetensors or .bin, one file or sharded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from synod import hub
from synod.errors import SettingsError

T = TypeVar("T")
Shape = tuple[int, ...]

# Show-o's own saver names the index of its shards as diffusers does.
NAMES: Final = tuple(
    f"{stem}.{suffix}"
    for suffix in ("safetensors", "bin")
    for stem in ("pytorch_model", "model", "diffusion_pytorch_model")
)
_PIECE: Final = 2**23  # elements that are read at once, as whole rows: only these are in memory twice


@dataclass(frozen=True)
class Source:
    """A directory or hub id, the `setting` that names it, and whether only its configuration files are needed.

    `folder` is the part of a model in several folders; "": the whole directory.
    """

    setting: str
    name: str
    configs_only: bool = False
    folder: str = ""


def directory_of(
    source: str | Path, *, configs_only: bool = False, what: str = "model", folders: Sequence[str] = ()
) -> Path:
    """Return the given directory, or the download of a hub id, 'org/name' or 'org/name@REVISION'.

    `configs_only` downloads no weights, `folders` those of these folders alone. Raises SettingsError that names `what`
    is missing.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return hub.resolve(str(source), configs_only, folders)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        message = str(error).strip().partition("\n")[0].rstrip(".")
        raise SettingsError(
            f"{what} '{source}' is not a directory and cannot be downloaded ({message}){hub.remedy(error)}"
        ) from None


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Build the modules inside without memory and random values for their parameters; fill them by `read_weights`.

    Buffers are built as always: those that no file holds keep their computed values.
    """

    def move(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        return None if parameter is None else nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    handle = nn.modules.module.register_module_parameter_registration_hook(move)  # type: ignore[arg-type]
    try:
        with _NoInitialValues():
            yield
    finally:
        handle.remove()


class _NoInitialValues(TorchFunctionMode):
    """Skip `nn.init` on `meta`, where it has no effect, but imports 900 modules of torch in 2.5 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            tensor = kwargs["tensor"] if "tensor" in kwargs else args[0]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def read_weights(module: nn.Module, directory: Path, dtype: torch.dtype | None = torch.float32) -> None:
    """Make the directory's weights the module's own, in `dtype` (None: as stored); integers stay integers.

    With a module built under `parameters_on_meta`, memory peaks at little more than the weights in `dtype`. Raises
    SettingsError, with the module unchanged, as `check_weights` does.
    """
    check_weights(module, directory)
    own, state = module.state_dict(), {}
    for key, value in tensors(directory, dtype):
        if value.is_floating_point() != own[key].is_floating_point():
            raise SettingsError(f"{directory} has {key} as {value.dtype}; give a model that fits its config.json")
        state[key] = value
    module.load_state_dict(state, assign=True)


def check_weights(module: nn.Module, directory: Path) -> None:
    """Compare the directory's keys and shapes with the module's, without reading its tensors.

    Raises SettingsError for files that are missing or cannot be read, and for missing or unknown keys.
    """
    stored = {key: shape for path in _files(directory) for key, shape in _shapes(path).items()}
    own = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    missing, extra = sorted(own.keys() - stored.keys()), sorted(stored.keys() - own.keys())
    shapes = [f"{k} {stored[k]} for {own[k]}" for k in own.keys() & stored.keys() if own[k] != stored[k]]
    for what, keys in (("lacks", missing), ("has unknown keys", extra), ("has other shapes:", sorted(shapes))):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise SettingsError(
                f"{directory} {what} {', '.join(keys[:3])}{more}; give a {type(module).__name__} of this config.json"
            )


def tensors(directory: Path, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield the directory's tensors by key, on the CPU, floating ones in `dtype` (None: as stored).

    They have their own memory, with torch's alignment: writing the file again does not change them. Raises
    SettingsError.
    """
    for path in _files(directory):
        for key, shape, start, rows in _rows(path):
            if start == 0:
                found = torch.empty(shape, dtype=dtype if dtype and rows.is_floating_point() else rows.dtype)
            if not shape:
                found.copy_(rows)
            else:
                found[start : start + len(rows)] = rows
            if not shape or start + len(rows) == shape[0]:
                yield key, found


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's parameters and buffers by key; `state_dict` of a policy split over ranks returns parts.

    Buffers that a module computes when it is built, such as positions, are not part of its weights.
    """
    computed = {
        f"{prefix}.{name}".removeprefix(".")
        for prefix, part in module.named_modules()
        for name in part._non_persistent_buffers_set
    }
    found = (*module.named_parameters(), *module.named_buffers())
    return {key: tensor.detach() for key, tensor in found if key not in computed}


def write_weights(state: Mapping[str, Tensor], directory: Path, name: str = NAMES[0]) -> None:
    """Write a state dict as one safetensors file, which `read_weights` reads; `name` is one of NAMES."""
    assert name in NAMES
    save_file({key: value.contiguous() for key, value in state.items()}, directory / name)


def read_config(directory: Path, name: str = "config.json") -> dict[str, Any]:
    """Return the directory's config.json, or the file `name`. Raises SettingsError if it is not a JSON object."""
    return _read_object(directory / name, "give a model directory")


def parse_config(kind: type[T], fields: Mapping[str, Any], where: str) -> T:
    """Return the dataclass `kind` of those `fields` that it has; the others are ignored.

    Raises SettingsError, which begins with `where`, for a missing field and for a value of another type.
    """
    known = {name: fields[name] for name in kind.__annotations__ if name in fields}
    try:
        return TypeAdapter(kind).validate_json(json.dumps(known), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        given = "" if first["type"] == "missing" else f" (given: {first['input']!r})"
        raise SettingsError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}{given}") from None


def _files(directory: Path) -> list[Path]:
    """Return the weights files: one, or the shards that an index (`NAME.index.json`) names."""
    for name in NAMES:
        index = directory / f"{name}.index.json"
        if index.exists():
            return _shards(index)
        if (directory / name).exists():
            return [directory / name]
    raise SettingsError(f"{directory} has no weights; give one of {', '.join(NAMES)}")


def _shards(index: Path) -> list[Path]:
    shard_of = _read_object(index, "download it again").get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(name, str) for name in shard_of.values()):
        raise SettingsError(f"{index} has no 'weight_map' from keys to shards; download it again")
    names = sorted(set(shard_of.values()))
    lost = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if lost:
        raise SettingsError(f"{index.parent} lacks {', '.join(lost)}, which {index.name} names; download it again")
    return [index.parent / name for name in names]


def _shapes(path: Path) -> dict[str, Shape]:
    return {key: tuple(value.shape) for key, value in _mapped(path).items()}


def _rows(path: Path) -> Iterator[tuple[str, Shape, int, Tensor]]:
    """Yield key, shape, the first row and rows: every tensor's rows in order, a few at a time.

    What is read of a mapping stays in memory as long as the mapping does, so the file is mapped again and again.
    """
    mapped, read = _mapped(path), 0
    for key, shape in _shapes(path).items():
        for rows in _row_ranges(shape) if shape else [slice(0, 1)]:
            if read > _PIECE:
                del mapped
                mapped, read = _mapped(path), 0
            value = mapped[key][rows] if shape else mapped[key]
            read += value.numel()
            yield key, shape, rows.start, value
            del value


def _row_ranges(shape: Shape) -> list[slice]:
    """Return ranges of rows that have _PIECE elements or fewer, if a row has; one range for a tensor without rows."""
    count = max(1, _PIECE // max(1, math.prod(shape[1:])))
    return [slice(start, min(start + count, shape[0])) for start in range(0, max(1, shape[0]), count)]


def _mapped(path: Path) -> dict[str, Tensor]:
    """Return the file's tensors as views of a mapping of it: nothing is read yet but its header."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the two readers raise a dozen kinds
        raise _unreadable(path, error) from None
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise SettingsError(f"{path} is not a table of tensors; give a state dict")
    return dict(found)


def _unreadable(path: Path, error: Exception) -> SettingsError:
    cause = str(error).strip().partition("\n")[0]
    return SettingsError(f"{path} cannot be read safely ({cause}); download it again, or store it as safetensors")


def _read_object(path: Path, remedy: str) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"{path.parent} has no {path.name} ({error.strerror}); {remedy}") from None
    except ValueError as error:
        raise SettingsError(f"{path} is not valid JSON ({error}); write or download it again") from None
    if not isinstance(stored, dict):
        raise SettingsError(f"{path} holds a {type(stored).__name__}, expected an object")
    return stored

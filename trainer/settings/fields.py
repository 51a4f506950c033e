"""What every table of settings shares: a frozen record, and paths that resolve from the TOML's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from synod import toml


def _folder(info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder", Path.cwd())
    assert isinstance(folder, Path)
    return folder


def _source(source: str, info: ValidationInfo) -> str:
    return toml.model_source(source, _folder(info))


def _path(path: Path, info: ValidationInfo) -> Path:
    return (_folder(info) / path).resolve()


def _file(path: Path, info: ValidationInfo) -> Path:
    found = _path(path, info)
    if not found.is_file():
        raise ValueError(f"'{path}': no such file: {found}. Give a file of prompts")
    return found


def _directory(path: Path, info: ValidationInfo) -> Path:
    found = _path(path, info)
    if not found.is_dir():
        raise ValueError(f"'{path}': no such directory: {found}. Give a directory that exists")
    return found


ModelSource = Annotated[str, AfterValidator(_source)]
OutputPath = Annotated[Path, AfterValidator(_path)]
PromptFile = Annotated[Path, AfterValidator(_file)]
Directory = Annotated[Path, AfterValidator(_directory)]
Result = Literal["image", "answer", "cycled"]  # of a rollout's turns (`trainer.types.Result`)
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Node(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

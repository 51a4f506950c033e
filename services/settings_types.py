"""Building blocks of the service's settings: the frozen record, types of fields, and what all scorers have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

from synod import toml


def _resolve_source(source: str, info: ValidationInfo) -> str:
    return toml.model_source(source, (info.context or {}).get("folder", Path.cwd()))


def _resolve_path(place: str, info: ValidationInfo) -> str:
    return str((info.context or {}).get("folder", Path.cwd()) / Path(place).expanduser())


def _custom_resource(name: str) -> str:
    if name in ("CPU", "GPU", "memory", "object_store_memory"):
        raise ValueError(f"'{name}' is a built-in resource of Ray; name a custom resource that the nodes declare")
    return name


CustomResource = Annotated[str, Field(min_length=1), AfterValidator(_custom_resource)]
LocalPath = Annotated[str, AfterValidator(_resolve_path)]  # relative to the TOML's folder; need not exist yet
ModelSource = Annotated[str, AfterValidator(_resolve_source)]


def is_source(field: FieldInfo) -> bool:
    """Return whether a field holds a model source, or a table of them."""
    return _names_sources(field.annotation) or any(_resolves(one) for one in field.metadata)


def _names_sources(annotation: Any) -> bool:
    return any(_resolves(one) or _names_sources(one) for one in get_args(annotation))


def _resolves(one: Any) -> bool:
    return isinstance(one, AfterValidator) and one.func is _resolve_source


DType = Literal["float32", "bfloat16", "float16"]


class Node(BaseModel):
    """A table of the service's TOML. It is frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ServingSettings(Node):
    """One scorer's deployment: its replicas, the resources of each, and how batches form.

    `num_gpus` per replica is a fraction of one GPU, or a whole number. `dtype` is the type of weights and activations;
    `compile` runs the models through torch.compile, which happens before the replica is ready.

    With `max_replicas`, the number of replicas follows the load between `replicas` (which may then be 0) and
    `max_replicas`; `[cluster]` has the delays.

    `colocate_with` names another scorer, whose replicas then run this one too and whose settings say what a replica
    takes of a machine. Small scorers thus share a process, a share of a GPU, and the models that they have in common.

    `python` is the interpreter of another environment, for a scorer whose packages conflict with the service's: the
    replica runs in it, or keeps a child process in it (`services.environments` says when). `resource` is a custom Ray
    resource of which each replica takes a little, for a cluster whose nodes differ in what they hold: their own Python
    is then the replica's, and `python`, which is theirs, the child process's.

    A batch closes at `max_batch_images` or `batch_wait_ms` after its first image, whichever comes first.
    """

    colocate_with: str | None = None
    replicas: int = Field(1, ge=0)
    max_replicas: int | None = Field(None, ge=1)
    num_cpus: float = Field(0.1, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    device: str | None = None
    dtype: DType = "float32"
    compile: bool = False
    threads: int | None = Field(None, ge=1)
    python: LocalPath | None = None
    resource: CustomResource | None = None
    max_batch_images: int = Field(32, ge=1)
    batch_wait_ms: float = Field(5.0, ge=0)

    @model_validator(mode="after")
    def _host_decides_the_resources(self) -> ServingSettings:
        own = sorted(
            {"replicas", "max_replicas", "num_cpus", "num_gpus", "threads", "python", "resource"}
            & self.model_fields_set
        )
        if self.colocate_with is not None and own:
            raise ValueError(
                f"{', '.join(own)} with colocate_with = '{self.colocate_with}': set it in that scorer's serving"
            )
        return self

    @model_validator(mode="after")
    def _replicas_in_order(self) -> ServingSettings:
        if self.most_replicas < max(self.replicas, 1):
            raise ValueError(
                f"replicas = {self.replicas}, max_replicas = {self.max_replicas}: give 1 or more, in order"
            )
        return self

    @model_validator(mode="after")
    def _python_exists(self) -> ServingSettings:
        if self.python is None or self.resource is not None:  # with a resource it is on the nodes that have that
            return self
        path = Path(self.python)
        if path.is_dir():
            raise ValueError(f"python = '{path}' is a folder. Name the interpreter in it, such as '{path}/bin/python'")
        if not path.is_file():
            raise ValueError(
                f"python = '{path}': no such file. Make the environment (python -m venv {path.parent.parent}) "
                "or correct the path"
            )
        if not os.access(path, os.X_OK):
            raise ValueError(f"python = '{path}' is not executable. Name the environment's own bin/python")
        return self

    @property
    def most_replicas(self) -> int:
        """Return the largest number of replicas."""
        return self.replicas if self.max_replicas is None else self.max_replicas

    @field_validator("num_gpus")
    @classmethod
    def _fraction_or_whole(cls, num_gpus: float) -> float:
        if num_gpus > 1 and num_gpus != int(num_gpus):
            raise ValueError(f"{num_gpus} GPUs for a replica: give a share up to 1, or a whole number")
        return num_gpus


class ScorerSettings(Node):
    """Settings of every scorer. `services.scorers.<kind>` adds its own in a subclass."""

    calls_external_api: ClassVar[bool] = False  # whether another server computes the scores, as for a judge model
    kind: str
    serving: ServingSettings = ServingSettings()
    golden_tolerance: float = Field(1e-3, gt=0)


class SingleModelSettings(ScorerSettings):
    """What a scorer of one model has: the model's directory, `package:` path or hub id."""

    model: ModelSource

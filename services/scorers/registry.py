"""The scorers by kind: each is the module or package of `services.scorers` that has the kind's name.

Such a module has a settings class, `spec(name, settings)` and `build(name, settings)`. It imports models inside `build`
only, so that importing this module and reading settings load no model library.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol, Union, cast, get_type_hints

from pydantic import Field, TypeAdapter

from services import child, environments, scorers
from services.scorers.base import Scorer, ScorerSpec
from services.scorers.custom import Custom
from services.settings_types import ScorerSettings

_NOT_SCORERS: Final = ("base", "registry", "shared")


class ScorerModule(Protocol):
    """What the module of a kind has; the type of `settings` in both is the kind's own settings class."""

    def spec(self, name: str, settings: Any) -> ScorerSpec:
        """Return what the scorer `name` needs and returns, without loading a model."""
        ...

    def build(self, name: str, settings: Any) -> Scorer:
        """Load the models and return the scorer `name`."""
        ...


MODULES: Final[Mapping[str, ScorerModule]] = {
    module.name: cast("ScorerModule", importlib.import_module(f"services.scorers.{module.name}"))
    for module in pkgutil.iter_modules(scorers.__path__)
    if module.name not in _NOT_SCORERS
}
CLASSES: Final[Mapping[str, type[ScorerSettings]]] = {
    kind: get_type_hints(module.spec)["settings"] for kind, module in MODULES.items()
}
if TYPE_CHECKING:
    AnyScorerSettings = ScorerSettings
else:
    AnyScorerSettings = Annotated[Union[tuple(CLASSES.values())], Field(discriminator="kind")]  # noqa: UP007
SETTINGS: Final[TypeAdapter[ScorerSettings]] = TypeAdapter(AnyScorerSettings)


def spec(name: str, settings: ScorerSettings) -> ScorerSpec:
    """Return what the scorer `name` needs and returns, without loading a model."""
    return MODULES[settings.kind].spec(name, settings)


def build(name: str, settings: ScorerSettings) -> Scorer:
    """Load the models on `serving.device` and return the scorer. Raises what the model libraries raise.

    With a `serving.python` other than this process's the scorer runs in a child process, and a value outside its range
    is a failure.
    """
    python = settings.serving.python
    if python is not None and not environments.is_current_interpreter(python):
        return Custom(spec(name, settings), child.build(name, settings))
    return MODULES[settings.kind].build(name, settings)


def build_tree(name: str, settings: Any) -> Scorer:
    """Build a scorer in a child process, from the `tree` of its settings."""
    found = SETTINGS.validate_python(settings.tree)
    return MODULES[found.kind].build(name, found)

"""Whether a service can give the rewards of a run, found before the first image is drawn. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synod.contracts import Concept
from trainer.types import RewardSpec


@dataclass(frozen=True, slots=True)
class Wanted:
    """A reward of a run, and the fields that the items it is asked for have ("image", "prompt", ...).

    role  what its scorers are for the run, for messages
    known  whether its terms that read only text are a surrogate of their own, so that it needs one
    """

    spec: RewardSpec
    inputs: frozenset[str]
    role: str = "scorer"
    known: bool = False


@dataclass(frozen=True, slots=True)
class Served:
    """The catalogue of a service: the inputs that each scorer needs, and the ensembles with their weights."""

    needs: Mapping[str, Sequence[str]]
    ensembles: Mapping[str, Mapping[str, Any]]

    @property
    def text_only(self) -> frozenset[str]:
        """The scorers that do not read the image, by the inputs that they declare."""
        return frozenset(name for name, needs in self.needs.items() if "image" not in needs)

    def known_weights(self, reward: RewardSpec, concept: Concept | None) -> dict[str, float]:
        """Return the weights of the terms of a reward that read only text, for items about this concept."""
        if reward.ensemble is None:
            table: Mapping[str, float] = reward.weights
        else:
            ensemble = self.ensembles[reward.ensemble]
            by_kind = ensemble.get("by_kind") or {}
            table = by_kind.get("" if concept is None else str(concept.kind)) or ensemble.get("weights") or {}
        return {name: weight for name, weight in table.items() if weight and name in self.text_only}

    def problems(self, wanted: Sequence[Wanted]) -> list[str]:
        """Return what is wrong with each reward, in words; an empty list if the service can give all."""
        found = [one for reward in wanted for one in self._problems(reward)]
        return list(dict.fromkeys(found))

    def _problems(self, wanted: Wanted) -> Iterator[str]:
        ensemble = wanted.spec.ensemble
        if ensemble is not None and ensemble not in self.ensembles:
            yield f"ensemble '{ensemble}' is not served; served are {_names(self.ensembles)}"
            return
        names = list(wanted.spec.scorers) if ensemble is None else self._components(ensemble, wanted.inputs)
        if wanted.known and not self.text_only.intersection(names):
            yield f"surrogate 'known' needs a scorer that reads only text, but the reward has only {', '.join(names)}"
        for name in names:
            label = f"{wanted.role} '{name}'" if ensemble is None else f"'{name}' of ensemble '{ensemble}'"
            inputs = wanted.inputs - {"image"} if wanted.spec.of.get(name) == "answer" else wanted.inputs
            if name not in self.needs:
                yield f"{label} is not served; served are {_names(self.needs)}"
            elif missing := [need for need in self.needs[name] if need not in inputs]:
                given = ", ".join(sorted(inputs))
                results = "their answers" if inputs != wanted.inputs else "these prompts"
                yield f"{label} needs {', '.join(missing)}, but {results} give only {given}"
        if ensemble is not None and "concept" not in wanted.inputs and not self.ensembles[ensemble].get("weights"):
            yield f"ensemble '{ensemble}' has weights for concepts only, and these prompts have none"

    def _components(self, ensemble: str, inputs: frozenset[str]) -> list[str]:
        """Return the scorers that an ensemble weighs for such items."""
        tables = [self.ensembles[ensemble].get("weights") or {}]
        if "concept" in inputs:
            tables += (self.ensembles[ensemble].get("by_kind") or {}).values()
        return [name for table in tables for name, weight in table.items() if weight]


def _names(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "none"

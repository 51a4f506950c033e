"""A language model and a flow-matching pipeline as one policy (UniRL-Zero's scenarios 1, 2, 3 and 5).

Its answers are appended to the prompt. The prompt reaches the image over a bridge: "text", the pipeline's own text
encoder, which works with public weights as they are; or "queries", hidden states of the language model at learned
queries, through a connector that must have been trained (`connector`). There the prompt without words is zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from synod.errors import SettingsError
from trainer.policy.base import ParameterGroup, Terms, TextSegment, TokenLogp
from trainer.policy.flow.connector import Connector, read_connector_config
from trainer.policy.flow.language import Language, recomputing
from trainer.policy.flow.pipelines import Conditions
from trainer.policy.flow.policy import ADAPTER, FlowPolicy, blocks_of
from trainer.policy.lora import Lora
from trainer.policy.weights import directory_of, read_config
from trainer.types import Modality, Query, Seed, Segment

LANGUAGE: Final = "language"  # in the module, and in a saved directory
IMAGE: Final = "image"
CONNECTOR: Final = "connector"  # in the module, and in a saved directory
TEXT_STREAM: Final = 0  # of random numbers


class JointPolicy(FlowPolicy):
    """A FlowPolicy that answers queries by a language model.

    `trains` are the modalities whose models are trained; a connector, the bridge "queries", is trained with the image.
    The other arguments are a FlowPolicy's.
    """

    def __init__(
        self,
        model: nn.Module,
        language: Language,
        trains: Sequence[Modality],
        connector: Connector | None,
        *arguments: Any,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.language, self.trains = language, tuple(trains)
        self.module = nn.ModuleDict({LANGUAGE: model, IMAGE: self.module})
        if connector is not None:
            self.module[CONNECTOR] = connector
        for name, part in self.module.items():
            part.requires_grad_(self._is_trained(name))

    def _is_trained(self, part: str) -> bool:
        return ("text" if part == LANGUAGE else "image") in self.trains

    @property
    def transformer(self) -> nn.Module:
        return self._part(IMAGE)

    def _part(self, name: str) -> nn.Module:
        assert isinstance(self.module, nn.ModuleDict)
        return self.module[name]

    @property
    def has_connector(self) -> bool:
        assert isinstance(self.module, nn.ModuleDict)
        return CONNECTOR in self.module

    def answer(self, queries: Sequence[Query], seeds: Sequence[Seed]) -> list[TextSegment]:
        """Sample one answer for each query; equal queries are sampled in one batch."""
        shape = (self.language.max_new_tokens,)
        rows = [np.random.default_rng([*seed, TEXT_STREAM]).random(shape) for seed in seeds]
        uniform = torch.from_numpy(np.stack(rows))
        found: dict[int, TextSegment] = {}
        for query in dict.fromkeys(queries):
            places = [place for place, one in enumerate(queries) if one is query]
            with self._autocast(self.device):
                drawn = self.language.sample(self._part(LANGUAGE), query, uniform[places])
            found |= zip(places, drawn, strict=True)
        return [found[place] for place in range(len(queries))]

    @torch.no_grad()
    def token_logps(self, queries: Sequence[Query], answers: Sequence[str]) -> list[TokenLogp]:
        """Return how likely each token of given answers is, by a pass for each query."""
        with self._autocast(self.device):
            pairs = zip(queries, answers, strict=True)
            return [self.language.token_logp(self._part(LANGUAGE), query, answer) for query, answer in pairs]

    def _conditions(self, prompts: Sequence[str]) -> Conditions:
        if not self.has_connector:
            return super()._conditions(prompts)
        captions = {prompt: self._captions(prompt) for prompt in dict.fromkeys(prompts)}
        rows = torch.cat([captions[prompt] for prompt in prompts])
        return {"encoder_hidden_states": rows, "encoder_attention_mask": rows.new_ones(rows.shape[:2])}

    def _num_cut(self, prompt: str) -> int:
        return 0 if self.has_connector else super()._num_cut(prompt)

    def _captions(self, prompt: str) -> Tensor:
        """Return what the transformer reads of a prompt [1 Q C], with its gradient; alone, as `_read` does."""
        connector = self._part(CONNECTOR)
        assert isinstance(connector, Connector)
        if not prompt:
            return torch.zeros(1, connector.config.queries, connector.config.caption_width, device=self.device)
        model = self._part(LANGUAGE)
        with self._autocast(self.device), recomputing(model):
            return connector.read(*self.language.embed(model, prompt)).float()

    def decisions(self, kind: Modality) -> int:
        return self.language.max_new_tokens if kind == "text" else super().decisions(kind)

    def steps(self, segments: Sequence[Segment]) -> int:
        return 1 if segments[0].kind == "text" else super().steps(segments)

    def terms(self, segments: Sequence[Segment], step: int, *, reference: bool = False) -> Terms:
        if segments[0].kind == "image":
            return super().terms(segments, step, reference=reference)
        new, old, mask = self._text_logprobs(segments)
        if not reference:
            return Terms(new, old, mask)
        with torch.no_grad(), self.reference():
            return Terms(new, old, mask, reference_BD=self._text_logprobs(segments)[0])

    def _text_logprobs(self, segments: Sequence[Segment]) -> tuple[Tensor, Tensor, Tensor]:
        texts = [segment for segment in segments if isinstance(segment, TextSegment)]
        assert len(texts) == len(segments), "segments of one kind at a time"
        with self._autocast(self.device):
            return self.language.logprobs(self._part(LANGUAGE), texts)

    def add_adapters(self, *, rank: int, alpha: int, targets: Sequence[str], seed: int, base: str) -> None:
        """Train low-rank adapters on the models that are trained (see `FlowPolicy.add_adapters`)."""
        super().add_adapters(rank=rank, alpha=alpha, targets=targets, seed=seed, base=base)
        assert isinstance(self.module, nn.ModuleDict)
        for name, part in self.module.items():
            if not self._is_trained(name):
                part.requires_grad_(False)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the trainable parameters; with a connector, the language model samples images too."""
        image = [name for name in (IMAGE, CONNECTOR) if name == IMAGE or self.has_connector]
        kinds: list[tuple[Modality | None, list[str]]] = [(None if self.has_connector else "text", [LANGUAGE])]
        kinds.append(("image", image))
        found = [(kind, [p for name in names for p in self._part(name).parameters()]) for kind, names in kinds]
        groups = [ParameterGroup(kind, tuple(p for p in parameters if p.requires_grad)) for kind, parameters in found]
        return [group for group in groups if group.parameters]

    def units(self) -> list[tuple[nn.Module, tuple[nn.Module, ...]]]:
        return [(self.module, tuple(blocks_of(self.transformer)))]

    def blank(self, kind: Modality) -> Any:
        return self.language.blank(self.device) if kind == "text" else super().blank(kind)

    def save(self, directory: Path) -> None:
        """Write a pipeline in diffusers' layout, the language model in LANGUAGE, and a connector in CONNECTOR.

        Adapters are merged into the weights. Those of each trained model are also saved alone, for the model that it
        started from: the transformer's in the directory ADAPTER, the others' in the directory ADAPTER of their own.
        """
        super().save(directory)
        self.language.save(self._part(LANGUAGE), self._saved_state(LANGUAGE), directory / LANGUAGE)
        if self.has_connector:
            connector = self._part(CONNECTOR)
            assert isinstance(connector, Connector)
            connector.save(self._saved_state(CONNECTOR), directory / CONNECTOR)

    def _save_adapters(self, lora: Lora, directory: Path) -> None:
        assert isinstance(self.module, nn.ModuleDict)
        for part in self.module:
            if self._is_trained(part) and lora.is_on(part):
                folder = directory if part == IMAGE else directory / part
                lora.save(folder / ADAPTER, part=part, base=self.language.source if part == LANGUAGE else None)


def check_bridge(model: str | Path, language: str, transformer: Mapping[str, Any]) -> Path:
    """Return the directory of the pipeline's connector, whose config.json fits those of the two models.

    `transformer` is the configuration of the pipeline's. Reads no weights. Raises SettingsError for a connector that is
    missing or of other widths, and for a transformer that reads more than captions.
    """
    captions = transformer.get("caption_channels")
    if captions is None:
        raise SettingsError(
            f"bridge 'queries' gives captions alone, but a {transformer.get('_class_name')} needs pooled texts too; "
            "give a SANA pipeline, or bridge 'text'"
        )
    config = read_connector_config(Path(model) / CONNECTOR)
    words = read_config(directory_of(language, configs_only=True, what="language model"))
    width = (words.get("text_config") or words).get("hidden_size")
    if (config.width, config.caption_width) != (width, captions):
        raise SettingsError(
            f"{Path(model) / CONNECTOR} takes hidden states of width {config.width} and returns captions of "
            f"{config.caption_width}, but the language model has {width} and the transformer takes {captions}; give "
            "the parts of one model"
        )
    return Path(model) / CONNECTOR

"""Draw images from a policy that settings name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from typing import Final

import torch
from torch import nn

from synod.contracts import Pixels
from synod.errors import SettingsError
from synod.scoring import show
from trainer.distributed import device
from trainer.policy import registry
from trainer.policy.base import Policy
from trainer.policy.flow.policy import FlowPolicy
from trainer.policy.show_o.policy import ShowO
from trainer.scenarios import compound, element
from trainer.settings import PolicySettings
from trainer.types import Query, Seed

_CHUNK: Final = 2**26  # bytes


class Drawer:
    """A loaded policy as the runner calls it, on a GPU if there is one.

    `concepts` are the names of concepts that prompts and queries will use. `query` is a template with {prompt} that the
    policy is asked about each prompt first, as `trainer.scenarios.asked_task` does. Raises SettingsError, also for a
    concept that the policy does not know.
    """

    def __init__(self, settings: PolicySettings, concepts: Collection[str] = (), query: str | None = None) -> None:
        self._query = query
        self._policy = registry.load(settings, concepts=concepts)
        if isinstance(self._policy, ShowO | FlowPolicy):
            self._policy.log = show.notify  # stdout is the table's
        self.digest = digest_of(self._policy)
        self._policy.to(device())

    def __call__(self, prompts: Sequence[str], seeds: Sequence[Seed]) -> list[Pixels]:
        """Return a finished image uint8 [H W 3] for each prompt."""
        with torch.inference_mode(), self._policy.evaluating():
            begun = self._policy.start(self._refined(prompts, seeds), seeds)
            return self._policy.images(self._policy.denoise(begun, self._policy.image_steps))

    draw = __call__

    def unknown_names(self, prompts: Sequence[str]) -> list[str]:
        """Return the words `<...>` of prompts for which the policy has no token: it reads each as several pieces."""
        if not isinstance(self._policy, ShowO):
            return []
        names = dict.fromkeys(name for prompt in prompts for name in re.findall(r"<[^<>|\s]+>", prompt))
        return self._policy.vocab.split(names)

    def _refined(self, prompts: Sequence[str], seeds: Sequence[Seed]) -> Sequence[str]:
        """Return each prompt with the answer to the query about it; as they are without a query."""
        if self._query is None:
            return prompts
        queries = {prompt: Query(self._query.format(prompt=prompt)) for prompt in prompts}
        answers = self._policy.answer([queries[prompt] for prompt in prompts], seeds)
        return [compound(prompt, element(one.text)) for prompt, one in zip(prompts, answers, strict=True)]

    def answer(self, queries: Sequence[Query], seeds: Sequence[Seed]) -> list[str]:
        """Return a reply to each query. Raises SettingsError for a policy that only draws."""
        try:
            with torch.inference_mode(), self._policy.evaluating():
                return [segment.text for segment in self._policy.answer(queries, seeds)]
        except NotImplementedError as error:
            remedy = "give --suite dreambench, or --answers"
            raise SettingsError(f"this suite asks questions, but {error}; {remedy}") from None


def digest_of(policy: Policy, sample: int | None = None) -> str:
    """Return a digest of all weights that the policy holds, its image tokenizer included.

    `sample`: of about so many numbers of each tensor, evenly spread.
    """
    found = hashlib.blake2b(digest_size=16)
    for name, module in sorted((name, one) for name, one in vars(policy).items() if isinstance(one, nn.Module)):
        for key, tensor in module.state_dict().items():
            found.update(f"{name}.{key} {tensor.dtype} {list(tensor.shape)}".encode())
            stride = 1 if sample is None else max(1, tensor.numel() // sample)
            data = tensor.detach().reshape(-1)[::stride].cpu().contiguous().view(torch.uint8)
            for part in data.split(_CHUNK):
                found.update(part.numpy().data)
    return found.hexdigest()

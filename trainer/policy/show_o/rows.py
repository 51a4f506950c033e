"""Train a few rows of a policy's embeddings and head; the tables stay as they are (UniCTokens, B.1).

The trained rows are parameters of their own, [R D], [R D] and [R], so that gradients and optimizer state have their
size and not that of the tables. The authors' code trains the whole tables and restores all other rows after each step,
with the same result.

Suffixes: R trained rows, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.policy.show_o.phi import Head, Phi, linear

_OWN = ("rows", "bias_rows", "row_ids", "place_V")  # in a state dict, besides `weight` and `bias`


class _Place(nn.Module):
    """Where the trained rows are in the vocabulary. `is_stored`: the table's own rows are read instead of them."""

    row_ids: Tensor
    place_V: Tensor
    is_stored = False

    def _own(self, ids: Sequence[int], size: int, device: torch.device) -> None:
        place = torch.full((size,), -1, device=device)
        place[list(ids)] = torch.arange(len(ids), device=device)
        self.register_buffer("row_ids", torch.tensor(list(ids), device=device))
        self.register_buffer("place_V", place, persistent=False)


class RowEmbedding(_Place):
    """An embedding table whose rows `ids` are trained."""

    def __init__(self, table: nn.Embedding, ids: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(table.weight.detach(), requires_grad=False)
        self._own(ids, len(self.weight), self.weight.device)
        self.rows = nn.Parameter(self.weight[self.row_ids].clone())

    def forward(self, ids_BL: Tensor) -> Tensor:
        found = functional.embedding(ids_BL, self.weight)
        if self.is_stored:
            return found
        place = self.place_V[ids_BL]
        return torch.where(place[..., None] >= 0, functional.embedding(place.clamp(min=0), self.rows), found)


class RowHead(_Place, Head):
    """A head whose rows `ids` are trained, with their biases.

    Stored rows are multiplied like trained ones, apart from the table, so that equal rows have bitwise equal logits.
    """

    def __init__(self, head: Head, ids: Sequence[int]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight = nn.Parameter(head.weight.detach(), requires_grad=False)
        self.bias = nn.Parameter(head.bias.detach(), requires_grad=False)
        self._own(ids, len(self.weight), self.weight.device)
        self.rows = nn.Parameter(self.weight[self.row_ids].clone())
        self.bias_rows = nn.Parameter(self.bias[self.row_ids].clone())

    def logits(self, hidden: Tensor, first: int, last: int) -> Tensor:
        found = super().logits(hidden, first, last)
        inside = (self.row_ids >= first) & (self.row_ids < last)
        if not inside.any():
            return found
        ids = self.row_ids[inside]
        if self.is_stored:
            own = linear(hidden, self.weight[ids], self.bias[ids])
        else:
            own = linear(hidden, self.rows[inside], self.bias_rows[inside])
        return found.index_copy(-1, ids - first, own)


class ConceptRows:
    """The trained rows `ids` of a Phi; on construction every other parameter is frozen."""

    def __init__(self, phi: Phi, ids: Sequence[int]) -> None:
        self._phi = phi
        phi.requires_grad_(False)
        self.embedding, self.head = RowEmbedding(phi.model.embed_tokens, ids), RowHead(phi.lm_head, ids)
        phi.model.embed_tokens, phi.lm_head = self.embedding, self.head  # type: ignore[assignment]

    @contextmanager
    def stored(self) -> Iterator[None]:
        """Read the rows of the tables within the block: those from before the training."""
        self.embedding.is_stored = self.head.is_stored = True
        try:
            yield
        finally:
            self.embedding.is_stored = self.head.is_stored = False

    def distance(self, row: int) -> Tensor:
        """Return how far a trained row is from the tables': the mean square in the embeddings plus the head's."""
        tables = (self.embedding, self.head)
        moved = [table.rows[row] - table.weight[table.row_ids[row]] for table in tables]
        return torch.stack([one.square().mean() for one in moved]).sum()

    @torch.no_grad()
    def fold(self) -> None:
        """Make the Phi a plain one again, with the trained rows in its tables."""
        state = folded(self._phi.state_dict())
        size, width = state["lm_head.weight"].shape
        self._phi.model.embed_tokens = nn.Embedding(size, width, _weight=state["model.embed_tokens.weight"])
        self._phi.lm_head = plain_head(state["lm_head.weight"], state["lm_head.bias"])


def plain_head(weight: Tensor, bias: Tensor) -> Head:
    """Return a head of these weights, without random values for others first."""
    with torch.device("meta"):
        head = Head(weight.shape[1], weight.shape[0])
    head.weight, head.bias = nn.Parameter(weight), nn.Parameter(bias)
    return head


@torch.no_grad()
def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with trained rows in their tables; one without trained rows as it is."""
    found = {key: value for key, value in state.items() if key.rpartition(".")[2] not in _OWN}
    for key, ids in state.items():
        name, _, last = key.rpartition(".")
        if last == "row_ids":
            for table, rows in (("weight", "rows"), ("bias", "bias_rows")):
                if (own := state.get(f"{name}.{rows}")) is not None:
                    found[f"{name}.{table}"] = found[f"{name}.{table}"].index_copy(0, ids, own)
    return found

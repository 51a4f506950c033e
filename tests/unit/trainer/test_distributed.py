"""Ranks in two processes under gloo, against one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from synod.errors import SettingsError
from tests.unit.trainer.loops import MakeSettings
from tests.unit.trainer.world_two import spawn
from trainer import checkpoint, distributed
from trainer.agreement import check_weights
from trainer.distributed import Ranks
from trainer.errors import NonFinite, OtherRankFailed
from trainer.run import run
from trainer.run_dir import LOCK, run_lock
from trainer.settings import TrainerSettings


def _check_messages(ranks: Ranks) -> None:
    everything = [{"group": i, "scores": [0.1 * i, None, math.pi**i, 5e-324], "key": "<bo>/ü"} for i in range(5)]
    assert ranks.gather([everything[i] for i in ranks.mine(5)]) == everything
    assert ranks.gather([]) == []
    assert ranks.gather_all(ranks.rank * 1.5) == [0.0, 1.5]
    assert ranks.any(ranks.rank == 1)
    assert not ranks.any(False)


def _check_failures(ranks: Ranks) -> None:
    with ranks.together():
        pass
    with pytest.raises(SettingsError, match="planted"), ranks.together():  # bad input is bad on every rank
        _refuse_on(ranks.rank == 1)
    with pytest.raises((NonFinite, OtherRankFailed)) as caught, ranks.together():
        _fail_on(ranks.rank == 1)
    if ranks.rank == 1:
        assert isinstance(caught.value, NonFinite)
        assert caught.value.group == 3
    else:
        assert str(caught.value) == "rank 1 failed: NonFinite: the gradient's norm is nan"


def _check_saving(ranks: Ranks) -> None:
    """What may be exchanged after a failure: only if all ranks have left the same block with it."""
    saved = list[str]()

    def fail(name: str, *, undone: bool = True, agreed: bool = True) -> None:
        block = ranks.together(undone=undone) if agreed else nullcontext()
        with pytest.raises(RuntimeError), ranks.saving(lambda: saved.append(name)), _explained(), block:
            _fail_on(ranks.rank == 1 or not agreed)

    fail("agreed")
    fail("half done", undone=False)
    fail("alone", agreed=False)
    assert saved == ["agreed"]


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except NonFinite as error:
        raise RuntimeError("explained") from error


def _fail_on(flag: bool) -> None:
    if flag:
        raise NonFinite("the gradient's norm is nan", 3)


def _refuse_on(flag: bool) -> None:
    if flag:
        raise SettingsError("planted")


def _check_gradients(ranks: Ranks) -> None:
    distributed.ranks.BUCKET_BYTES = 40  # ten float32: several messages, one parameter above the limit
    shapes = [(2, 3), (20,), (1,), (4,), (3,)]
    every = [[torch.randn(shape, generator=_seeded(r, i)) for i, shape in enumerate(shapes)] for r in range(2)]
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    parameters.append(nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)))
    for i, grad in enumerate(every[ranks.rank]):
        if (ranks.rank, i) != (1, 3):  # this rank has no gradient of that parameter
            parameters[i].grad = grad.clone()
    frozen = nn.Parameter(torch.zeros(1000), requires_grad=False)
    sent, all_reduce = list[tuple[torch.dtype, int]](), dist.all_reduce

    def counted(message: torch.Tensor, *arguments: Any) -> None:
        sent.append((message.dtype, message.numel()))
        all_reduce(message, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", counted)
        ranks.sum_gradients([*parameters, frozen])
    assert sent == [(torch.uint8, 6), *((torch.float32, n) for n in (6, 20, 8))]
    for i, parameter in enumerate(parameters[:-1]):
        expected = every[0][i] if i == 3 else every[0][i] + every[1][i]
        assert torch.equal(parameter.grad, expected)
    assert parameters[-1].grad is None
    assert frozen.grad is None


def _check_unused_parameters(ranks: Ranks) -> None:
    """Two steps of AdamW, a parameter of images alone: a step of texts must not decay it nor move it by its moments."""
    found = [_trained(ranks, ranks.rank), _trained(Ranks(), 0, 1)]
    for ours, alone in zip(*found, strict=True):
        torch.testing.assert_close(ours, alone, rtol=1e-6, atol=0)


def _trained(ranks: Ranks, *owners: int) -> list[torch.Tensor]:
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4))]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5)
    for step in range(2):
        optimizer.zero_grad(set_to_none=True)
        for owner in owners:  # the first step has an image, on rank 1 alone
            for parameter in parameters[: 2 if (step, owner) == (0, 1) else 1]:
                (parameter.square().sum() * (owner + 1.0)).backward()
        ranks.sum_gradients(parameters)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def _check_bad_input(ranks: Ranks, settings: TrainerSettings) -> None:
    """All ranks end with one error, before there is more than a lock file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.run_dir.SEEN_WITHIN_S", 0.0)
        private = settings.run_dir / f"private-{ranks.rank}"
        _refused(settings.model_copy(update={"run_dir": private}), "what rank 0 on .* cannot be seen by rank 1 on ")
        _refused(settings.model_copy(update={"prompts_per_step": 1}), "2 ranks share .* prompts_per_step is 1")
        with run_lock(settings.run_dir) if ranks.is_first else nullcontext():
            _refused(settings, "another training uses it")
        lower = settings.optimizer.model_copy(update={"lr": 0.5})
        _refused(
            settings if ranks.is_first else settings.model_copy(update={"optimizer": lower}),
            f"different settings:\n  trainer.optimizer.lr: {settings.optimizer.lr} on rank 0, 0.5 on rank 1\nGive",
        )
        with patch.context() as files:
            files.setattr(checkpoint, "folder_digest", lambda path: f"{path.name} of rank {ranks.rank}")
            _refused(settings, 'trainer.data.concepts .* on rank 0, .* of rank 1" on rank 1\n')
        patch.setattr("trainer.run.device_name", lambda: "H200" if ranks.is_first else "cpu")
        _refused(settings, "some ranks have a GPU and some have none .*H200: rank 0; cpu: rank 1")
    assert {path.name for path in settings.run_dir.rglob("*") if path.is_file()} == {LOCK}


def _check_weights(ranks: Ranks) -> None:
    """A module that no gradient reaches differs on rank 1."""
    policy: Any = SimpleNamespace(module=nn.Linear(3, 3), tokenizer=nn.Linear(300, 300))
    for module in (policy.module, policy.tokenizer):
        nn.init.ones_(module.weight), nn.init.ones_(module.bias)
    check_weights(policy, ranks)
    nn.init.constant_(policy.tokenizer.weight, 1 + 1e-6 * ranks.rank)
    with pytest.raises(SettingsError, match="for the digest of the weights; give the same"):
        check_weights(policy, ranks)


def _refused(settings: TrainerSettings, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        run(settings)


def _check_all(ranks: Ranks, settings: TrainerSettings) -> None:
    _check_messages(ranks)
    _check_failures(ranks)
    _check_saving(ranks)
    _check_gradients(ranks)
    _check_unused_parameters(ranks)
    _check_weights(ranks)
    _check_bad_input(ranks, settings)


def _seeded(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(10**i * n for i, n in enumerate(numbers)))


@pytest.mark.slow
def test_two_ranks_exchange_what_one_has(tiny_settings: MakeSettings, tmp_path: Path) -> None:
    spawn(_check_all, tmp_path, tiny_settings(PROMPTS_PER_STEP="2"))


@pytest.mark.parametrize(
    ("ours", "theirs", "backend"),
    [(True, "True", "nccl"), (True, "False", "gloo"), (False, "True", "gloo"), (False, "False", "gloo")],
)
def test_ranks_join_by_nccl_only_if_all_have_a_gpu(
    monkeypatch: pytest.MonkeyPatch, ours: bool, theirs: str, backend: str
) -> None:
    """With different backends they would wait for each other, and never find out that their devices differ."""
    store, chosen = dist.HashStore(), list[str]()
    store.set("has_gpu/1", theirs)
    monkeypatch.setattr(distributed.ranks, "rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
    monkeypatch.setattr("torch.cuda.is_available", lambda: ours)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: chosen.append(backend))
    distributed.ranks._join()
    assert chosen == [backend]


def test_one_rank_sends_nothing() -> None:
    ranks = Ranks()
    assert ranks.is_first
    assert list(ranks.mine(3)) == [0, 1, 2]
    assert ranks.gather(["a", "b"]) == ["a", "b"]
    assert ranks.gather_all({"x": 1}) == [{"x": 1}]
    assert [ranks.any(True), ranks.any(False)] == [True, False]
    parameter = nn.Parameter(torch.ones(2))
    ranks.sum_gradients([parameter])
    assert parameter.grad is None
    with pytest.raises(NonFinite), ranks.together():
        raise NonFinite("planted", None)


@given(count=st.integers(0, 40), world=st.integers(1, 9))
def test_every_group_has_one_rank(count: int, world: int) -> None:
    groups = [list(Ranks(rank, world).mine(count)) for rank in range(world)]
    assert sorted(i for mine in groups for i in mine) == list(range(count))
    assert all(i % world == rank for rank, mine in enumerate(groups) for i in mine)

"""The adapters called by the trainers' own code, if installed: trl 1.16, verl 0.9."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from synod.adapters import verl as adapter
from synod.adapters.trl import reward_function
from tests.unit.synod.reward_services import RewardService

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages' own


def grey(value: int) -> Any:
    return np.full((4, 4, 3), value, np.uint8)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread, as trl does."""
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


def test_trl_trainer_awaits_rewards_and_masks_missing(service: RewardService, loop: asyncio.AbstractEventLoop) -> None:
    """Call `GRPOTrainer._calculate_rewards` on a trainer with only the attributes that it reads."""
    pytest.importorskip("trl")
    from accelerate import PartialState
    from trl import GRPOTrainer
    from trl.trainer.utils import is_async_callable

    reward = reward_function(service.url, "ber")
    assert is_async_callable(reward)
    PartialState(cpu=True)
    logged: list[tuple[str, float]] = []
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu"), is_main_process=True),
        args=SimpleNamespace(report_to=[], logging_steps=1),
        reward_funcs=[reward],
        reward_processing_classes=[None],
        reward_func_names=["ber"],
        state=SimpleNamespace(global_step=0),
        environments=None,
        async_loop=loop,
        _log_completion_extra=lambda *given: None,
        _log_metric=lambda *given: logged.append(given),
    )
    inputs = [
        {"prompt": "a", "image": grey(51)},
        {"prompt": "b", "image": grey(13)},
        {"prompt": "c", "image": grey(102)},
    ]
    try:
        rewards = GRPOTrainer._calculate_rewards(trainer, inputs, ["a", "b", "c"], ["x", "y", "z"], [[1], [2], [3]])
    finally:
        asyncio.run_coroutine_threadsafe(reward.close(), loop).result(20)
    assert rewards.shape == (3, 1)
    assert rewards[[0, 2], 0].tolist() == pytest.approx([0.2, 0.4])
    assert torch.isnan(rewards[1, 0])  # trl's mask
    assert logged == [("ber/missing_share", pytest.approx(1 / 3))]


def test_verl_reward_manager_awaits_rewards(service: RewardService) -> None:
    """Use verl's loader of custom reward functions and its reward manager."""
    pytest.importorskip("verl")
    from omegaconf import OmegaConf
    from verl.experimental.reward_loop.reward_manager import NaiveRewardManager
    from verl.trainer.ppo.reward import get_custom_reward_fn

    class Tokenizer:
        def decode(self, ids: Any, skip_special_tokens: bool) -> str:
            return "red"

    sample = SimpleNamespace(
        batch={"responses": torch.ones(4, dtype=torch.long), "attention_mask": torch.ones(6, dtype=torch.long)},
        non_tensor_batch={
            "data_source": "d",
            "reward_model": {"ground_truth": {"reasoning": {"segments": np.array(["hat"], object), "truth": [1]}}},
            "extra_info": {"index": 0},
        },
    )

    class Data(list):  # type: ignore[type-arg]
        def __getitem__(self, at: Any) -> Any:
            return self if isinstance(at, slice) else sample

    async def score() -> Any:
        function = {
            "path": "pkg://synod.adapters.verl",
            "name": "compute_score",
            "reward_kwargs": {"url": service.url, "scorer": "tier"},
        }
        config = OmegaConf.create({"reward": {"custom_reward_function": function}})
        manager = NaiveRewardManager(config, Tokenizer(), get_custom_reward_fn(config))
        assert manager.is_async_reward_score
        try:
            return await manager.run_single(Data())
        finally:
            await adapter.connection(service.url, 60.0).close()

    found = asyncio.run(score())
    assert found["reward_score"] == pytest.approx(0.3)
    assert found["reward_extra_info"] == {"score": pytest.approx(0.3)}

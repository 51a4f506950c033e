"""What a run asks for against what a service offers."""

from __future__ import annotations

import pytest

from trainer.rewards.served import Served, Wanted
from trainer.types import RewardSpec

NO_BAR = "scorer 'bar' is not served; served are ber, der, format, geneval, jpeg"
PLAIN = frozenset({"image", "prompt"})
CONCEPT = PLAIN | {"concept", "references", "reasoning"}
SERVED = Served(
    {
        "ber": ["image", "prompt"],
        "der": ["image", "references"],
        "geneval": ["image", "geneval"],
        "jpeg": ["image"],
        "format": ["reasoning"],
    },
    {
        "t2i": {"weights": {"ber": 1.0, "jpeg": 0.0, "gone": 0.0}, "by_kind": {}},
        "sync_r1": {"weights": None, "by_kind": {"person": {"ber": 0.5, "der": 0.5}, "object": {"ber": 1.0}}},
        "broken": {"weights": {"der": 1.0, "ber": 1.0}},
    },
)


@pytest.mark.parametrize(
    ("spec", "inputs", "problems"),
    [
        (RewardSpec({"ber": 1.0, "jpeg": -0.1}), PLAIN, []),
        (RewardSpec({"geneval": 1.0}), PLAIN | {"geneval"}, []),
        (RewardSpec({"der": 1.0}), CONCEPT, []),
        (RewardSpec(ensemble="t2i"), PLAIN, []),
        (RewardSpec(ensemble="sync_r1"), CONCEPT, []),
        (RewardSpec({"bar": 1.0}), PLAIN, [NO_BAR]),
        (
            RewardSpec({"bar": 0.0, "ber": 1.0}),
            PLAIN,
            [NO_BAR],
        ),
        (
            RewardSpec({"der": 1.0, "geneval": 1.0}),
            PLAIN,
            [
                "scorer 'der' needs references, but these prompts give only image, prompt",
                "scorer 'geneval' needs geneval, but these prompts give only image, prompt",
            ],
        ),
        (RewardSpec({"format": 1.0, "ber": 1.0}, of={"format": "answer"}), CONCEPT, []),
        (
            RewardSpec({"format": 1.0}, of={"format": "answer"}),
            PLAIN,
            ["scorer 'format' needs reasoning, but their answers give only prompt"],
        ),
        (
            RewardSpec({"ber": 1.0}, of={"ber": "answer"}),
            PLAIN | {"reasoning"},
            ["scorer 'ber' needs image, but their answers give only prompt, reasoning"],
        ),
        (RewardSpec(ensemble="t2j"), PLAIN, ["ensemble 't2j' is not served; served are broken, sync_r1, t2i"]),
        (
            RewardSpec(ensemble="broken"),
            PLAIN,
            ["'der' of ensemble 'broken' needs references, but these prompts give only image, prompt"],
        ),
        (
            RewardSpec(ensemble="sync_r1"),
            PLAIN,
            ["ensemble 'sync_r1' has weights for concepts only, and these prompts have none"],
        ),
    ],
)
def test_every_problem_of_a_reward_is_named(spec: RewardSpec, inputs: frozenset[str], problems: list[str]) -> None:
    assert SERVED.problems([Wanted(spec, inputs)]) == problems


def test_a_problem_is_named_once() -> None:
    wrong = Wanted(RewardSpec({"bar": 1.0}), PLAIN)
    assert SERVED.problems([wrong, wrong]) == [NO_BAR]
    assert Served({}, {}).problems([wrong]) == ["scorer 'bar' is not served; served are none"]

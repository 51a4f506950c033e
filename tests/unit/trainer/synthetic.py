"""A synthetic run of known numbers, written by the same code as a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trainer.evaluate.compare import Evaluation, Row
from trainer.evaluate.heldout import save_evaluation
from trainer.report.metrics import Metrics, Sample

PHASES = {
    "reason": 0.6,
    "preview": 3.1,
    "decode": 0.3,
    "surrogate": 0.7,
    "finish": 2.0,
    "reward_wait": 0.9,
    "update": 5.0,
}
KEYS = (("<bo>/visual", "visual"), ("<bo>/textual", "textual"), ("colors/none", "none"))


def record(step: int) -> dict[str, Any]:
    """Reward 0.40 + 0.01 step, pathways in turn; every seventh threshold is missing, step 3 has one masked reward."""
    key, pathway = KEYS[step % 3]
    reward = 0.40 + 0.01 * step
    components = {"geneval": reward} if pathway == "none" else {"tier": 0.5, "ber": reward, "der": 0.3 + 0.002 * step}
    text = None if pathway == "none" else 0.01
    return {
        "pathways": [pathway],
        "keys": [key],
        "prompts": ["<bo> & <i>friends</i>"],
        "reward_mean": reward,
        "reward_std": 0.1,
        "components": components,
        "advantage_abs_text": 0.08,
        "advantage_abs_image": 0.04,
        "gradient_cosine_text": 0.2,
        "gradient_cosine_image": 0.01,
        "loss_text": text,
        "loss_image": -0.02 + 0.001 * step,
        "kl_text": text,
        "kl_image": 0.0001 * step,
        "clip_fraction_text": text,
        "clip_fraction_image": 0.0,
        "ratio_min_text": None,
        "ratio_min_image": 1.0,
        "ratio_max_text": None,
        "ratio_max_image": 1.0,
        "grad_norm": 0.7 if step != 5 else float("nan"),
        "lr": 1e-4,
        "previews": 36 - step % 5,
        "dropped": 0,
        "kept": 9,
        "pass_rate": 0.2 + 0.1 * (step % 2),
        "threshold": None if step % 7 == 0 else 0.5 + 0.003 * step,
        "capped": 0,
        "masked": int(step == 3),
        "skipped": 0,
        "flat": 0,
        "replaced": 0,
        "denoising_steps": 144,
        "denoising_steps_unscreened": 10 * (36 - step % 5),
        "denoising_steps_saved_ratio": 1 - 144 / (10 * (36 - step % 5)),
        "seconds": {**PHASES, "total": sum(PHASES.values()) + 0.4},
        "max_rss_gib": 0.9 + step / 1000,
    }


def images(count: int, seed: int = 0, size: int = 16) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def make_run(run: Path, steps: int, *, evaluated: tuple[str, ...] = ("before", "after")) -> Path:
    with Metrics(run) as metrics:
        for step in range(steps):
            metrics.log(step, record(step))
            drawn = [Sample(image, i / 10, f"<bo> & {step}" * (i == 3)) for i, image in enumerate(images(9, step))]
            samples = {"finished": drawn, "previews": drawn, "rejected": drawn[:4]}
            metrics.log_samples(step, 0, f"{KEYS[step % 3][0]}: a photo", samples)
    for name in evaluated:
        save_evaluation(run / "evaluation" / f"{name}.json", evaluation(0.1 if name == "after" else 0.0))
    return run


def evaluation(gain: float, count: int = 12) -> Evaluation:
    """Rewards 0.3, 0.31, ... + gain, pathways in turn; row 5 has no reward, and after (gain > 0) row 6 neither."""
    rows = []
    for i in range(count):
        key, pathway = KEYS[i % 3]
        missing = i == 5 or (i == 6 and gain > 0)
        reward = None if missing else min(1.0, 0.3 + 0.01 * i + gain * (1 + i % 2))
        components: dict[str, float] = {} if reward is None else {"geneval" if pathway == "none" else "ber": reward}
        if pathway == "textual":
            components["tier"] = 0.5
        right = None if pathway == "none" else gain > 0 or i % 2 == 0
        answer = "" if pathway == "none" else "<bo> has a red hat"
        tag = "colors" if pathway == "none" else "plain"
        failure = "scorer_failed" if missing else None
        rows.append(Row(key, pathway, tag, f"prompt {i} & all", answer, reward, components, right, failure))
    return Evaluation({"seed": 0}, tuple(rows), dict(enumerate(images(count, int(gain * 10)))))

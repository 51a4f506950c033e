"""Compare the speed of drawing and learning with the code before sampling was made faster, in one run.

    python -m benchmarks.sampling

Both sides load the embedded Show-o and do the same work, in turn, each in its own process: the code of this working
tree, and commit OLD in a temporary git worktree. A group is that of deploy/configs/embedded.toml: 36 previews of two
steps, 9 of them finished to ten steps, six steps of the update with a reference. Nothing is scored, and nothing else
should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OLD = "f5076fc"
GUIDANCE_SCALE, TEMPERATURE, STEPS, SCREEN, LOSS_STEPS = 4.0, 8.0, 10, 2, (0, 2, 4, 5, 7, 9)
PREVIEWS, PREVIEW_BATCH, GROUP, REWARD_BATCH = 36, 12, 9, 5
PHASES = ("draw", "preview", "finish", "decode", "update")  # `draw`: the group in one go, from the first step


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both sides in turn and write the medians, their ratios, the command and the hardware as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sampling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="how often each side runs")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (2)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/sampling.json", help="the result (%(default)s)"
    )
    parser.add_argument("--worker", choices=("different", "equal"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(measure(options.worker, options.threads)))
        return 0
    from benchmarks.machine import command, machine

    with TemporaryDirectory() as folder:
        trees = {"old": Path(folder) / "old", "new": ROOT}
        _git("worktree", "add", "--detach", str(trees["old"]), OLD)
        try:
            found = {prompts: _compare(trees, prompts, options) for prompts in ("different", "equal")}
        finally:
            _git("worktree", "remove", "--force", str(trees["old"]))
    result = {"command": command(), "machine": machine(), "old": OLD, "rounds": options.rounds, **found}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0


def _compare(trees: dict[str, Path], prompts: str, options: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for _ in range(options.rounds):
        for name, tree in trees.items():
            line = [sys.executable, __file__, "--worker", prompts, "--threads", str(options.threads)]
            environ = {**os.environ, "PYTHONPATH": str(tree)}
            ran = subprocess.run(line, cwd=tree, env=environ, capture_output=True, text=True, check=False)
            if ran.returncode:
                raise RuntimeError(f"{name} failed: {ran.stderr.strip().splitlines()[-1]}")
            runs[name].append(json.loads(ran.stdout.splitlines()[-1]))
            print(prompts, name, runs[name][-1], flush=True)
    return summary(runs)


def summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return each side's median seconds, and the old seconds divided by the new; pairs of runs give the ratios' range.

    `step` is everything but `draw`, which does the work of `preview` and `finish` without rejected previews.
    """
    for one in (run for side in runs.values() for run in side):
        one["step"] = sum(one[phase] for phase in PHASES if phase != "draw")
        one["images"] = one["preview"] + one["finish"]
    found: dict[str, Any] = {"seconds": {}, "times_faster": {}, "rollouts_per_minute": {}}
    for name, side in runs.items():
        found["seconds"][name] = {key: round(statistics.median(run[key] for run in side), 4) for key in side[0]}
        found["rollouts_per_minute"][name] = round(60 * GROUP / found["seconds"][name]["draw"], 1)
    for key in runs["new"][0]:
        ratios = [old[key] / new[key] for old, new in zip(runs["old"], runs["new"], strict=True)]
        found["times_faster"][key] = [round(f(ratios), 3) for f in (min, statistics.median, max)]
    return found


def measure(prompts: str, threads: int) -> dict[str, float]:
    """Return the seconds of each phase in this process, the least of three."""
    import torch

    torch.set_num_threads(threads)
    work = Work(prompts)
    work.run()
    runs = [work.run() for _ in range(3)]
    return {phase: min(run[phase] for run in runs) for phase in PHASES}


class Work:
    """The phases of one group, for both versions of the code: the worker's `trainer` is the one on PYTHONPATH."""

    def __init__(self, prompts: str) -> None:
        self.policy, self.reference = _policy(), _policy()
        if hasattr(self.policy, "keep_reference"):
            self.policy.keep_reference()
        answered = [f"a photo of <bo> . <bo> has a {c} hat , and sits on {n} chairs" for c in COLOURS for n in COUNTS]
        self.prompts = answered[:PREVIEWS] if prompts == "different" else [answered[0]] * PREVIEWS

    def run(self) -> dict[str, float]:
        import torch

        shape = (PREVIEWS, STEPS, 2, self.policy.config.num_vq_tokens)
        uniform = torch.rand(shape, generator=torch.Generator().manual_seed(0)).clamp(2.0**-24, 1 - 2.0**-24)
        begun = self.policy.begin(self.prompts, uniform)
        seconds: dict[str, float] = {}

        def timed(phase: str, work: Callable[[], Any]) -> Any:
            start = time.perf_counter()
            found = work()
            seconds[phase] = time.perf_counter() - start
            return found

        timed("draw", lambda: self.policy.denoise(begun[:GROUP], STEPS))
        previews = timed("preview", lambda: self._batches(begun, PREVIEW_BATCH, SCREEN))
        finished = timed("finish", lambda: self._batches(previews[:GROUP], REWARD_BATCH, STEPS))
        timed("decode", lambda: (self.policy.images(previews), self.policy.images(finished)))
        timed("update", lambda: self._learn(finished))
        return seconds

    def _batches(self, segments: list[Any], size: int, until: int) -> list[Any]:
        parts = [self.policy.denoise(segments[i : i + size], until) for i in range(0, len(segments), size)]
        return [segment for part in parts for segment in part]

    def _learn(self, segments: list[Any]) -> None:
        """The gradient of a clipped loss with a KL; no optimizer step."""
        import torch

        self.policy.module.zero_grad()
        sharing = getattr(self.policy, "sharing", lambda _: nullcontext())
        with sharing(segments):
            for step in LOSS_STEPS:
                new, old, mask, far = self._terms(segments, step)
                ratio, apart = (new - old).exp(), far - new
                loss = torch.minimum(ratio, ratio.clamp(0.8, 1.2)) - 0.01 * (apart.exp() - apart - 1)
                (-loss * mask).sum().backward()

    def _terms(self, segments: list[Any], step: int) -> tuple[Any, ...]:
        import torch

        if hasattr(self.policy, "terms"):  # not on the old side
            terms = self.policy.terms(segments, step, reference=True)
            return terms.new_BD, terms.old_BD, terms.mask_BD, terms.reference_BD
        with torch.no_grad():
            far = self.reference.logprobs(segments, step)[0]
        return *self.policy.logprobs(segments, step), far


COLOURS = ("red", "blue", "green", "brown", "black", "white")
COUNTS = ("one", "two", "three", "four", "five", "six")


def _policy() -> Any:
    from trainer.policy.show_o import loading
    from trainer.policy.show_o import policy as show_o

    weights = ROOT / "embedded/weights"
    options: dict[str, Any] = {"guidance_scale": GUIDANCE_SCALE, "temperature": TEMPERATURE}
    if hasattr(show_o, "Sampling"):  # not on the old side
        options = {"sampling": show_o.Sampling(denoising_steps=STEPS, **options)}
    return loading.load(weights / "show-o-world", vq=weights / "magvit-world", **options)


def _git(*arguments: str) -> None:
    ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"git {' '.join(arguments)} failed: {ran.stderr.strip()}. The history must contain {OLD}")


if __name__ == "__main__":
    sys.exit(main())

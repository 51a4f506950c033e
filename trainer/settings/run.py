"""The whole `[trainer]` table, its limits on a run, and its reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from synod import toml
from synod.errors import SettingsError
from trainer.settings.data import DataSettings
from trainer.settings.evaluate import EvaluateSettings
from trainer.settings.fields import Fraction, Node, OutputPath
from trainer.settings.loss import SMALLEST_GROUP, LossSettings, OptimizerSettings
from trainer.settings.policy import PolicySettings
from trainer.settings.ranks import RankSettings
from trainer.settings.report import ReportSettings
from trainer.settings.rewards import INTRINSIC, RewardSettings

AUTO_AUDIT: Final = 0.2  # the share of groups that measure screens
AUDIT: Final = 0.1  # the share of rejected previews that are finished to measure the screen
AUTO_FRACTIONS: Final = (0.2, 0.5)  # of the denoising steps, at which previews may be screened
_UNIONS: Final = {
    "data",
    "policy",
}  # tables of several classes, distinguished by a tag that pydantic adds to an error's key


class ScreenSettings(Node):
    """How rollouts are filtered before their update: `group_size` of a prompt enter it.

    `select` names the rule (`trainer.algorithms.screen`). "auto", the default, measures which screen pays
    (`trainer.algorithms.auto`): a pathway's first groups, and later a share `audit`, are drawn in full and scored on
    the way; the others draw twice the group, and each pathway is screened where it pays most: when answers are
    finished, at 0.2 or 0.5 of the denoising steps, or when images are finished; or not at all.

    "first_above" is Dynamic Group Scaling as in Sync-R1: previews are drawn until `group_size` of them pass the
    threshold, at most `max_previews`. `threshold` names its controller (`trainer.algorithms.threshold`; "none" keeps
    the first previews), and naming one chooses this rule. "best_and_worst" scores `max_previews` previews and finishes
    the best and the worst of them, `group_size` in all. Previews are scored after `screen_fraction` of the denoising
    steps. "extremes" finishes `finished` images without a screen (null: twice the group), and updates on the
    `group_size` of them whose rewards are furthest from the mean of all. Rollouts are drawn `preview_batch_size` at a
    time.

    For "first_above" and "best_and_worst", `audit` is the share of rejected previews that are finished and rewarded to
    measure the screen (`trainer.screen_audit`); they never enter the update. 0 turns it off.
    """

    group_size: int = Field(9, ge=2)
    preview_batch_size: int = Field(12, ge=1)
    max_previews: int = Field(144, ge=2)
    screen_fraction: Fraction = 0.2
    threshold: Literal["quantile", "power", "paper", "none"] = "quantile"
    target_pass_rate: Fraction = 0.25
    select: Literal["auto", "first_above", "best_and_worst", "extremes"] = "auto"
    finished: int | None = Field(None, ge=2)
    audit: float = Field(0.0, ge=0, le=1)

    @property
    def images(self) -> int:
        """The largest number of images of a prompt that are finished and rewarded."""
        if self.select in ("extremes", "auto"):
            return self.finished or 2 * self.group_size
        return self.group_size

    @property
    def is_on(self) -> bool:
        """Whether previews may be scored, so that some are rejected."""
        return self.threshold != "none" or self.select in ("auto", "best_and_worst")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_rule(cls, table: Any) -> Any:
        """Choose the rule that has a threshold if one is named; other rules have none. All that reject are audited."""
        if not isinstance(table, Mapping):
            return table
        select = table.get("select", "first_above" if "threshold" in table else "auto")
        rejects = select == "best_and_worst" or (select == "first_above" and table.get("threshold") != "none")
        defaults = {"select": select, "audit": AUTO_AUDIT if select == "auto" else AUDIT if rejects else 0.0}
        return {**defaults, **({} if select == "first_above" else {"threshold": "none"}), **table}

    @model_validator(mode="after")
    def _auto_decides_alone(self) -> ScreenSettings:
        if self.select != "auto":
            return self
        if self.audit == 0:
            raise ValueError(
                "audit 0 measures nothing, so select 'auto' cannot decide; give a share of the groups, such as "
                f"{AUTO_AUDIT:g}, or name another rule in select"
            )
        for name in ("max_previews", "screen_fraction", "target_pass_rate"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} {getattr(self, name)} is for another rule: select 'auto' draws twice the group and "
                    "chooses the step itself; remove it, or name a rule in select, such as 'first_above'"
                )
        return self

    @model_validator(mode="after")
    def _a_rule_and_its_settings_fit(self) -> ScreenSettings:
        if self.select != "extremes" and self.finished is not None:
            raise ValueError(
                f"finished {self.finished} is for select 'extremes', but '{self.select}' chooses the number; remove it"
            )
        if self.select != "first_above" and self.threshold != "none":
            chosen = {"auto": "twice the group", "extremes": "finished images"}.get(
                self.select, "all max_previews previews"
            )
            raise ValueError(
                f"select '{self.select}' chooses among {chosen}, but threshold '{self.threshold}' screens previews; "
                "give threshold 'none'"
            )
        if self.audit and not self.is_on:
            raise ValueError(
                f"audit {self.audit:g} measures a screen, but threshold 'none' with select '{self.select}' rejects "
                "nothing; give audit 0, or a screen"
            )
        if self.images < self.group_size:
            raise ValueError(
                f"finished {self.finished} is below group_size {self.group_size}; finish at least the group"
            )
        return self

    @model_validator(mode="after")
    def _a_group_fits(self) -> ScreenSettings:
        if self.select in ("first_above", "best_and_worst") and self.max_previews < self.group_size:
            raise ValueError(
                f"max_previews {self.max_previews} is below group_size {self.group_size}; allow at least the group"
            )
        return self


class TrainerSettings(Node):
    """The whole trainer. `run_dir` is the directory of checkpoints, metrics and images.

    Each step takes `prompts_per_step` prompts. Groups whose rewards are all equal are replaced by groups of other
    prompts (DAPO), at most `resample_flat_groups` of them a step. A reward request holds `reward_batch_size` images. A
    checkpoint is written every `checkpoint_every` steps and at the end.
    """

    seed: int = Field(0, ge=0)
    steps: int = Field(100, ge=1)
    prompts_per_step: int = Field(1, ge=1)
    resample_flat_groups: int = Field(0, ge=0)
    reward_batch_size: int = Field(3, ge=1)
    checkpoint_every: int = Field(10, ge=1)
    run_dir: OutputPath
    policy: PolicySettings
    data: DataSettings
    rewards: RewardSettings
    screen: ScreenSettings = ScreenSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    report: ReportSettings = ReportSettings()
    ranks: RankSettings = RankSettings()

    @model_validator(mode="before")
    @classmethod
    def _sync_r1_has_an_ensemble(cls, table: Any) -> Any:
        """Reward Sync-R1's task by its ensemble unless the settings name another reward; require [trainer.rewards].

        Without answers TIER has nothing to read, so that the ensemble is another.
        """
        if not isinstance(table, Mapping):
            return table
        data, rewards = table.get("data"), table.get("rewards", {})
        if isinstance(data, Mapping) and isinstance(rewards, Mapping) and data.get("task") == "sync_r1":
            default = {"ensemble": "sync_r1" if data.get("pathways", True) else "sync_r1_without_tier"}
            rewards = rewards if {"scorers", "terms", "ensemble"} & set(rewards) else {**rewards, **default}
        return {**table, "rewards": rewards}

    @property
    def screening_step(self) -> int:
        """The denoising step after which a preview is scored: 1 to T - 1, or 0 for a screen by "known" terms."""
        if self.screen.is_on and self.rewards.surrogate == "known":
            return 0
        return round(self.screen.screen_fraction * self.policy.image_steps)

    @property
    def predicted_steps(self) -> tuple[int, ...]:
        """The denoising steps at which "auto" may screen previews; none for a surrogate that reads only answers."""
        total = self.policy.image_steps
        steps = {round(fraction * total) for fraction in AUTO_FRACTIONS} - {0, total}
        return () if self.rewards.surrogate == "known" else tuple(sorted(steps))

    @property
    def is_own_teacher(self) -> bool:
        """Whether the policy scores `intrinsic` itself."""
        named = {*self.rewards.weights, self.rewards.surrogate, *self.evaluate.scorers}
        return self.rewards.teacher != "service" and INTRINSIC in named

    @property
    def needs_reference(self) -> bool:
        """Whether a KL term or the scorer `intrinsic` needs the policy's reference."""
        has_kl = any(self.loss.of(kind).beta > 0 for kind in self.policy.learning)
        return has_kl or (self.is_own_teacher and self.rewards.teacher == "reference")

    def check_ranks(self, count: int) -> None:
        """Raise SettingsError unless each of `count` ranks has a group to draw, and `ranks.shard` divides them."""
        if count > self.prompts_per_step:
            raise SettingsError(
                f"{count} ranks share the groups of a step, but [trainer] prompts_per_step is {self.prompts_per_step}; "
                f"give at least {count}, or start at most {self.prompts_per_step} ranks"
            )
        if count % self.ranks.shard:
            raise SettingsError(
                f"[trainer.ranks] shard = {self.ranks.shard} does not divide the number of ranks, {count}; give one "
                f"that does (1: every rank has the whole policy), or start a multiple of {self.ranks.shard} ranks"
            )

    @model_validator(mode="after")
    def _a_group_for_each_worker(self) -> TrainerSettings:
        self.check_ranks(self.ranks.workers)
        return self

    @model_validator(mode="after")
    def _a_step_before_and_after_the_screen(self) -> TrainerSettings:
        total = self.policy.image_steps
        if self.screen.select != "auto" and not 1 <= round(self.screen.screen_fraction * total) < total:
            raise ValueError(
                f"screen.screen_fraction {self.screen.screen_fraction} of {total} denoising steps leaves no step "
                "before or after it; give a fraction nearer to 0.5"
            )
        return self

    @model_validator(mode="after")
    def _a_policy_that_answers(self) -> TrainerSettings:
        if self.policy.family != "flow":
            return self
        if self.policy.language is None and self.data.has_answers:
            remedy = {"sync_r1": ", data.pathways []", "prompts": ", or no data.query"}.get(self.data.task, "")
            raise ValueError(
                f"data.task '{self.data.task}' asks the policy questions, but policy.family 'flow' answers none "
                f"without a language model; give policy.language{remedy}, or another data.task"
            )
        if self.policy.language is not None and self.ranks.shard > 1:
            raise ValueError(
                f"ranks.shard {self.ranks.shard} splits one model, but policy.language adds a second one; give shard 1"
            )
        return self

    @model_validator(mode="after")
    def _rates_of_parameters_that_are_trained(self) -> TrainerSettings:
        wrong = [(kind, lr) for kind, lr in self.loss.rates.items() if kind not in self.policy.apart]
        if wrong:
            (kind, lr), *_ = wrong
            other = ", or see policy.trains and policy.language" if self.policy.family == "flow" else ""
            raise ValueError(
                f"loss.{kind}.lr = {lr:g}, but this policy trains no parameters that sample {kind}s alone; remove it "
                f"and give optimizer.lr{other}"
            )
        return self

    @model_validator(mode="after")
    def _rollouts_have_what_is_trained(self) -> TrainerSettings:
        if self.policy.family != "flow" or self.policy.language is None:
            return self
        made = {"text"} if self.data.has_answers else set()
        made |= {"image"} if "image" in self.data.results else set()
        reached = {"text"} if self.policy.language.bridge == "queries" and "image" in made else set()
        if not {*self.policy.trained} & (made | reached):
            raise ValueError(
                f"policy.trains {list(self.policy.trained)}, but rollouts of data.task '{self.data.task}' have only "
                f"{' and '.join(sorted(made))}, so nothing would be trained; name that in policy.trains"
            )
        return self

    @model_validator(mode="after")
    def _a_policy_that_reads_images(self) -> TrainerSettings:
        if not self.is_own_teacher:
            return self
        if self.rewards.results.get(INTRINSIC) == "answer":
            raise ValueError(
                f"rewards.terms scores an answer by '{INTRINSIC}', by which the policy describes an image; give "
                "of = 'image'"
            )
        if "image" not in self.data.results:
            raise ValueError(
                f"evaluate.scorers names '{INTRINSIC}', by which the policy describes an image, but data.task "
                f"'{self.data.task}' draws none; remove it"
            )
        counted = [name for name, weight in self.rewards.weights.items() if weight]
        if self.screen.is_on and self.rewards.surrogate == "known" and counted == [INTRINSIC]:
            raise ValueError(
                f"rewards.surrogate 'known' screens by terms that read only the answer, but '{INTRINSIC}' is the only "
                "term; give 'known+predicted' or a scorer, or a term of the answer"
            )
        if self.policy.family == "flow" and self.policy.language is None:
            raise ValueError(
                f"scorer '{INTRINSIC}' asks the policy what its images show, but policy.family 'flow' reads none "
                "without a language model; give policy.language, or rewards.teacher 'service' and serve a scorer of "
                "that name"
            )
        if self.rewards.teacher == "reference" and self.ranks.shard > 1 and self.policy.lora is None:
            raise ValueError(
                f"rewards.teacher 'reference' reads images while the policy draws, but with ranks.shard "
                f"{self.ranks.shard} the copy of the policy is split then; give policy.lora, whose reference is the "
                "policy without adapters, rewards.teacher 'current' or 'service', or shard 1"
            )
        return self

    @model_validator(mode="after")
    def _a_policy_that_edits(self) -> TrainerSettings:
        if self.data.task in ("edits", "reflection") and not (self.policy.family == "flow" and self.policy.edits):
            raise ValueError(
                f"data.task '{self.data.task}' draws from a source image, which this policy does not read; give "
                "policy.family 'flow' with policy.edits = true, or another data.task"
            )
        return self

    @model_validator(mode="after")
    def _terms_score_what_rollouts_have(self) -> TrainerSettings:
        of = {name: self.rewards.results.get(name, "image") for name in self.rewards.weights}
        if self.rewards.ensemble is not None:
            of[f"ensemble {self.rewards.ensemble}"] = "image"
        wrong = [
            f"'{name}' scores the result '{result}'" for name, result in of.items() if result not in self.data.results
        ]
        if wrong:
            raise ValueError(
                f"rewards: {wrong[0]}, but rollouts of data.task '{self.data.task}' have "
                f"{', '.join(self.data.results)}; give rewards.terms with another 'of'"
            )
        counted = {result for name, result in of.items() if self.rewards.weights.get(name, 1.0)}
        if self.screen.is_on and self.rewards.is_screened_by_reward and counted == {"cycled"}:
            raise ValueError(
                f"rewards: every term scores 'cycled', which a preview lacks, but surrogate '{self.rewards.surrogate}' "
                "screens previews by the reward's terms; add a term of the 'image', or give rewards.surrogate = a "
                "scorer, or screen.threshold 'none'"
            )
        if self.screen.is_on and "image" not in self.data.results:
            raise ValueError(
                f"screen: data.task '{self.data.task}' draws no image to screen; give screen.threshold 'none' or "
                "screen.select 'extremes'"
            )
        return self

    @model_validator(mode="after")
    def _a_screen_by_known_terms_has_answers(self) -> TrainerSettings:
        if self.screen.is_on and self.rewards.surrogate == "known" and not self.data.has_answers:
            where = "these data.pathways have" if self.data.task == "sync_r1" else f"data.task '{self.data.task}' has"
            raise ValueError(
                f"rewards.surrogate 'known' screens answers, but {where} none; give 'known+predicted' or a scorer, or "
                "screen.select 'first_above' with screen.threshold 'none' for no screen"
            )
        return self

    @model_validator(mode="after")
    def _both_tails_need_the_baseline_of_all_previews(self) -> TrainerSettings:
        if self.screen.select == "best_and_worst" and self.loss.baseline != "population":
            raise ValueError(
                f"screen.select 'best_and_worst' keeps both tails, with loss.baseline '{self.loss.baseline}': the mean "
                "of the kept is not that of all previews; give loss.baseline 'population'"
            )
        return self

    @model_validator(mode="after")
    def _held_out_scorers_are_not_trained_on(self) -> TrainerSettings:
        both = [name for name in self.evaluate.scorers if self.rewards.weights.get(name)]
        if both:
            raise ValueError(
                f"evaluate.scorers names {', '.join(both)}, which [trainer.rewards] trains on; name other scorers, or "
                "give a weight of 0 there"
            )
        if self.data.heldout is None and (self.evaluate.scorers or self.evaluate.every):
            raise ValueError("evaluate needs held-out prompts; give data.heldout, a file of prompts")
        return self

    @model_validator(mode="after")
    def _gdpo_normalises_by_itself(self) -> TrainerSettings:
        if self.rewards.aggregation == "gdpo" and (self.loss.normalise, self.loss.baseline) != ("none", "group"):
            raise ValueError(
                f"rewards.aggregation is gdpo, with loss.normalise '{self.loss.normalise}' and loss.baseline "
                f"'{self.loss.baseline}'; it centres and normalises by itself, so give 'none' and 'group'"
            )
        return self

    @model_validator(mode="after")
    def _auto_screens_by_a_sum(self) -> TrainerSettings:
        if self.screen.select == "auto" and self.rewards.aggregation == "gdpo":
            raise ValueError(
                "screen.select 'auto' predicts a weighted sum, but rewards.aggregation is 'gdpo'; give screen.select "
                "'extremes', or 'first_above' with screen.threshold 'none' for no screen"
            )
        return self

    @model_validator(mode="after")
    def _small_groups_have_no_standard_deviation(self) -> TrainerSettings:
        rewards = self.screen.group_size if self.screen.select == "auto" else self.screen.images
        if self.loss.normalise == "group_std":
            divides, other = "loss.normalise 'group_std'", "'group_std_paper' for the papers' form"
        elif self.rewards.aggregation == "gdpo":
            divides, other = "rewards.aggregation 'gdpo'", "rewards.aggregation 'sum'"
        else:
            return self
        if rewards < SMALLEST_GROUP:
            raise ValueError(
                f"{divides} divides by the deviation of {rewards} rewards, which gives two rewards +-.707 whatever "
                f"their difference; give a screen.group_size of at least {SMALLEST_GROUP}, or {other}"
            )
        return self


def load(path: str | Path, environ: Mapping[str, str] | None = None, changes: Sequence[Path] = ()) -> TrainerSettings:
    """Read the `[trainer]` table of a TOML with the changes of other TOMLs, then environment overrides.

    Relative paths resolve from the folder of `path`, those of `changes` too. Raises SettingsError.
    """
    path = Path(path)
    table = toml.read(path, environ, changes).get("trainer", {})
    try:
        return TrainerSettings.model_validate(table, context={"folder": path.resolve().parent})
    except ValidationError as error:
        errors = [{**one, "loc": _without_tag(one["loc"])} for one in error.errors()]
        raise toml.settings_error(path, errors, "trainer") from None


def _without_tag(key: Sequence[int | str]) -> tuple[int | str, ...]:
    return (key[0], *key[2:]) if key and key[0] in _UNIONS else tuple(key)

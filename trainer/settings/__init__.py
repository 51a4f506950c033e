"""The trainer's settings: one frozen typed tree, the `[trainer]` table of a TOML, and `[personalize]`. No torch.

Relative paths resolve from the TOML's folder; `SYNOD__TRAINER__STEPS=5` overrides `steps`. Defaults are Sync-R1's
(table 4 and sec. 3), or our correction where we correct a formula. An unknown key, a bad value or a missing path
raises SettingsError, which names the key, the value and the remedy.
"""

from trainer.settings.data import (
    DataSettings,
    EditSettings,
    PromptSettings,
    QuestionSettings,
    ReflectionSettings,
    SyncR1Settings,
)
from trainer.settings.evaluate import EvaluateSettings
from trainer.settings.loss import LossSettings, OptimizerSettings
from trainer.settings.personalize import PersonalizeSettings, load_personalize
from trainer.settings.policy import FlowSettings, LoraSettings, PolicySettings, ShowOSettings, read_policy
from trainer.settings.ranks import RankSettings
from trainer.settings.report import ReportSettings
from trainer.settings.rewards import INTRINSIC, RewardSettings
from trainer.settings.run import ScreenSettings, TrainerSettings, load

__all__ = [
    "INTRINSIC",
    "DataSettings",
    "EditSettings",
    "EvaluateSettings",
    "FlowSettings",
    "LoraSettings",
    "LossSettings",
    "OptimizerSettings",
    "PersonalizeSettings",
    "PolicySettings",
    "PromptSettings",
    "QuestionSettings",
    "RankSettings",
    "ReflectionSettings",
    "ReportSettings",
    "RewardSettings",
    "ScreenSettings",
    "ShowOSettings",
    "SyncR1Settings",
    "TrainerSettings",
    "load",
    "load_personalize",
    "read_policy",
]

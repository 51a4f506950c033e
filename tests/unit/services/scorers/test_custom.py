"""Custom scorers: the recipe of docs/scorers.md verbatim, and the errors that one may have."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, get_args

import numpy as np
import pytest

from services import settings
from services.backends import LocalBackend
from services.models.module_stats import ParameterStats, record_modules
from services.origin import origin
from services.scorers import registry
from services.scorers.base import Need
from services.scorers.custom import CustomSettings
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import SettingsError

RECIPE = (Path(__file__).parents[4] / "docs/scorers.md").read_text()
CODE, TOML = (
    dedent(re.findall(rf"^   ```{kind}\n(.*?)^   ```", RECIPE, re.S | re.M)[0]) for kind in ("python", "toml")
)
GREYS = tuple(ScoreItem(image=np.full((4, 4, 3), grey, np.uint8)) for grey in (0, 51, 255))
Write = Callable[[str], None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes my_package.my_scorer into a folder on the path."""
    folder = tmp_path / "elsewhere" / "my_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder.parent))
    yield lambda code: (folder / "my_scorer.py").write_text(dedent(code)) and None
    for name in [name for name in sys.modules if name.startswith("my_package")]:
        del sys.modules[name]


def scorer_settings(tmp_path: Path, text: str = TOML) -> CustomSettings:
    (tmp_path / "service.toml").write_text(text)
    (found,) = settings.load(tmp_path / "service.toml", {}).scorers.values()
    assert isinstance(found, CustomSettings)
    return found


async def scored(described: CustomSettings, items: tuple[ScoreItem, ...] = GREYS) -> list[Outcome]:
    backend = LocalBackend({"brightness": registry.build("brightness", described)})
    try:
        return await backend.score("brightness", await backend.stage(items, 1), range(len(items)), 30.0)
    finally:
        await backend.close()


async def test_documented_recipe_scores_images(package: Write, tmp_path: Path) -> None:
    package(CODE)
    described = scorer_settings(tmp_path)
    spec = registry.spec("brightness", described)
    assert (spec.needs, spec.low, spec.high, spec.summary) == (("image",), 0.0, 1.0, "how bright the image is")
    outcomes = await scored(described, (*GREYS, ScoreItem()))
    assert [o.value for o in outcomes[:3] if isinstance(o, Score)] == pytest.approx([0.0, 0.04, 1.0])  # (51/255)^2
    assert isinstance(outcomes[3], ScoreFailure)
    assert outcomes[3].code == "missing_input"


RETURNS = """
    from synod.contracts import Score
    class Own:
        def score(self, items):
            return {}
    def load(name, settings):
        return Own()
"""


@pytest.mark.parametrize(
    ("returns", "codes", "message"),
    [
        ("[Score(float('nan') if i == 1 else 0.5) for i in range(len(items))]", ("", "non_finite", ""), "nan"),
        ("[Score(1.5 if i == 1 else 0.5) for i in range(len(items))]", ("", "scorer_failed", ""), "1.5"),
        ("[Score(-0.1 if i == 1 else 0.5) for i in range(len(items))]", ("", "scorer_failed", ""), "[0, 1]"),
        ("[Score(float('inf')) for _ in items]", ("scorer_failed",) * 3, "inf, outside its range [0, 1]"),
        ("[0.5 for _ in items]", ("scorer_failed",) * 3, "['float'] among its outcomes"),
        ("[Score(0.5)]", ("scorer_failed",) * 3, "gave 1 outcomes for 3 items"),
        ("[Score(1 / int(item.pixels()[0, 0, 0])) for item in items]", ("scorer_failed", "", ""), "ZeroDivisionError"),
        ("[Score('good') for _ in items]", ("scorer_failed",) * 3, "TypeError"),
    ],
)
async def test_invalid_results_are_typed_failures(
    package: Write, tmp_path: Path, returns: str, codes: tuple[str, ...], message: str
) -> None:
    package(RETURNS.format(returns))
    outcomes = await scored(scorer_settings(tmp_path))
    assert tuple("" if isinstance(o, Score) else o.code for o in outcomes) == codes
    assert any(message in o.message for o in outcomes if isinstance(o, ScoreFailure)), outcomes


@pytest.mark.parametrize(
    ("code", "load", "message"),
    [
        (CODE, "my_package.gone:load", "No module named 'my_package.gone'"),
        (CODE, "no_such_package.scorer:load", "on PYTHONPATH, on every node"),
        (CODE, "my_package.my_scorer:lode", "has no function 'lode'"),
        ("load = 3\n", "my_package.my_scorer:load", "has no function 'load'"),
        ("import no_such_dependency\n", "my_package.my_scorer:load", "no_such_dependency"),
        ("def load(name, settings): return None\n", "my_package.my_scorer:load", "a NoneType, which has no method"),
    ],
)
def test_load_error_names_its_cause(package: Write, tmp_path: Path, code: str, load: str, message: str) -> None:
    package(code)
    described = scorer_settings(tmp_path, TOML.replace("my_package.my_scorer:load", load))
    with pytest.raises(SettingsError, match=re.escape(message)):
        registry.build("brightness", described)


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ('needs = ["image"]', 'needs = ["photo"]', "needs"),
        ('needs = ["image"]', "needs = []", "needs"),
        ('needs = ["image"]', 'needs = ["image"]\nlow = 2', "low 2 is not below high 1"),
        ('needs = ["image"]', 'needs = ["image"]\nhigh = inf', "high"),
        ("my_package.my_scorer:load", "my_package/my_scorer.py", "load"),
        ('needs = ["image"]', 'needs = ["image"]\nmodels = { a = "./gone" }', "no such file or directory"),
    ],
)
def test_invalid_settings_are_refused(tmp_path: Path, was: str, now: str, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        scorer_settings(tmp_path, TOML.replace(was, now))


def test_the_modules_it_holds_are_counted(package: Write, tmp_path: Path) -> None:
    package("""
        import torch
        class Own:
            def __init__(self):
                self.net, self.name = torch.nn.Linear(3, 5, dtype=torch.bfloat16), "net"
            def score(self, items):
                return []
        def load(name, settings):
            return Own()
    """)
    with record_modules() as modules:
        registry.build("brightness", scorer_settings(tmp_path))
    assert ParameterStats.of(modules) == ParameterStats(2 * (3 * 5 + 5), "cpu", "bfloat16")


def test_needs_are_the_scorers_needs() -> None:
    assert get_args(get_args(CustomSettings.model_fields["needs"].annotation)[0]) == get_args(Need)


def test_provenance_covers_code_options_and_models_only(package: Write, tmp_path: Path) -> None:
    def of(text: str = TOML) -> Any:
        return origin(scorer_settings(tmp_path, text))

    package(CODE)
    before = of()
    assert of(TOML.replace("how bright", "/how bright")) == before
    assert of(TOML.replace("2.0", "3.0")) != before
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    with_model = TOML + 'models = { net = "./model" }\n'
    weights.write_bytes(b"a")
    first = of(with_model)
    weights.write_bytes(b"b")
    assert len({before, first, of(with_model)}) == 3
    package(CODE + "\n# changed\n")
    assert of() != before
    with pytest.raises(SettingsError, match="the package 'gone' was not found"):
        of(TOML.replace("my_package.my_scorer", "gone.my_scorer"))

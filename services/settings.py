"""The service's settings: one frozen typed tree, read from one TOML.

Relative paths resolve from the TOML's folder. `SYNOD__SERVER__PORT=8001` overrides `[server] port`; the value is parsed
as TOML if it can be, else it is a string. An unknown key, a bad value or a missing model directory is a
SettingsError that names the key, the value and the remedy.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from services.scorers.registry import AnyScorerSettings
from services.settings_types import CustomResource, ModelSource, Node
from synod import toml
from synod.contracts import ConceptKind
from synod.errors import SettingsError

STORE_BYTES_PER_PIXEL = 4  # 3 of them hold the pixel; the rest is room for other requests' items and Ray's headers
MEMORY_BYTES_PER_PIXEL = 16  # of a gateway: 3 for each of HELD_REQUESTS, and 4 for what is being decoded, at 14 a pixel
DEFAULT_TIMEOUT_MS = 60_000
MAX_TIMEOUT_MS = 600_000  # that a request may ask for
MAX_REFERENCES = 16  # of an item
MAX_TEXT_CHARS = 8192  # of each text of an item
MAX_SEGMENTS = 64  # of a reasoning; also clauses and questions of GenEval, and facts about a concept
MAX_REQUEST_ID_CHARS = 256  # every streamed part repeats it
HELD_REQUESTS = 4  # of max_request_pixels: their decoded images may be in one gateway at once
DECODING_SHARE = 4  # of max_request_pixels: this part of it, or one image, may be in decoding at once
BASE64_SLACK_BYTES = 4096  # of a JSON body, besides its one image
ScorerName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
FiniteWeight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ServerSettings(Node):
    """Where the gateway listens.

    `listen`: which process accepts connections on `port`. "gateway": every gateway itself, which is fastest, but all
    their nodes must be reachable. "proxy": Serve's HTTP proxy, which finds gateways on any node. The gateways listen on
    `grpc_port` themselves. `access_log`: whether each request is logged. `gateway_resource`: a custom Ray resource of
    which each gateway takes 1, and no CPU, for a cluster that reserves nodes for gateways.
    """

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    listen: Literal["gateway", "proxy"] = "gateway"
    grpc_port: int | None = Field(None, ge=1, le=65535)
    gateway_replicas: int = Field(1, ge=1)
    gateway_resource: CustomResource | None = None
    access_log: bool = False


class LimitSettings(Node):
    """Limits of a request. Each is checked before the work that it bounds.

    `max_request_pixels` bounds the decoded pixels of all images of a request, references included; references that
    items have in common count once. None: as many as the machine holds (`fitted`). A gateway holds the decoded pixels
    of HELD_REQUESTS such requests at once.
    """

    max_body_bytes: int = Field(64 * 2**20, gt=0, le=2**31 - 1)  # gRPC counts the bytes of a message in 31 bits
    max_items: int = Field(256, gt=0)
    max_image_bytes: int = Field(16 * 2**20, gt=0)
    max_image_pixels: int = Field(4096 * 4096, gt=0)
    max_request_pixels: int | None = Field(None, gt=0)

    def fitted(self, memory_bytes: float, store_bytes: float = math.inf) -> LimitSettings:
        """Return the limits with a `max_request_pixels` that a gateway with this memory and object store can hold.

        Raises SettingsError for a `max_request_pixels` that is larger, or smaller than `max_image_pixels`.
        """
        most = int(min(store_bytes / STORE_BYTES_PER_PIXEL, memory_bytes / MEMORY_BYTES_PER_PIXEL))
        asked = most if self.max_request_pixels is None else self.max_request_pixels
        least = max(asked, self.max_image_pixels)
        remedy = (
            f"raise [cluster] object_store_bytes (ray.objectStoreBytes in the chart) to {STORE_BYTES_PER_PIXEL * least}"
            if store_bytes / STORE_BYTES_PER_PIXEL < least
            else f"give the gateway {MEMORY_BYTES_PER_PIXEL * least} bytes of memory"
        )
        if asked > most:
            raise SettingsError(
                f"[limits] max_request_pixels is {asked}, but an object store of {store_bytes:.0f} bytes and a memory "
                f"of {memory_bytes:.0f} bytes hold {most}: lower it, or {remedy}"
            )
        if self.max_image_pixels > asked:
            raise SettingsError(
                f"[limits] max_image_pixels is {self.max_image_pixels}, but a request may have {asked} pixels "
                f"([limits] max_request_pixels): lower max_image_pixels, or "
                f"{remedy if self.max_request_pixels is None else 'raise max_request_pixels'}"
            )
        return self.model_copy(update={"max_request_pixels": asked})


class AdmissionSettings(Node):
    """`max_queued_images` bounds the images that wait for one scorer in one gateway; further requests get 429."""

    max_queued_images: int = Field(4096, ge=1)


class StoreSettings(Node):
    """What a gateway stores by digest. With `max_scores = 0` no score is reused."""

    max_image_bytes: int = Field(256 * 2**20, ge=0)
    max_scores: int = Field(100_000, ge=0)


class AuthSettings(Node):
    """Where the bearer tokens are: in a TOML file, or in an environment variable that holds such a TOML. Never here.

    With neither, every caller is accepted, which is allowed on loopback only. `metrics` says
    whether `/metrics` is open or asks for a token with the scope "metrics".
    """

    tokens_file: ModelSource | None = None
    tokens_env: str | None = None
    metrics: Literal["open", "token"] = "open"

    @model_validator(mode="after")
    def _one_source(self) -> AuthSettings:
        if self.tokens_file is not None and self.tokens_env is not None:
            raise ValueError("both 'tokens_file' and 'tokens_env': give one of them")
        if self.metrics == "token" and not self.required:
            raise ValueError("metrics = \"token\" without a source of tokens: give 'tokens_file' or 'tokens_env'")
        return self

    @property
    def required(self) -> bool:
        """Return whether callers need a token."""
        return self.tokens_file is not None or self.tokens_env is not None


class CompatSettings(Node):
    """Which other reward servers' endpoints to answer as well; see docs/adapters.md.

    `unirl` serves `POST /score`, `GET /health` and `GET /rewards` as Tencent UniRL's reward service does: its rewards
    are the scorers and ensembles here, by name. `openrlhf` serves `POST /openrlhf` for OpenRLHF's `remote_url`: it
    names the scorer or ensemble whose value is the reward.
    """

    unirl: bool = False
    openrlhf: str | None = None


class TracingSettings(Node):
    """Where OpenTelemetry spans go (OTLP over HTTP, to `endpoint`/v1/traces); None: nowhere, and nothing is traced.

    `sample_ratio` is the share of requests that are traced, of those that bring no `traceparent`; one that does says
    itself whether it is. Headers for the collector, such as its token, come from OTEL_EXPORTER_OTLP_HEADERS alone.
    """

    endpoint: str | None = None
    sample_ratio: float = Field(1.0, ge=0, le=1)

    @model_validator(mode="after")  # of the table, so that a refusal does not repeat the value
    def _base_of_a_collector(self) -> TracingSettings:
        url = urlsplit(self.endpoint or "http://collector")
        if url.username is not None or url.password is not None or url.query:
            raise ValueError("'endpoint' holds a secret: give it as a header in OTEL_EXPORTER_OTLP_HEADERS")
        if url.scheme not in ("http", "https") or not url.hostname or url.path.rstrip("/").endswith("/v1/traces"):
            raise ValueError(
                f"'endpoint' is not a base URL: '{self.endpoint}'; give one such as 'http://collector:4318', "
                "without /v1/traces"
            )
        return self


class ClusterSettings(Node):
    """The Ray head that `up` starts on this machine. `num_cpus` and `num_gpus` are logical; None lets Ray count.

    Of a scorer with `max_replicas`, a replica is added after `upscale_delay_s` of more work than its replicas hold, and
    one is removed after `downscale_delay_s` of less.
    """

    num_cpus: int | None = Field(None, ge=1)
    num_gpus: int | None = Field(None, ge=0)
    object_store_bytes: int = Field(256 * 2**20, ge=80 * 2**20)
    ready_timeout_s: float = Field(180.0, gt=0)
    upscale_delay_s: float = Field(10.0, gt=0)
    downscale_delay_s: float = Field(300.0, gt=0)


class EnsembleSettings(Node):
    """Weights over scorer names: the reward is their weighted sum. They are not rescaled to sum 1.

    `weights` are for any item; `by_kind` holds those that replace them for items with a concept of that kind. An
    ensemble has one of the two or both. `clip_at_zero` counts a negative value as 0, as Sync-R1 does (eq. 34).
    `missing`: what a failed component with weight > 0 does to the reward. `fail` (default) makes the reward a failure,
    `renormalise` spreads its weight over the components that were measured.
    """

    weights: Mapping[str, FiniteWeight] | None = None
    by_kind: Mapping[ConceptKind, Mapping[str, FiniteWeight]] = {}
    clip_at_zero: bool = False
    missing: Literal["fail", "renormalise"] = "fail"

    @property
    def tables(self) -> dict[str, Mapping[str, float]]:
        """Return every table of weights by its name in the settings."""
        flat = {} if self.weights is None else {"weights": self.weights}
        return flat | {f"by_kind.{kind}": weights for kind, weights in self.by_kind.items()}

    @field_validator("weights", mode="before")
    @classmethod
    def _kinds_have_their_own_table(cls, weights: object) -> object:
        if isinstance(weights, Mapping):
            nested = [str(name) for name, weight in weights.items() if isinstance(weight, Mapping)]
            if nested:
                raise ValueError(
                    f"{', '.join(nested)}: a table, where a scorer's weight belongs; "
                    "give weights by concept kind as 'by_kind' instead"
                )
        return weights

    @model_validator(mode="after")
    def _something_counts(self) -> EnsembleSettings:
        if not self.tables:
            raise ValueError("no weights: give 'weights' for any item, 'by_kind' for concepts of a kind, or both")
        empty = [table for table, weights in self.tables.items() if not any(weights.values())]
        if empty:
            raise ValueError(f"no weight above 0 in {', '.join(empty)}: weigh at least one scorer")
        return self


class Settings(Node):
    """The whole service. `golden` is a JSON file of golden items and their recorded scores, which gates readiness.

    `pairs` is a file of pairs of items that the scorers must rank, for `synod verify`. The service ignores
    `trainer` and `personalize`, which the trainer reads from the same file.
    """

    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    admission: AdmissionSettings = AdmissionSettings()
    store: StoreSettings = StoreSettings()
    auth: AuthSettings = AuthSettings()
    compat: CompatSettings = CompatSettings()
    tracing: TracingSettings = TracingSettings()
    cluster: ClusterSettings = ClusterSettings()
    scorers: Mapping[ScorerName, AnyScorerSettings] = Field(min_length=1)
    ensembles: Mapping[str, EnsembleSettings] = {}
    golden: ModelSource | None = None
    pairs: ModelSource | None = None
    trainer: Mapping[str, Any] = {}
    personalize: Mapping[str, Any] = {}

    @model_validator(mode="after")
    def _only_loopback_is_open_to_all(self) -> Settings:
        if not self.auth.required and not _is_loopback(self.server.host):
            raise ValueError(
                f"[server] host '{self.server.host}' is not loopback and no token is required: name a "
                "source of tokens by [auth] tokens_file or tokens_env, or listen on 127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _an_image_fits_each_layer(self) -> Settings:
        body = math.ceil(self.limits.max_image_bytes / 3) * 4 + BASE64_SLACK_BYTES
        if body > self.limits.max_body_bytes:
            raise ValueError(
                f"[limits] max_image_bytes is {self.limits.max_image_bytes}, and such an image takes {body} bytes of a "
                f"JSON body, but max_body_bytes is {self.limits.max_body_bytes}: lower the one or raise the other"
            )
        if 0 < self.store.max_image_bytes < self.limits.max_image_bytes:
            raise ValueError(
                f"[limits] max_image_bytes is {self.limits.max_image_bytes}, but the store of images by digest holds "
                f"{self.store.max_image_bytes} ([store] max_image_bytes): lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _hosts_have_replicas(self) -> Settings:
        able = sorted(name for name, scorer in self.scorers.items() if scorer.serving.colocate_with is None)
        for name, scorer in self.scorers.items():
            if scorer.serving.colocate_with not in (None, *able):
                raise ValueError(
                    f"scorer '{name}' is colocated with '{scorer.serving.colocate_with}', which has no replicas of its "
                    f"own; those that have: {', '.join(able) or 'none'}"
                )
            host = self.scorers[scorer.serving.colocate_with].serving if scorer.serving.colocate_with else None
            if host is not None and (host.python or host.resource):
                raise ValueError(
                    f"scorer '{name}' is colocated with '{scorer.serving.colocate_with}', which has an environment of "
                    f"its own ({host.python or host.resource}); give '{name}' replicas of its own"
                )
        return self

    @property
    def hosts(self) -> dict[str, tuple[str, ...]]:
        """Return the scorers of each replica, by the scorer that owns the replica (listed first)."""
        return {
            host: (host, *(name for name, one in self.scorers.items() if one.serving.colocate_with == host))
            for host, scorer in self.scorers.items()
            if scorer.serving.colocate_with is None
        }

    @model_validator(mode="after")
    def _ensembles_name_known_scorers(self) -> Settings:
        for name, ensemble in self.ensembles.items():
            unknown = {s for weights in ensemble.tables.values() for s in weights} - set(self.scorers)
            if unknown:
                raise ValueError(f"ensemble '{name}' weighs {sorted(unknown)}; [scorers] has {sorted(self.scorers)}")
        return self

    @model_validator(mode="after")
    def _compat_names_what_is_served(self) -> Settings:
        reward = self.compat.openrlhf
        if reward is not None and reward not in {*self.scorers, *self.ensembles}:
            raise ValueError(
                f"[compat] openrlhf is '{reward}'; name a scorer ({', '.join(sorted(self.scorers))}) "
                f"or an ensemble ({', '.join(sorted(self.ensembles)) or 'there is none'})"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load(path: str | Path, environ: Mapping[str, str] | None = None, *, without: Sequence[str] = ()) -> Settings:
    """Read a settings TOML with environment overrides, leaving out top-level keys `without`. Raises SettingsError."""
    path = Path(path)
    tree = toml.read(path, environ)
    for key in without:
        tree.pop(key, None)
    try:
        return Settings.model_validate(tree, context={"folder": path.resolve().parent})
    except ValidationError as error:
        raise toml.settings_error(path, error.errors()) from None

from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Relation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RELATION_UNSPECIFIED: _ClassVar[Relation]
    RELATION_LEFT_OF: _ClassVar[Relation]
    RELATION_RIGHT_OF: _ClassVar[Relation]
    RELATION_ABOVE: _ClassVar[Relation]
    RELATION_BELOW: _ClassVar[Relation]

class ConceptKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONCEPT_KIND_UNSPECIFIED: _ClassVar[ConceptKind]
    CONCEPT_KIND_PERSON: _ClassVar[ConceptKind]
    CONCEPT_KIND_ANIMAL: _ClassVar[ConceptKind]
    CONCEPT_KIND_OBJECT: _ClassVar[ConceptKind]
RELATION_UNSPECIFIED: Relation
RELATION_LEFT_OF: Relation
RELATION_RIGHT_OF: Relation
RELATION_ABOVE: Relation
RELATION_BELOW: Relation
CONCEPT_KIND_UNSPECIFIED: ConceptKind
CONCEPT_KIND_PERSON: ConceptKind
CONCEPT_KIND_ANIMAL: ConceptKind
CONCEPT_KIND_OBJECT: ConceptKind

class ScoreRequest(_message.Message):
    __slots__ = ("items", "scorers", "ensemble", "weights", "timeout_ms", "request_id")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SCORERS_FIELD_NUMBER: _ClassVar[int]
    ENSEMBLE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ScoreItem]
    scorers: _containers.RepeatedScalarFieldContainer[str]
    ensemble: str
    weights: Weights
    timeout_ms: int
    request_id: str
    def __init__(self, items: _Optional[_Iterable[_Union[ScoreItem, _Mapping]]] = ..., scorers: _Optional[_Iterable[str]] = ..., ensemble: _Optional[str] = ..., weights: _Optional[_Union[Weights, _Mapping]] = ..., timeout_ms: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class Weights(_message.Message):
    __slots__ = ("by_scorer",)
    class ByScorerEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    BY_SCORER_FIELD_NUMBER: _ClassVar[int]
    by_scorer: _containers.ScalarMap[str, float]
    def __init__(self, by_scorer: _Optional[_Mapping[str, float]] = ...) -> None: ...

class ScoreItem(_message.Message):
    __slots__ = ("image", "prompt", "references", "reasoning", "geneval", "concept", "source_prompt")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    GENEVAL_FIELD_NUMBER: _ClassVar[int]
    CONCEPT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    image: Image
    prompt: str
    references: _containers.RepeatedCompositeFieldContainer[Image]
    reasoning: Reasoning
    geneval: GenEvalMetadata
    concept: Concept
    source_prompt: str
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., prompt: _Optional[str] = ..., references: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., reasoning: _Optional[_Union[Reasoning, _Mapping]] = ..., geneval: _Optional[_Union[GenEvalMetadata, _Mapping]] = ..., concept: _Optional[_Union[Concept, _Mapping]] = ..., source_prompt: _Optional[str] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("encoded", "raw", "digest")
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    encoded: bytes
    raw: RawImage
    digest: str
    def __init__(self, encoded: _Optional[bytes] = ..., raw: _Optional[_Union[RawImage, _Mapping]] = ..., digest: _Optional[str] = ...) -> None: ...

class RawImage(_message.Message):
    __slots__ = ("data", "height", "width")
    DATA_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    height: int
    width: int
    def __init__(self, data: _Optional[bytes] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class Reasoning(_message.Message):
    __slots__ = ("text", "segments", "truth")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    TRUTH_FIELD_NUMBER: _ClassVar[int]
    text: str
    segments: _containers.RepeatedScalarFieldContainer[str]
    truth: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, text: _Optional[str] = ..., segments: _Optional[_Iterable[str]] = ..., truth: _Optional[_Iterable[float]] = ...) -> None: ...

class GenEvalMetadata(_message.Message):
    __slots__ = ("tag", "include", "exclude", "vqa_list")
    TAG_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    VQA_LIST_FIELD_NUMBER: _ClassVar[int]
    tag: str
    include: _containers.RepeatedCompositeFieldContainer[GenEvalClause]
    exclude: _containers.RepeatedCompositeFieldContainer[GenEvalClause]
    vqa_list: _containers.RepeatedCompositeFieldContainer[GenEvalQuestion]
    def __init__(self, tag: _Optional[str] = ..., include: _Optional[_Iterable[_Union[GenEvalClause, _Mapping]]] = ..., exclude: _Optional[_Iterable[_Union[GenEvalClause, _Mapping]]] = ..., vqa_list: _Optional[_Iterable[_Union[GenEvalQuestion, _Mapping]]] = ...) -> None: ...

class GenEvalQuestion(_message.Message):
    __slots__ = ("question", "answer")
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    question: str
    answer: str
    def __init__(self, question: _Optional[str] = ..., answer: _Optional[str] = ...) -> None: ...

class GenEvalClause(_message.Message):
    __slots__ = ("class_name", "count", "color", "position")
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    COLOR_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    class_name: str
    count: int
    color: str
    position: Position
    def __init__(self, class_name: _Optional[str] = ..., count: _Optional[int] = ..., color: _Optional[str] = ..., position: _Optional[_Union[Position, _Mapping]] = ...) -> None: ...

class Position(_message.Message):
    __slots__ = ("relation", "target")
    RELATION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    relation: Relation
    target: int
    def __init__(self, relation: _Optional[_Union[Relation, str]] = ..., target: _Optional[int] = ...) -> None: ...

class Concept(_message.Message):
    __slots__ = ("kind", "class_word", "token", "about")
    KIND_FIELD_NUMBER: _ClassVar[int]
    CLASS_WORD_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ABOUT_FIELD_NUMBER: _ClassVar[int]
    kind: ConceptKind
    class_word: str
    token: str
    about: About
    def __init__(self, kind: _Optional[_Union[ConceptKind, str]] = ..., class_word: _Optional[str] = ..., token: _Optional[str] = ..., about: _Optional[_Union[About, _Mapping]] = ...) -> None: ...

class About(_message.Message):
    __slots__ = ("info", "facts")
    INFO_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    info: str
    facts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, info: _Optional[str] = ..., facts: _Optional[_Iterable[str]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("results", "request_id")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ItemResult]
    request_id: str
    def __init__(self, results: _Optional[_Iterable[_Union[ItemResult, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class ItemResult(_message.Message):
    __slots__ = ("scores", "reward")
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Outcome
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Outcome, _Mapping]] = ...) -> None: ...
    SCORES_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.MessageMap[str, Outcome]
    reward: Outcome
    def __init__(self, scores: _Optional[_Mapping[str, Outcome]] = ..., reward: _Optional[_Union[Outcome, _Mapping]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("score", "failure")
    SCORE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    score: Score
    failure: ScoreFailure
    def __init__(self, score: _Optional[_Union[Score, _Mapping]] = ..., failure: _Optional[_Union[ScoreFailure, _Mapping]] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("value", "detail_json", "origin")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_JSON_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    value: float
    detail_json: str
    origin: Origin
    def __init__(self, value: _Optional[float] = ..., detail_json: _Optional[str] = ..., origin: _Optional[_Union[Origin, _Mapping]] = ...) -> None: ...

class Origin(_message.Message):
    __slots__ = ("model", "preprocessing", "rule_set")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    RULE_SET_FIELD_NUMBER: _ClassVar[int]
    model: str
    preprocessing: str
    rule_set: str
    def __init__(self, model: _Optional[str] = ..., preprocessing: _Optional[str] = ..., rule_set: _Optional[str] = ...) -> None: ...

class ScoreFailure(_message.Message):
    __slots__ = ("code", "message", "retryable")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    retryable: bool
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., retryable: _Optional[bool] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "retryable", "digests", "retry_after_s")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    retryable: bool
    digests: _containers.RepeatedScalarFieldContainer[str]
    retry_after_s: float
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., retryable: _Optional[bool] = ..., digests: _Optional[_Iterable[str]] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class ScoreStreamRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: ScoreRequest
    def __init__(self, request: _Optional[_Union[ScoreRequest, _Mapping]] = ...) -> None: ...

class ScoreStreamResponse(_message.Message):
    __slots__ = ("request_id", "scored", "rewards", "error")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SCORED_FIELD_NUMBER: _ClassVar[int]
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    scored: ScoredItem
    rewards: Rewards
    error: Error
    def __init__(self, request_id: _Optional[str] = ..., scored: _Optional[_Union[ScoredItem, _Mapping]] = ..., rewards: _Optional[_Union[Rewards, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class ScoredItem(_message.Message):
    __slots__ = ("index", "scorer", "outcome")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SCORER_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    index: int
    scorer: str
    outcome: Outcome
    def __init__(self, index: _Optional[int] = ..., scorer: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ...) -> None: ...

class Rewards(_message.Message):
    __slots__ = ("rewards",)
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    rewards: _containers.RepeatedCompositeFieldContainer[Reward]
    def __init__(self, rewards: _Optional[_Iterable[_Union[Reward, _Mapping]]] = ...) -> None: ...

class Reward(_message.Message):
    __slots__ = ("outcome",)
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    outcome: Outcome
    def __init__(self, outcome: _Optional[_Union[Outcome, _Mapping]] = ...) -> None: ...

class ListScorersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListScorersResponse(_message.Message):
    __slots__ = ("scorers", "ensembles", "limits")
    class EnsemblesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: EnsembleInfo
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[EnsembleInfo, _Mapping]] = ...) -> None: ...
    class LimitsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SCORERS_FIELD_NUMBER: _ClassVar[int]
    ENSEMBLES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    scorers: _containers.RepeatedCompositeFieldContainer[ScorerInfo]
    ensembles: _containers.MessageMap[str, EnsembleInfo]
    limits: _containers.ScalarMap[str, int]
    def __init__(self, scorers: _Optional[_Iterable[_Union[ScorerInfo, _Mapping]]] = ..., ensembles: _Optional[_Mapping[str, EnsembleInfo]] = ..., limits: _Optional[_Mapping[str, int]] = ...) -> None: ...

class ScorerInfo(_message.Message):
    __slots__ = ("name", "needs", "low", "high", "source", "summary", "model", "device", "dtype", "load_s", "parameter_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NEEDS_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    needs: _containers.RepeatedScalarFieldContainer[str]
    low: float
    high: float
    source: str
    summary: str
    model: str
    device: str
    dtype: str
    load_s: float
    parameter_bytes: int
    def __init__(self, name: _Optional[str] = ..., needs: _Optional[_Iterable[str]] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., source: _Optional[str] = ..., summary: _Optional[str] = ..., model: _Optional[str] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., load_s: _Optional[float] = ..., parameter_bytes: _Optional[int] = ...) -> None: ...

class EnsembleInfo(_message.Message):
    __slots__ = ("weights", "missing", "by_kind", "clip_at_zero")
    class ByKindEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Weights
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Weights, _Mapping]] = ...) -> None: ...
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    BY_KIND_FIELD_NUMBER: _ClassVar[int]
    CLIP_AT_ZERO_FIELD_NUMBER: _ClassVar[int]
    weights: Weights
    missing: str
    by_kind: _containers.MessageMap[str, Weights]
    clip_at_zero: bool
    def __init__(self, weights: _Optional[_Union[Weights, _Mapping]] = ..., missing: _Optional[str] = ..., by_kind: _Optional[_Mapping[str, Weights]] = ..., clip_at_zero: _Optional[bool] = ...) -> None: ...

class PutImagesRequest(_message.Message):
    __slots__ = ("images",)
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[Image]
    def __init__(self, images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ...) -> None: ...

class PutImagesResponse(_message.Message):
    __slots__ = ("digests",)
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    digests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, digests: _Optional[_Iterable[str]] = ...) -> None: ...

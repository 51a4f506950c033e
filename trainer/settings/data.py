"""The table `[trainer.data]`, one class for each `task`."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from trainer.settings.fields import Directory, Node, PromptFile, Result

TEMPLATES: Final[Mapping[str, str]] = {
    "plain": "{facts}. {prompt}",
    "instruct": (
        "This is known about {name}: {facts}. An image will be drawn from this prompt: {prompt}. Infer which of the "
        "known facts the prompt hints at. Answer with exactly that fact, or with nothing if it hints at none."
    ),
}
REFLECT: Final = (
    'Does this image show the prompt "{prompt}"? Begin with <answer>Yes</answer> or <answer>No</answer>. Then say what '
    "has to change, if anything."
)
_NEEDED, _FIELDS = ("facts", "prompt"), ("facts", "prompt", "name")
_SYNC_R1: Final = ("concepts", "geneval_share", "pathways", "textual_template")


def read_template(given: str) -> str:
    """Return a textual template by its name in TEMPLATES, or the text that was given. Raises ValueError.

    A text has {facts}, {prompt} and, if wanted, {name}.
    """
    if given in TEMPLATES:
        return TEMPLATES[given]
    fields = _fields_of(given, "template")
    unknown = [name for name in fields if name not in _FIELDS]
    missing = [f"{{{name}}}" for name in _NEEDED if name not in fields]
    if unknown or missing:
        found = f"has an unknown {{{unknown[0]}}}" if unknown else f"lacks {' and '.join(missing)}"
        raise ValueError(
            f"the template {found}; give a text with {{facts}}, {{prompt}} and, if wanted, {{name}}, or one of "
            f"{', '.join(TEMPLATES)}"
        )
    return given


def _with_prompt(template: str) -> str:
    fields = _fields_of(template, "query")
    if set(fields) != {"prompt"}:
        raise ValueError(f"the query has the fields {fields}; give a text with {{prompt}} and no other field")
    return template


def _fields_of(template: str, what: str) -> list[str]:
    """Return the fields of a template as it writes them: "name", or "name!r:>9", which no field here may have."""
    try:
        parsed = [one[1:] for one in Formatter().parse(template) if one[1] is not None]
    except ValueError as error:
        raise ValueError(f"the {what} is malformed ({error}); double a brace that is text") from None
    return [f"{name}{f'!{kind}' if kind else ''}{f':{form}' if form else ''}" for name, form, kind in parsed]


QueryTemplate = Annotated[str, AfterValidator(_with_prompt)]


class PromptSettings(Node):
    """Draw the prompts of a file: plain text with one prompt a line, JSONL, or parquet.

    JSONL and parquet have the prompts in `column`. Without `heldout` nothing is evaluated before and after training.
    With `query` the policy is asked that about each prompt first, and its reply, or what is in `<answer>..</answer>` at
    the reply's start, becomes part of the prompt (UniRL-Zero, scenario 5).
    """

    task: Literal["prompts"] = "prompts"
    prompts: PromptFile
    heldout: PromptFile | None = None
    column: str = Field("prompt", min_length=1)
    query: QueryTemplate | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_concepts(cls, table: Any) -> Any:
        found = [key for key in _SYNC_R1 if isinstance(table, Mapping) and key in table]
        if found:
            raise ValueError(f"'{found[0]}' belongs to Sync-R1's task; add task = \"sync_r1\", or remove the key")
        return table

    @property
    def has_answers(self) -> bool:
        """Whether the policy is asked anything before it draws."""
        return self.query is not None

    @property
    def results(self) -> tuple[Result, ...]:
        """What the terms of a reward may score."""
        return ("image", "answer") if self.query is not None else ("image",)


class QuestionSettings(Node):
    """Questions about an image or none, whose answers are rewarded; nothing is drawn (UniRL-Zero, scenarios 1 and 2).

    A line of the JSONL file has a question, an image or none, segments and their truth (`trainer.data.lines`).
    """

    task: Literal["questions"]
    prompts: PromptFile
    heldout: PromptFile | None = None

    results: ClassVar[tuple[Result, ...]] = ("answer",)
    has_answers: ClassVar[bool] = True


class EditSettings(Node):
    """Edits of images, which are then edited back (UniRL-Zero, scenario 4): "image" is the edited, "cycled" that one.

    A line of the JSONL file has the source and its caption, the edit and its caption, and the reverse edit
    (`trainer.data.lines`).
    """

    task: Literal["edits"]
    prompts: PromptFile
    heldout: PromptFile | None = None

    results: ClassVar[tuple[Result, ...]] = ("image", "cycled")
    has_answers: ClassVar[bool] = False


class ReflectionSettings(Node):
    """Images that the policy judges and then redraws by its own feedback (UniRL-Zero, scenario 6).

    A line of the JSONL file has a prompt, an image, and whether the image shows it (`trainer.data.lines`). The policy
    is asked `query` about the image; what follows `</answer>` in its reply is appended to the prompt.
    """

    task: Literal["reflection"]
    prompts: PromptFile
    heldout: PromptFile | None = None
    query: QueryTemplate = REFLECT

    results: ClassVar[tuple[Result, ...]] = ("image", "answer")
    has_answers: ClassVar[bool] = True


class SyncR1Settings(Node):
    """Sync-R1's reasoning pathways about personal concepts. `geneval_share` of the prompts are GenEval's.

    `pathways` are those in use. With one of them the prompts of the other are left out. With [] the policy is asked
    nothing: the prompts of both are drawn as they are, and the default reward is the ensemble "sync_r1_without_tier".

    `textual_template` is the query of the textual pathway: the name of one of TEMPLATES ("plain", or "instruct", which
    says in words what to do with the facts), or a text with {facts}, {prompt} and, if wanted, {name}.
    """

    task: Literal["sync_r1"]
    prompts: PromptFile
    heldout: PromptFile
    concepts: Directory
    geneval_share: float = Field(0.0, ge=0, le=1)
    pathways: tuple[Literal["visual", "textual"], ...] = ("visual", "textual")
    textual_template: str = "plain"

    @property
    def has_answers(self) -> bool:
        """Whether the policy is asked anything before it draws."""
        return bool(self.pathways) and self.geneval_share < 1

    @property
    def results(self) -> tuple[Result, ...]:
        """What the terms of a reward may score."""
        return ("image", "answer") if self.has_answers else ("image",)

    @property
    def template(self) -> str:
        """The text of the textual template."""
        return read_template(self.textual_template)

    @field_validator("pathways")
    @classmethod
    def _once_each(cls, pathways: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(pathways)) < len(pathways):
            raise ValueError(f"pathways {list(pathways)}: a pathway is given twice; give each at most once")
        return pathways

    @field_validator("textual_template")
    @classmethod
    def _states_facts_and_prompt(cls, template: str) -> str:
        read_template(template)
        return template


def _task(table: object) -> str | None:
    if isinstance(table, Mapping):
        return str(table.get("task", "prompts"))
    return getattr(table, "task", None)


DataSettings = Annotated[
    Annotated[PromptSettings, Tag("prompts")]
    | Annotated[SyncR1Settings, Tag("sync_r1")]
    | Annotated[QuestionSettings, Tag("questions")]
    | Annotated[EditSettings, Tag("edits")]
    | Annotated[ReflectionSettings, Tag("reflection")],
    Discriminator(_task),
]

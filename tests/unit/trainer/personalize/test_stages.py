"""The supervised page: losses against a second implementation, what is trained, and exact resuming."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from synod.errors import SettingsError
from tests.unit.trainer.personalize.tiny_concept import DOT, make_rows, noise
from trainer.errors import NonFinite
from trainer.personalize import examples, stages
from trainer.personalize.examples import Item, Photos
from trainer.personalize.records import ConceptRecord, load_image
from trainer.personalize.stages import RECIPES, Batch, epoch_batches, mmu_loss, t2i_loss, train_stage, trained_ids
from trainer.personalize.tokens import insert
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.vocabulary import END, PAD
from trainer.report.metrics import read
from trainer.settings.personalize import PersonalizeSettings

MakePolicy = Callable[..., ShowO]
Settings = Callable[..., PersonalizeSettings]
Trained = Callable[..., tuple[ShowO, bool]]
PATHS = [Path(f"{i}.png") for i in range(3)]
PHOTOS = {path: noise(i) for i, path in enumerate(PATHS)}
ITEMS = [
    Item(PATHS[0], "what color is <dot> ?", "<dot> is red .", "conversation"),
    Item(PATHS[1], "is <dot> on a photo ?", "No.", "random"),
    Item(None, "what has <dot> ?", "<dot> has a red hat on grass .", "text_only"),
]


@pytest.fixture
def owner(make_policy: MakePolicy) -> ShowO:
    policy = make_policy(guidance_scale=0.0)
    policy.module.requires_grad_(False)
    insert(policy, DOT, make_rows(DOT.count))
    return policy


@pytest.fixture
def photos(concept: ConceptRecord) -> Photos:
    files = (*concept.train, *concept.cropped, *concept.random)
    return {path: load_image(path) for path in files}


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> Settings:
    def make(**given: object) -> PersonalizeSettings:
        table = {"data": folder, "run_dir": tmp_path / "run", "policy": {"model": "a/b"}, "prompt": "a photo of {} ."}
        return PersonalizeSettings.model_validate({**table, **given})

    return make


class Never:
    """A stop that is set after `after` epochs."""

    def __init__(self, after: int = 99) -> None:
        self._left = after + 1

    def is_set(self) -> bool:
        self._left -= 1
        return self._left <= 0


def naive_answer(policy: ShowO, item: Item) -> list[float]:
    """The loss of each answer token, from one whole sequence read with a mask made row by row."""
    vocab = policy.vocab
    image = np.zeros((8, 8, 3), np.uint8) if item.image is None else PHOTOS[item.image]
    codes = [vocab.image_offset + int(c) for c in policy.vq.encode([image])[0]]
    head = [vocab.id("<|mmu|>"), vocab.id("<|soi|>"), *codes, vocab.id("<|eoi|>")]
    soft = "".join(f"<dot:{i}>" for i in (0, 1, 2, 5, 6))
    asked = [vocab.id(END), *vocab.encode(f"USER : <dot> is {soft} . {item.query} ASSISTANT :")]
    answer = [*vocab.encode(item.answer), vocab.id(END)]
    ids = [*head, *asked, *answer]
    mask = [[column <= row or column < len(head) for column in range(len(ids))] for row in range(len(ids))]
    hidden = policy.phi(torch.tensor([ids]), torch.tensor(mask)[None, None])[0]
    logits = policy.phi.lm_head(hidden)[:, : vocab.image_offset]
    said = [column for column in range(vocab.image_offset) if column not in vocab.unsaid]
    start = len(head) + len(asked) - 1
    return [
        float(functional.cross_entropy(logits[start + i][said], torch.tensor(said.index(token))))
        for i, token in enumerate(answer)
    ]


@torch.no_grad()
def test_answer_loss_of_unequal_rows_is_that_of_each(owner: ShowO) -> None:
    losses = [loss for item in ITEMS for loss in naive_answer(owner, item)]
    assert len({len(naive_answer(owner, item)) for item in ITEMS}) == 3
    found = mmu_loss(owner, ITEMS, PHOTOS)
    assert float(found) == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    alone = [(float(mmu_loss(owner, [item], PHOTOS)), len(naive_answer(owner, item))) for item in ITEMS]
    assert float(found) == pytest.approx(sum(a * n for a, n in alone) / sum(n for _, n in alone), abs=1e-5)


def naive_logits(policy: ShowO, prompt: str, codes: Tensor, masked: Tensor) -> Tensor:
    """Logits [N + 2, V] from soi to eoi of one whole sequence: 41 text columns, then the image."""
    vocab = policy.vocab
    soft = "".join(f"<dot:{i}>" for i in range(5))
    said = vocab.encode(prompt.replace("<dot>", f"{soft} <dot>"))
    block = [vocab.id("<|t2i|>"), vocab.id(END), *said, vocab.id(END)]
    pads = 41 - len(block)
    image = [vocab.mask_id if m else vocab.image_offset + int(c) for c, m in zip(codes, masked, strict=True)]
    ids = [vocab.id(PAD)] * pads + block + [vocab.id("<|soi|>"), *image, vocab.id("<|eoi|>")]
    mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    mask[41:, 41:] = True
    mask[pads:, :pads] = False
    hidden = policy.phi(torch.tensor([ids]), mask[None, None])[0]
    logits: Tensor = policy.phi.lm_head(hidden)[41:]
    return logits


@torch.no_grad()
@pytest.mark.parametrize("kind", ["codes", "public"])
def test_image_loss_against_a_second_one(owner: ShowO, uniforms: Callable[..., Tensor], kind: str) -> None:
    prompts = ["a photo of <dot> .", "", "a photo of <dot> ."]
    codes, masked = (uniforms(3, 16, seed=5) * 16).long(), uniforms(3, 16, seed=6) < 0.5
    vocab, losses = owner.vocab, []
    for prompt, row, hidden in zip(prompts, codes, masked, strict=True):
        logits = naive_logits(owner, prompt, row, hidden)
        columns = slice(vocab.image_offset, vocab.mask_id) if kind == "codes" else slice(None)
        first = 0 if kind == "codes" else vocab.image_offset
        for place in hidden.nonzero().flatten().tolist():
            losses.append(functional.cross_entropy(logits[place + 1][columns], row[place] + first))
        if kind == "public":
            losses.append(functional.cross_entropy(logits[0], torch.tensor(vocab.id("<|soi|>"))))
            losses.append(functional.cross_entropy(logits[-1], torch.tensor(vocab.id("<|eoi|>"))))
    found = t2i_loss(owner, Batch([], prompts, codes, masked), kind)
    assert float(found) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


def test_each_stage_trains_its_own_rows(owner: ShowO) -> None:
    name, *soft = owner.vocab.rows_of("<dot>")
    s, g, u = soft[:3], soft[3:5], soft[5:]
    parts = {number: trained_ids(owner, "<dot>", recipe.parts) for number, recipe in RECIPES.items()}
    assert parts == {1: [name, *s], 2: [name, *s, *g], 3: [name, *u]}


def test_epochs_differ_and_follow_from_the_seed(
    owner: ShowO, concept: ConceptRecord, photos: Photos, settings: Settings
) -> None:
    def epoch(number: int, seed: int = 0) -> list[Batch]:
        return list(epoch_batches(owner, concept, photos, settings(seed=seed), 2, number))

    first, again, later = epoch(0), epoch(0), epoch(1)
    assert len(first) == 26  # questions, one at a time; the 3 images begin again
    assert [b.questions for b in first] == [b.questions for b in again]
    assert all(torch.equal(a.codes_BN, b.codes_BN) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a.masked_BN, b.masked_BN) for a, b in zip(first, again, strict=True))
    assert [b.questions for b in first] != [b.questions for b in later]
    crops = {tuple(b.codes_BN.flatten().tolist()) for one in (first, later) for b in one}
    assert len(crops) > 12  # of 3 images: crops and mirrors are drawn again
    assert {prompt for b in first for prompt in b.prompts} <= {"a photo of <dot> .", ""}


def test_stage_three_sees_whole_images_unmirrored(
    owner: ShowO, concept: ConceptRecord, photos: Photos, settings: Settings
) -> None:
    batches = list(epoch_batches(owner, concept, photos, settings(), 3, 0))
    squares = owner.vq.encode([stages.fit_to_square(photos[path], 8) for path in concept.train])
    assert {tuple(b.codes_BN[0].tolist()) for b in batches} == {tuple(row.tolist()) for row in squares}
    assert {item.kind for b in batches for item in b.questions} == {"positive", "random"}


def digest(policy: ShowO) -> dict[str, str]:
    state = policy.module.state_dict()
    return {key: hashlib.sha256(value.numpy().tobytes()).hexdigest() for key, value in state.items()}


@pytest.fixture
def trained(make_policy: MakePolicy, concept: ConceptRecord, photos: Photos, settings: Settings) -> Iterator[Trained]:
    """`trained(number, directory, stop)`: train a stage with 12 epochs of batches of 13 and 3."""

    def make(number: int, directory: Path, stop: Never | None = None, **given: object) -> tuple[ShowO, bool]:
        policy = make_policy(guidance_scale=0.0)
        policy.module.requires_grad_(False)
        insert(policy, DOT, make_rows(DOT.count))
        table = {"epochs": 7, "questions": 13, "images": 3, "lr": 0.05}
        chosen = settings(**{f"stage_{number}": table}, **given)
        ended = train_stage(policy, concept, photos, chosen, number, directory, {"seed": 0}, stop or Never())
        return policy, ended

    return make


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_stage_lowers_its_loss_and_changes_only_rows(
    trained: Trained, owner: ShowO, make_policy: MakePolicy, tmp_path: Path, number: int
) -> None:
    policy, ended = trained(number, tmp_path / "a")
    assert ended
    ids = trained_ids(owner, "<dot>", RECIPES[number].parts)
    before, after = owner.module.state_dict(), policy.module.state_dict()
    assert before.keys() == after.keys()
    for key in before:
        changed = {i for i in range(len(before[key])) if not torch.equal(before[key][i], after[key][i])}
        table = key.endswith(("embed_tokens.weight", "lm_head.weight", "lm_head.bias"))
        assert changed <= (set(ids) if table else set()), key
        if key.endswith("embed_tokens.weight"):
            assert changed == set(ids)
    base, prompts = make_policy(guidance_scale=0.0), ["a photo of a dog", "red grass"]
    plain, drawn = (one.denoise(one.start(prompts, [(5, 0), (5, 1)]), one.image_steps) for one in (base, policy))
    for one, other in zip(plain, drawn, strict=True):  # what does not name the concept is drawn as before, bit for bit
        assert torch.equal(one.codes_TN, other.codes_TN)
        assert torch.equal(one.logp_TN, other.logp_TN)
    records = read(tmp_path / "a")
    assert [record["step"] for record in records] == list(range(len(records)))
    assert len(records) == 7 * 2
    assert records[-1]["loss"] < records[0]["loss"]
    weights = {"loss_text": 1.0} if number == 1 else {"loss_text": 0.2, "loss_image": 0.8}
    assert records[0]["loss"] == pytest.approx(sum(w * records[0][key] for key, w in weights.items()), abs=1e-6)


def test_resuming_is_exact(trained: Trained, tmp_path: Path) -> None:
    straight, _ = trained(2, tmp_path / "a")
    stopped, ended = trained(2, tmp_path / "b", Never(2))
    assert not ended
    assert sorted(path.name for path in (tmp_path / "b/checkpoints").iterdir()) == ["step-000002"]
    resumed, ended = trained(2, tmp_path / "b")
    assert ended
    assert digest(resumed) == digest(straight)
    assert digest(stopped) != digest(straight)
    assert (tmp_path / "b/metrics.jsonl").read_text() == (tmp_path / "a/metrics.jsonl").read_text()
    names = sorted(path.name for path in (tmp_path / "a/checkpoints").iterdir())
    assert names == ["step-000005", "step-000007"]


def test_a_lost_last_part_is_trained_again(trained: Trained, tmp_path: Path) -> None:
    """Killed between two checkpoints: the metrics have more steps than the checkpoint."""
    straight, _ = trained(1, tmp_path / "a")
    shutil.rmtree(tmp_path / "a/checkpoints/step-000007")
    lines = (tmp_path / "a/metrics.jsonl").read_text()
    again, _ = trained(1, tmp_path / "a")
    assert digest(again) == digest(straight)
    assert (tmp_path / "a/metrics.jsonl").read_text() == lines


def test_checkpoints_of_other_conditions_are_refused(trained: Trained, tmp_path: Path) -> None:
    trained(1, tmp_path / "a", Never(1))
    state = tmp_path / "a/checkpoints/step-000001/state.json"
    state.write_text(state.read_text().replace('"settings": {"seed": 0}', '"settings": {"seed": 1}'))
    with pytest.raises(
        SettingsError, match="  seed: 1 there, 0 now\nResume with its settings, or give a new `run_dir`"
    ):
        trained(1, tmp_path / "a")


def test_no_epochs_keep_the_first_rows(
    owner: ShowO, concept: ConceptRecord, photos: Photos, settings: Settings, tmp_path: Path
) -> None:
    before = digest(owner)
    assert train_stage(owner, concept, photos, settings(stage_1={"epochs": 0}), 1, tmp_path, {}, Never())
    assert digest(owner) == before
    assert not (tmp_path / "checkpoints").exists()


def test_nan_loss_changes_nothing(owner: ShowO, monkeypatch: pytest.MonkeyPatch) -> None:
    owner.train_rows(trained_ids(owner, "<dot>", ("name",)))
    parameters = [p for p in owner.module.parameters() if p.requires_grad]
    optimizer, before = torch.optim.AdamW(parameters, 1.0), [p.detach().clone() for p in parameters]
    monkeypatch.setattr(stages, "mmu_loss", lambda *_: parameters[0].sum() * torch.nan)
    with pytest.raises(NonFinite, match="the loss is nan; give the stage's table a lower lr"):
        stages.update(owner, optimizer, Batch([], [], *[torch.zeros(0, 16)] * 2), {}, "codes")
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_recipes_are_the_papers_with_hard_negatives() -> None:
    found = {n: (r.images, r.weight_decay, r.eps, sorted(r.kinds)) for n, r in RECIPES.items()}
    every = ["conversation", "hard", "positive", "random", "text_only"]
    assert found == {
        1: (None, 1e-4, 1e-6, every),
        2: ("cropped", 1e-3, 1e-8, every),
        3: ("whole", 1e-3, 1e-8, ["hard", "positive", "random"]),
    }
    assert (stages.IMAGE_WEIGHT, stages.TEXT_WEIGHT, examples.DROPPED, examples.MIRRORED) == (0.8, 0.2, 0.1, 0.25)
    table = {"data": Path.cwd(), "run_dir": "x", "policy": {"model": "a/b"}}
    paper = PersonalizeSettings.model_validate(table)
    rows = [(one.epochs, one.lr, one.questions, one.images) for one in map(paper.stage, (1, 2, 3))]
    assert rows == [(20, 1e-4, 4, 1), (20, 1e-3, 1, 1), (20, 1e-4, 1, 1)]
    assert json.loads(paper.tokens.model_dump_json()) == {"shared": 16, "generation": 8, "understanding": 8}


def test_the_pull_is_the_distance_of_the_names_rows(owner: ShowO) -> None:
    """By hand: moves of .5 in the embeddings and -1 in the head give .25 + 1, and gradients 2 d / D on that row."""
    owner.train_rows(trained_ids(owner, "<dot>", ("name", "shared")))
    assert owner.row_distance(0) == 0
    rows = dict(owner.module.named_parameters())
    embed, head = rows["showo.model.embed_tokens.rows"], rows["showo.lm_head.rows"]
    with torch.no_grad():
        embed[0] += 0.5
        head[0] -= 1.0
        embed[1:] += 9.0  # other tokens are free
    distance = owner.row_distance(0)
    assert float(distance.detach()) == pytest.approx(1.25, abs=1e-6)
    distance.backward()  # type: ignore[no-untyped-call]
    width = embed.shape[1]
    assert embed.grad is not None
    assert head.grad is not None
    assert torch.allclose(embed.grad[0], torch.full((width,), 2 * 0.5 / width), atol=1e-7)
    assert torch.allclose(head.grad[0], torch.full((width,), -2 / width), atol=1e-7)
    assert not embed.grad[1:].any()
    batch = Batch(ITEMS[:1], [], *[torch.zeros(0, 16)] * 2)
    record = stages.update(owner, torch.optim.SGD([embed, head], 0.0), batch, PHOTOS, "codes", 2.0)
    assert record["loss"] == pytest.approx(record["loss_text"] + 2.0 * 1.25, abs=1e-5)
    assert record["loss_name"] == pytest.approx(1.25, abs=1e-6)
    assert "loss_name" not in stages.update(owner, torch.optim.SGD([embed, head], 0.0), batch, PHOTOS, "codes")

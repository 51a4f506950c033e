"""Concept rows: inserted, removed bit for bit, said only by their name, and trained as the public code trains them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from synod.errors import SettingsError
from tests.unit.trainer.personalize.tiny_concept import DOT, SUE, WIDTH, make_rows, noise
from tests.unit.trainer.tiny_show_o import write_tokenizer
from trainer.personalize.tokens import Rows, base_digest, check_prompts, insert, remove, rows_of
from trainer.policy.base import TextSegment
from trainer.policy.show_o.config import ShowOConfig
from trainer.policy.show_o.loading import load
from trainer.policy.show_o.magvit import Magvit, MagvitConfig
from trainer.policy.show_o.policy import Sampling, ShowO
from trainer.policy.show_o.vocabulary import END, ConceptTokens, Vocabulary
from trainer.policy.weights import parameters_on_meta
from trainer.types import Query

MakePolicy = Callable[..., ShowO]
Uniforms = Callable[..., Tensor]
PROMPTS = ["a photo of <bo> on grass", "", "a red cat"]
QUERY = Query("what color is <bo> ?", noise(1))


def state(policy: ShowO) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in policy.module.state_dict().items()}


def answers(policy: ShowO, text: str, said: str = "a red dog .") -> TextSegment:
    ids = torch.tensor([*policy.vocab.encode(said), policy.vocab.id(END)])
    return TextSegment(Query(text, noise(1)), ids, torch.zeros(len(ids)), said)


def all_logits(policy: ShowO, uniforms: Tensor) -> list[Tensor]:
    """Every logit of an answer and of masked codes: text columns, code columns, the mask's column."""
    codes, masked = (uniforms[0] * 16).long(), uniforms[1] < 0.6
    question = policy.vocab.question(QUERY.text, policy._codes(QUERY.image))[None]
    hidden = [policy.phi(question, torch.ones(1, 1, *2 * question.shape[1:], dtype=torch.bool).tril())]
    hidden.append(policy._unguided(PROMPTS, policy._image_ids(codes, masked)))
    offset = policy.vocab.image_offset
    base = offset - sum(concept.count for concept in policy.vocab.personal)
    ranges = [(0, base), (offset, policy.vocab.mask_id), (policy.vocab.mask_id, policy.vocab.size)]
    return [policy.phi.logits(one, *columns) for one in hidden for columns in ranges]


@torch.no_grad()
def test_logits_without_the_concept_do_not_change(policy: ShowO, uniforms: Uniforms) -> None:
    drawn = uniforms(2, 3, 16, seed=2)
    before = all_logits(policy, drawn)
    insert(policy, DOT, make_rows(DOT.count))
    insert(policy, SUE, make_rows(SUE.count, 1))
    after = all_logits(policy, drawn)
    assert max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True)) == 0.0


def test_removing_gives_the_base_back_bit_for_bit(policy: ShowO) -> None:
    before, vocab, config = state(policy), policy.vocab, policy.config
    rows = make_rows(DOT.count), make_rows(SUE.count, 1)
    for concept, own in zip((DOT, SUE), rows, strict=True):
        insert(policy, concept, own)
    back = remove(policy, "<dot>"), remove(policy, "<sue>")
    for given, found in zip(rows, back, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(given.tensors(), found.tensors(), strict=True))
    after = state(policy)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert (policy.vocab.size, policy.vocab.personal, policy.config) == (vocab.size, (), config)
    assert policy.vocab.encode("<dot:0>") == vocab.encode("<dot:0>")


def test_only_the_name_can_be_said(policy: ShowO, uniforms: Uniforms) -> None:
    insert(policy, DOT, make_rows(DOT.count))
    own = policy.vocab.rows_of("<dot>")
    policy.phi.lm_head.weight.data[own.start : own.stop] = 0.0
    policy.phi.lm_head.bias.data[own.start : own.stop] = 20.0  # every row of the concept is likely
    found = policy.reason(QUERY, uniforms(32, 4))
    said = torch.cat([one.ids_S for one in found])
    assert int((said == own.start).sum()) > 60
    assert not torch.isin(said, torch.tensor(own[1:])).any()
    logp = policy._text_logp(torch.randn(3, WIDTH))
    assert torch.equal(logp[:, own.start + 1 : own.stop], torch.full((3, DOT.count - 1), -math.inf))
    torch.testing.assert_close(logp.exp().sum(-1), torch.ones(3))
    new, old, mask = policy.logprobs(found, 0)
    torch.testing.assert_close(new[mask], old[mask], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_two_concepts_are_read_as_each_one_alone(make_policy: MakePolicy) -> None:
    alone, both = make_policy(), make_policy()
    insert(alone, SUE, make_rows(SUE.count, 1))
    insert(both, DOT, make_rows(DOT.count))
    insert(both, SUE, make_rows(SUE.count, 1))
    codes, masked = torch.zeros(1, 16, dtype=torch.long), torch.ones(1, 16, dtype=torch.bool)
    found = [p.masked_logp(["a photo of <sue> on grass"], codes, masked) for p in (alone, both)]
    assert torch.equal(*found)
    questions = [p.vocab.question("what is <sue> ?", codes[0]) for p in (alone, both)]
    hidden = [p.phi(ids[None], None) for p, ids in zip((alone, both), questions, strict=True)]
    assert torch.equal(*hidden)
    asked = [p.vocab.to_ask("what is <sue> ?") for p in (alone, both)]
    assert asked[0] == asked[1] == "<sue> is <sue:0><sue:1>. what is <sue> ?"


def test_prompts_and_questions_are_expanded_once() -> None:
    assert DOT.tokens == ("<dot>", *(f"<dot:{i}>" for i in range(7)))
    assert DOT.drawn == "<dot:0><dot:1><dot:2><dot:3><dot:4> <dot>"
    assert DOT.introduction == "<dot> is <dot:0><dot:1><dot:2><dot:5><dot:6>. "
    assert ConceptTokens("<a>", 0).drawn == "<a>"
    assert ConceptTokens("<a>", 0).introduction == ""


def test_ids_of_a_prompt_by_hand(policy: ShowO) -> None:
    offset = policy.vocab.image_offset
    insert(policy, DOT, make_rows(DOT.count))
    ids, start = policy.vocab.text_block(["a photo of <dot> . <dot> sits"])
    word = policy.vocab.id
    soft = list(range(offset + 1, offset + 6))
    text = [word("a"), word("photo"), word("of"), *soft, offset, word("."), offset, word("sits")]
    assert ids[0].tolist() == [word("<|t2i|>"), word(END), *text, word(END)]
    assert start == 41 - len(ids[0])
    question = policy.vocab.question("is <dot> red ?", torch.zeros(16, dtype=torch.long))[20:].tolist()
    introduction = [offset, word("is"), *soft[:3], offset + 6, offset + 7, word(".")]
    asked = [word("is"), offset, word("red"), word("?")]
    assert question == [word("USER"), word(":"), *introduction, *asked, word("ASSISTANT"), word(":")]


def test_saved_policy_keeps_its_concepts(policy: ShowO, tmp_path: Path) -> None:
    insert(policy, DOT, make_rows(DOT.count))
    policy.train_rows(list(policy.vocab.rows_of("<dot>")))
    for parameter in policy.module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    policy.save(tmp_path)
    found = load(tmp_path, concepts=["<dot>"])
    assert found.vocab.personal == (DOT,)
    torch.testing.assert_close(rows_of(found, "<dot>").embed_RD, make_rows(DOT.count).embed_RD + 0.1)
    codes, masked = torch.zeros(1, 16, dtype=torch.long), torch.ones(1, 16, dtype=torch.bool)
    logps = [one.masked_logp(["a photo of <dot>"], codes, masked) for one in (policy, found)]
    torch.testing.assert_close(*logps, atol=1e-5, rtol=1e-5)
    insert(found, SUE, make_rows(SUE.count))
    remove(found, "<dot>")
    assert found.vocab.rows_of("<sue>") == range(found.vocab.image_offset - 4, found.vocab.image_offset)


def losses(policy: ShowO, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    codes, masked = torch.randint(16, (2, 16), generator=generator), torch.rand(2, 16, generator=generator) < 0.7
    drawn = policy.whole_vocabulary_loss(["a photo of <dot> .", "<dot> on grass"], codes, masked)
    said, _, mask = policy.logprobs([answers(policy, "what is <dot> ?", "<dot> is red .")], 0)
    return drawn - said[mask].mean()


def test_trained_rows_equal_the_public_way(make_policy: MakePolicy) -> None:
    """The public code trains the whole tables, then restores every other row: 20 steps of AdamW."""
    ours, public = (make_policy(guidance_scale=0.0) for _ in range(2))
    for policy in (ours, public):
        insert(policy, DOT, make_rows(DOT.count))
    ids = list(policy.vocab.rows_of("<dot>"))[:6]  # the name, s and g
    ours.train_rows(ids)
    tables = [public.phi.model.embed_tokens.weight, public.phi.lm_head.weight, public.phi.lm_head.bias]
    start = [table.detach().clone() for table in tables]
    public.module.requires_grad_(False)
    for table in tables:
        table.requires_grad_(True)
    trained = [p for p in ours.module.parameters() if p.requires_grad]
    optimizers = [torch.optim.AdamW(p, 1e-2, weight_decay=1e-3) for p in (trained, tables)]
    others = torch.ones(policy.vocab.size, dtype=torch.bool).index_fill(0, torch.tensor(ids), False)
    for step in range(20):
        for policy, optimizer in zip((ours, public), optimizers, strict=True):
            optimizer.zero_grad()
            losses(policy, step).backward()
            optimizer.step()
        with torch.no_grad():
            for table, before in zip(tables, start, strict=True):
                table[others] = before[others]
    numbers = sum(value.numel() for one in optimizers[0].state.values() for key, value in one.items() if key != "step")
    assert numbers == 2 * len(ids) * (2 * WIDTH + 1)
    ours.keep_rows()
    found = rows_of(ours, "<dot>"), rows_of(public, "<dot>")
    moved = (found[0].embed_RD[:6] - make_rows(DOT.count).embed_RD[:6]).abs().max()
    assert moved > 0.05
    for a, b in zip(*(one.tensors() for one in found), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    for key, value in state(ours).items():
        kept = others if len(value) == len(others) and "layernorm" not in key else slice(None)
        assert torch.equal(value[kept], state(public)[key][kept]), key


def test_the_reference_has_the_stored_rows(make_policy: MakePolicy, uniforms: Uniforms) -> None:
    policy = make_policy()
    insert(policy, DOT, make_rows(DOT.count))
    policy.phi.lm_head.bias.data[policy.vocab.rows_of("<dot>").start] += 25.0  # the name is said
    policy.train_rows(list(policy.vocab.rows_of("<dot>")))
    policy.keep_reference()
    assert policy._reference is None
    begun = policy.begin(["a photo of <dot>"] * 2, uniforms(2, 4, 2, 16))
    images = policy.denoise(begun, 4)
    said = policy.reason(Query("what is <dot> ?"), uniforms(2, 4))
    assert any("<dot>" in one.text for one in said)
    for segments, step in ((images, 1), (said, 0)):
        terms = policy.terms(segments, step, reference=True)
        assert torch.equal(terms.new_BD[terms.mask_BD], terms.reference_BD[terms.mask_BD])
    for parameter in policy.module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    for segments, step in ((images, 1), (said, 0)):
        moved = policy.terms(segments, step, reference=True)
        assert not torch.equal(moved.new_BD, moved.reference_BD)
        torch.testing.assert_close(moved.reference_BD[moved.mask_BD], moved.old_BD[moved.mask_BD], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_prompts_without_tokens_are_drawn_alike(make_policy: MakePolicy, uniforms: Uniforms) -> None:
    before, after = make_policy(), make_policy()
    insert(after, DOT, make_rows(DOT.count))
    after.train_rows(list(after.vocab.rows_of("<dot>")))
    drawn = [p.denoise(p.begin(PROMPTS, uniforms(3, 4, 2, 16)), 4) for p in (before, after)]
    for a, b in zip(*drawn, strict=True):
        assert torch.equal(a.codes_TN, b.codes_TN)
        assert torch.equal(a.logp_TN, b.logp_TN)


def test_digest_of_the_base_ignores_concepts(policy: ShowO) -> None:
    before = base_digest(policy)
    insert(policy, DOT, make_rows(DOT.count))
    assert base_digest(policy) == before
    policy.phi.model.layers[0].mlp.fc1.bias.data[0] += 1e-3
    assert base_digest(policy) != before


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    words = [f"w{i}" for i in range(50_294)]
    return Vocabulary.read(write_tokenizer(tmp_path_factory.mktemp("words"), [*words, END]), (), 8192, 128)


def test_rows_of_the_published_sizes(published: Vocabulary) -> None:
    with parameters_on_meta():
        config = replace(ShowOConfig(58_498), llm={"num_hidden_layers": 1}, mask_token_id=58_497, llm_vocab_size=50_295)
        policy = ShowO(config, published, Magvit(MagvitConfig()), sampling=Sampling())
    insert(policy, ConceptTokens("<bo>", 16, 8), make_rows(25, width=2048))
    assert (policy.vocab.image_offset, policy.vocab.mask_id, policy.vocab.size) == (50_330, 58_522, 58_523)
    assert policy.config.mask_token_id == 58_522
    assert policy.phi.model.embed_tokens.weight.shape == policy.phi.lm_head.weight.shape == (58_523, 2048)
    remove(policy, "<bo>")
    assert policy.phi.lm_head.bias.shape == (58_498,)


@pytest.mark.parametrize(
    ("concept", "rows", "message"),
    [
        (ConceptTokens("<bo>", 3), make_rows(4), "'<bo>' is not a new token"),
        (ConceptTokens("<cat>", 3), make_rows(3), "3 rows, but its name, 3 \\+ 0 \\+ 0 soft tokens need 4"),
        (ConceptTokens("dot", 3), make_rows(4), "not of the form <name>"),
        (ConceptTokens("<d t>", 3), make_rows(4), "not of the form <name>"),
        (ConceptTokens("<dot>", 3), make_rows(4, width=32), "have 32 numbers, the policy's tables 64"),
        (ConceptTokens("<dot>", 20, 10), make_rows(31), "has room for 29 .*at most 29"),
    ],
)
def test_unusable_concepts_are_refused(policy: ShowO, concept: ConceptTokens, rows: Rows, message: str) -> None:
    before = state(policy)
    with pytest.raises(SettingsError, match=message):
        insert(policy, concept, rows)
    assert all(torch.equal(before[key], value) for key, value in state(policy).items())


def test_a_concept_is_given_once(policy: ShowO) -> None:
    insert(policy, DOT, make_rows(DOT.count))
    with pytest.raises(SettingsError, match="not a new token"):
        insert(policy, DOT, make_rows(DOT.count))
    assert policy.vocab.personal == (DOT,)


def test_cut_prompts_are_counted_and_logged_once(policy: ShowO, uniforms: Uniforms) -> None:
    insert(policy, DOT, make_rows(DOT.count))
    logged: list[str] = []
    policy.log = logged.append
    long = "a photo of <dot> . " + "a dog on grass . " * 6
    cut = len(policy.vocab.encode(policy.vocab.to_draw(long))) + 3 - 41
    begun = policy.begin([long, "a cat"], uniforms(2, 4, 2, 16))
    policy.begin([long], uniforms(1, 4, 2, 16))
    assert [one.num_cut for one in policy.denoise(begun, 2)] == [cut, 0]
    assert cut > 0
    assert len(logged) == 1
    assert f"the last {cut} tokens" in logged[0]
    check_prompts(policy.vocab, ["a cat " * 40, "a photo of <dot>"])  # without a concept it is cut as always
    with pytest.raises(SettingsError, match=f"has {cut} tokens more than a text block of 41"):
        check_prompts(policy.vocab, ["a cat", long])


def test_copies_share_nothing(policy: ShowO) -> None:
    insert(policy, DOT, make_rows(DOT.count))
    other = copy.deepcopy(policy.module)
    rows_of(policy, "<dot>").embed_RD.zero_()
    assert all(torch.equal(a, b) for a, b in zip(policy.module.parameters(), other.parameters(), strict=True))

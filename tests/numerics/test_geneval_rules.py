"""GenEval's rules against a second implementation written differently (exact fractions, ranks instead of sorting,
clauses decided one by one), and against cases worked by hand."""

from __future__ import annotations

import os
import random
import struct
from fractions import Fraction

import pytest

from services.scorers.geneval import rules
from services.scorers.geneval.rules import COLORS, Found
from services.scorers.geneval.scorer import RULE_SETS
from synod.contracts import RELATIONS, GenEvalClause, GenEvalMetadata
from synod.errors import InvalidItem

SETS = int(os.environ.get("SYNOD_GENEVAL_SETS", "1000"))
CLASSES = ("cat", "dog", "car")
SCORES = (0.1, 0.3, 0.3000001, 0.30001, 0.5, 0.5, 0.7, 0.9, 0.90001, 0.95, 0.99)


def single(value: float) -> float:
    """The value as a 32-bit float holds it."""
    return struct.unpack("f", struct.pack("f", value))[0]


class Oracle:
    def __init__(self, metadata: GenEvalMetadata, candidates: list[Found]) -> None:
        self.metadata, self.candidates = metadata, candidates
        self.least = single(0.9 if metadata.tag == "counting" else 0.3)

    def rank(self, a: Found) -> int:
        rivals = [b for b in self.candidates if b.class_name == a.class_name]
        return sum((single(b.score), b.index) > (single(a.score), a.index) for b in rivals)

    def best(self, name: str, most: int) -> list[Found]:
        same = [f for f in self.candidates if f.class_name == name and single(f.score) > self.least]
        return [f for f in same if self.rank(f) < min(most, 16)]

    @staticmethod
    def stands(relation: str, a: Found, b: Found) -> bool:
        axis = 0 if relation in ("left of", "right of") else 1
        sign = -1 if relation in ("left of", "above") else 1
        (ax, ay), (bx, by) = ([(Fraction(f.box[k]) + Fraction(f.box[k + 2])) / 2 for k in (0, 1)] for f in (a, b))
        reach = sum(abs(Fraction(f.box[axis + 2]) - Fraction(f.box[axis])) for f in (a, b)) / 10
        along = sign * (ax - bx if axis == 0 else ay - by) - reach
        return along > 0 and 4 * along * along > (ax - bx) ** 2 + (ay - by) ** 2

    def holds(self, number: int, exact: bool) -> tuple[bool, bool, bool]:
        """Whether clause `number` holds in count, then also in colour, then also in position."""
        clause = self.metadata.include[number]
        group = self.best(clause.class_name, 99 if exact else clause.count)
        count = len(group) == clause.count
        color = count and (clause.color is None or all(f.color == clause.color for f in group))
        if clause.position is None or not color:
            return count, color, color and clause.position is None
        relation, target = clause.position
        place = self.holds(target, exact)[2] and all(
            self.stands(relation, a, b)
            for a in group
            for b in self.best(
                self.metadata.include[target].class_name, 99 if exact else self.metadata.include[target].count
            )
        )
        return count, color, place

    def official(self) -> float:
        wanted = all(self.holds(n, exact=False)[2] for n in range(len(self.metadata.include)))
        spoilt = any(len(self.best(c.class_name, 99)) >= c.count for c in self.metadata.exclude)
        return 1.0 if wanted and not spoilt else 0.0

    def soft(self) -> Fraction:
        terms = []
        for number, clause in enumerate(self.metadata.include):
            count, _, place = self.holds(number, exact=True)
            group = self.best(clause.class_name, 99)
            terms.append(max(Fraction(0), 1 - Fraction(abs(len(group) - clause.count), clause.count)))
            if clause.color is not None:
                right = len([f for f in group if f.color == clause.color]) if count else 0
                terms.append(Fraction(right, clause.count))
            if clause.position is not None:
                terms.append(Fraction(int(place)))
        return sum(terms, Fraction(0)) / len(terms)

    def strict(self) -> float:
        return float(all(self.holds(n, exact=True)[2] for n in range(len(self.metadata.include))))

    def soft_compat(self) -> Fraction:
        """What the lineage appends, as a table: (count right?, what of colour, what of position) -> its terms."""
        terms: list[Fraction] = []
        for number, clause in enumerate(self.metadata.include):
            count, color, place = self.holds(number, exact=True)
            group = self.best(clause.class_name, 99)
            terms.append(1 - Fraction(abs(len(group) - clause.count), clause.count))
            if not count:
                terms += [Fraction(0)] * int(clause.color is not None or clause.position is not None)
                continue
            if clause.color is not None:
                terms.append(Fraction(len([f for f in group if f.color == clause.color]), clause.count))
            if clause.position is not None and color:
                target_is_there = self.holds(clause.position[1], exact=True)[2]
                terms += [Fraction(1)] if place else [Fraction(0), Fraction(1)] if target_is_there else [Fraction(0)]
        return sum(terms, Fraction(0)) / len(terms)


def random_case(seed: int) -> tuple[GenEvalMetadata, list[Found]]:
    rng = random.Random(seed)
    clauses = []
    for number in range(rng.randint(1, 3)):
        color = rng.choice(COLORS[:2]) if rng.random() < 0.4 else None
        position = (rng.choice(RELATIONS), rng.randrange(number)) if number and rng.random() < 0.6 else None
        clauses.append(GenEvalClause(CLASSES[number], rng.choice((1, 1, 1, 2, 3)), color, position))
    exclude = (GenEvalClause(rng.choice(CLASSES), rng.randint(1, 4)),) if rng.random() < 0.4 else ()
    candidates = []
    for index in range(rng.choice((2, 3, 4, 6, 8, 40))):
        x, y, w, h = rng.randint(0, 63), rng.randint(0, 63), rng.randint(1, 20), rng.randint(1, 20)
        color = rng.choice(COLORS[:2]) if rng.random() < 0.8 else "red"
        candidates.append(Found(rng.choice(CLASSES), rng.choice(SCORES), (x, y, x + w, y + h), index, color))
    return GenEvalMetadata(rng.choice(("counting", "position", "colors")), tuple(clauses), exclude), candidates


def found(name: str, count: int, color: str | None = None, score: float = 0.95) -> dict[str, tuple[Found, ...]]:
    boxes = [(10.0 * i, 0.0, 10.0 * i + 5, 5.0) for i in range(count)]
    return {name: tuple(Found(name, score, box, i, color) for i, box in enumerate(boxes))}


def one(clause: GenEvalClause, *exclude: GenEvalClause, tag: str = "single_object") -> GenEvalMetadata:
    return GenEvalMetadata(tag, (clause,), exclude)


def test_all_four_rule_sets_agree_with_a_second_implementation() -> None:
    values: list[dict[str, float]] = []
    for seed in range(SETS):
        metadata, candidates = random_case(seed)
        oracle = Oracle(metadata, candidates)
        objects = rules.select(candidates, metadata.tag)
        verdicts = {name: rule_set(metadata, objects) for name, rule_set in RULE_SETS.items()}
        for name, verdict in verdicts.items():
            assert verdict.value == pytest.approx(float(getattr(oracle, name)()), abs=1e-12), f"seed {seed}, {name}"
        for name in ("official", "strict", "soft"):
            assert bool(verdicts[name].reasons) == (verdicts[name].value < 1.0), f"seed {seed}, {name}"
        assert verdicts["soft_compat"].reasons == verdicts["soft"].reasons == verdicts["strict"].reasons
        values.append({name: verdict.value for name, verdict in verdicts.items()})
    for name in ("official", "strict"):
        assert 0.03 < sum(value[name] for value in values) / SETS < 0.97, "the random cases must decide both ways"
    assert {(value["official"], value["strict"]) for value in values} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert len({value["soft"] for value in values}) > 10
    assert min(value["soft_compat"] for value in values) < -5
    assert all(rules.SOFT_COMPAT_LOW <= value["soft_compat"] <= 1 for value in values)


def test_soft_is_clamped_where_the_lineage_gives_minus_fourteen() -> None:
    assert rules.soft(one(GenEvalClause("cat", 1)), found("cat", 16)).value == 0.0
    assert rules.soft_compat(one(GenEvalClause("cat", 1)), found("cat", 16)).value == rules.SOFT_COMPAT_LOW == -14.0


RED_TWO = GenEvalClause("cat", 2, "red")


@pytest.mark.parametrize(
    ("objects", "value"),
    [
        (found("cat", 2, "red"), 1.0),  # 1, 1
        (found("cat", 2, "blue"), 0.5),  # 1, 0
        (found("cat", 1, "red"), 0.25),  # 1/2, and one 0 for the colour
        (found("cat", 5, "red"), -0.25),  # -1/2, and one 0
        ({}, 0.0),
    ],
)
def test_soft_compat_by_hand(objects: dict[str, tuple[Found, ...]], value: float) -> None:
    assert rules.soft_compat(one(RED_TWO), objects).value == value


def test_soft_compat_of_a_wrong_count_adds_a_single_zero() -> None:
    metadata = GenEvalMetadata("position", (GenEvalClause("dog", 1), GenEvalClause("cat", 2, "red", ("above", 0))))
    assert rules.soft_compat(metadata, {**found("dog", 1), **found("cat", 1)}).value == pytest.approx((1 + 0.5 + 0) / 3)
    assert rules.soft(metadata, {**found("dog", 1), **found("cat", 1)}).value == pytest.approx((1 + 0.5 + 0 + 0) / 4)


def test_strict_counts_all_objects_and_ignores_exclude() -> None:
    two = one(GenEvalClause("cat", 2), GenEvalClause("dog", 1), tag="counting")
    with_a_dog = {**found("cat", 2), **found("dog", 1)}
    assert (rules.strict(two, with_a_dog).value, rules.official(two, with_a_dog).value) == (1.0, 0.0)
    assert [rules.strict(two, found("cat", n)).value for n in (1, 2, 3)] == [0.0, 1.0, 0.0]
    three = {"cat": (*found("cat", 2, "red")["cat"], Found("cat", 0.5, (90, 0, 95, 5), 9, "blue"))}
    assert (rules.strict(one(RED_TWO), three).value, rules.official(one(RED_TWO), three).value) == (0.0, 1.0)


@pytest.mark.parametrize(("count", "value"), [(0, 0.0), (1, 0.5), (2, 1.0), (3, 0.5), (4, 0.0), (7, 0.0)])
def test_soft_count_term(count: int, value: float) -> None:
    assert rules.soft(one(GenEvalClause("cat", 2)), found("cat", count)).value == value


def _pair(
    cat: tuple[float, float, float, float], dog: tuple[float, float, float, float]
) -> dict[str, tuple[Found, ...]]:
    return {"cat": (Found("cat", 0.9, cat, 0),), "dog": (Found("dog", 0.9, dog, 1),)}


LEFT = GenEvalMetadata("position", (GenEvalClause("cat", 1), GenEvalClause("dog", 1, None, ("left of", 0))))


def test_a_failed_position_scores_zero_not_half() -> None:
    objects = _pair((0, 0, 10, 10), (40, 0, 50, 10))  # the dog is right of the cat
    verdict = rules.soft(LEFT, objects)
    assert verdict.value == pytest.approx(2 / 3)  # two count terms of 1, one position term of 0
    assert verdict.reasons == ("expected dog left of cat, found it right of",)
    assert rules.soft_compat(LEFT, objects).value == 0.75  # 1, 1, 0, 1: the failed position is worth a half
    assert rules.strict(LEFT, objects).value == 0.0
    assert rules.official(LEFT, objects).value == 0.0


def test_a_position_that_holds_is_worth_one() -> None:
    objects = _pair((40, 0, 50, 10), (0, 0, 10, 10))
    assert rules.soft(LEFT, objects).value == rules.official(LEFT, objects).value == 1.0
    assert rules.soft_compat(LEFT, objects).value == rules.strict(LEFT, objects).value == 1.0


def test_a_missing_target_fails_the_position() -> None:
    objects = {"dog": found("dog", 1)["dog"]}
    assert rules.soft(LEFT, objects).value == rules.soft_compat(LEFT, objects).value == pytest.approx(1 / 3)
    assert rules.soft(LEFT, objects).reasons == (
        "expected exactly 1 cat, found 0",
        "no target for dog to be left of",
    )


def test_official_reads_the_most_confident_and_soft_reads_all() -> None:
    clause = GenEvalClause("cat", 1, "red")
    objects = {"cat": (Found("cat", 0.9, (0, 0, 5, 5), 0, "red"), Found("cat", 0.8, (9, 0, 14, 5), 1, "blue"))}
    assert rules.official(one(clause), objects).value == 1.0
    assert rules.soft(one(clause), objects).value == 0.0  # two cats for one: both terms 0
    flipped = {"cat": (objects["cat"][1], objects["cat"][0])}
    assert rules.official(one(clause), flipped).reasons == ("expected 1 red cat, found 0 (colors: blue)",)


def test_official_exclude_fails_when_its_count_is_reached() -> None:
    metadata = one(GenEvalClause("cat", 2), GenEvalClause("cat", 3), tag="counting")
    assert [rules.official(metadata, found("cat", n)).value for n in (1, 2, 3, 4)] == [0.0, 1.0, 0.0, 0.0]
    assert rules.official(metadata, found("cat", 3)).reasons == ("expected fewer than 3 cat, found 3",)
    assert rules.soft(metadata, found("cat", 2)).value == 1.0


@pytest.mark.parametrize(
    ("tag", "score", "kept"),
    [
        ("colors", 0.3, False),  # equal to the threshold in float32
        ("colors", 0.30000000001, False),  # above 0.3 in float64, equal in float32
        ("colors", 0.3000001, True),
        ("counting", 0.9, False),
        ("counting", 0.89, False),
        ("counting", 0.9000001, True),
    ],
)
def test_thresholds_are_strict_and_single_precision(tag: str, score: float, kept: bool) -> None:
    assert bool(rules.select([Found("cat", score, (0, 0, 1, 1), 0)], tag)) is kept


def test_sixteen_a_class_at_most_and_later_ties_first() -> None:
    candidates = [Found("cat", 0.5, (0, 0, 1, 1), i) for i in range(20)] + [Found("cat", 0.6, (0, 0, 1, 1), 20)]
    assert [f.index for f in rules.select(candidates, "colors")["cat"]] == [20, *range(19, 4, -1)]


@pytest.mark.parametrize(
    ("a", "expected"),
    [
        ((-40, 0, -30, 10), {"left of"}),
        ((40, 0, 50, 10), {"right of"}),
        ((0, -40, 10, -30), {"above"}),
        ((0, 40, 10, 50), {"below"}),
        ((40, 40, 50, 50), {"right of", "below"}),
        ((1, 1, 11, 11), set()),  # within the margin
        ((0, 0, 10, 10), set()),
        ((2, 0, 12, 10), set()),  # offset 2 = 0.1 * (10 + 10): nothing left of it
        ((5, 0, 15, 10), {"right of"}),  # (5 - 2) / 5 = 0.6
        ((4, 0, 14, 10), set()),  # (4 - 2) / 4 = 0.5 is not beyond 0.5
    ],
)
def test_relations_by_hand(a: tuple[float, float, float, float], expected: set[str]) -> None:
    assert rules.relations(Found("a", 1, a, 0), Found("b", 1, (0, 0, 10, 10), 1)) == expected


def test_only_objects_of_color_clauses_are_classified() -> None:
    objects = {**found("cat", 3), "dog": (Found("dog", 0.9, (0, 0, 5, 5), 7),)}
    metadata = GenEvalMetadata("color_attr", (GenEvalClause("cat", 2, "red"), GenEvalClause("dog", 1)))
    assert [f.index for f in rules.color_needs(metadata, objects)] == [0, 1]
    too_many = GenEvalMetadata("color_attr", (GenEvalClause("cat", 4, "red"), GenEvalClause("dog", 1)))
    assert rules.color_needs(too_many, objects) == []


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (GenEvalMetadata("t", ()), "geneval.include is empty"),
        (one(GenEvalClause("unicorn", 1)), "'unicorn'.*cat, dog"),
        (one(GenEvalClause("cat", 1), GenEvalClause("unicorn", 1)), "'unicorn'"),
        (one(GenEvalClause("cat", 0)), "count 0 of 'cat'"),
        (one(GenEvalClause("cat", 1, "teal")), "'teal' is not one of red"),
        (one(GenEvalClause("cat", 1, None, ("near", 0))), "'near'"),  # type: ignore[arg-type]
        (one(GenEvalClause("cat", 1, None, ("above", 0))), "target 0 of clause 0"),
        (GenEvalMetadata("t", (GenEvalClause("cat", 1), GenEvalClause("dog", 1, None, ("above", -1)))), "target -1"),
    ],
)
def test_metadata_that_no_rule_can_decide_on_is_refused(metadata: GenEvalMetadata, message: str) -> None:
    with pytest.raises(InvalidItem, match=message):
        rules.check(metadata, ("cat", "dog"))

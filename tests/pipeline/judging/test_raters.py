"""What people can do, counted by hand and by drawing raters one by one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
import pytest

from pipeline.data.records import RatedText
from pipeline.judging.raters import compare, one_rater
from reward_models import measure


@dataclass(frozen=True)
class Batched(RatedText):
    """A rated text that tells who rated it."""

    batch: int | None = None


def batched(*ratings: tuple[float, ...], batch: int = 0) -> list[RatedText]:
    """Texts that the same people rated."""
    return [Batched(str(r), float(np.mean(r)), r, batch) for r in ratings]


def apart(*ratings: tuple[float, ...]) -> list[RatedText]:
    """Texts of which nothing tells who rated them."""
    return [RatedText(str(r), float(np.mean(r)), r) for r in ratings]


def test_one_pair_of_one_panel_by_hand() -> None:
    """Raters 0 and 1 prefer the first, rater 2 the second, rater 3 neither."""
    found = compare(batched((3, 2, 0, 1), (1, 0, 2, 1)))
    assert found is not None and found.same_people
    assert found.judgements.tolist() == [3]
    assert found.first_better.tolist() == [pytest.approx(2 / 3)]
    # Of the others of 0 and of 1 one agrees and one is undecided; of those of 2 one is undecided.
    assert found.another.tolist() == [pytest.approx((1.5 + 1.5 + 0.5) / 9)]
    # Sums of the others of 0: 3 and 3, undecided; of 1: 4 and 4; of 2: 6 and 2, the first.
    assert found.others.tolist() == [pytest.approx((0.5 + 0.5 + 0) / 3)]


def test_a_reward_sides_with_raters_by_its_order_alone() -> None:
    found = compare(batched((3, 2, 0, 1), (1, 0, 2, 1)))
    assert found is not None
    ones = np.ones((1, 1))
    for scores, share in (([5, 1], 2 / 3), ([-9, -8], 1 / 3), ([4, 4], 0.5)):
        assert found.agreement(scores)(ones)[0] == pytest.approx(share)


@pytest.mark.parametrize("seed", range(3))
def test_unknown_raters_are_drawn_without_replacement(seed: int) -> None:
    """The closed form against all draws of two raters of each text."""
    rng = np.random.default_rng(seed)
    a, b = (tuple(rng.integers(-2, 3, 4).astype(float)) for _ in range(2))
    found = compare(apart(a, b))
    assert found is not None and not found.same_people
    same = decided = 0.0
    for (i, k), (j, m) in product(permutations(range(4), 2), permutations(range(4), 2)):
        one, two = np.sign(a[i] - b[j]), np.sign(a[k] - b[m])
        if one:
            decided += 1
            same += (one * two + 1) / 2
    assert found.another[0] == pytest.approx(same / decided)
    sides = np.sign(np.subtract.outer(a, b))
    assert found.first_better[0] == pytest.approx((sides > 0).sum() / (sides != 0).sum())


def test_pairs_are_of_one_batch_and_batches_are_drawn() -> None:
    rng = np.random.default_rng(0)
    texts = [
        text
        for batch in range(3)
        for text in batched(*(tuple(rng.normal(size=5)) for _ in range(4)), batch=batch)
    ]
    found = compare(texts)
    assert found is not None and found.units == 3 and len(found.first) == 18
    assert {(i // 4, j // 4) for i, j in zip(found.first, found.second, strict=True)} == {
        (0, 0), (1, 1), (2, 2),
    }  # fmt: skip
    # A batch drawn twice counts twice.
    right = found.share(found.another)(np.array([[2.0, 0.0, 1.0]]))[0]
    weights = found.judgements * np.array([2, 0, 1])[found.unit]
    assert right == pytest.approx(np.average(found.another, weights=weights))


def test_without_two_raters_there_is_no_ceiling() -> None:
    assert compare([RatedText("a", 1.0), RatedText("b", 0.0)]) is None
    assert compare(apart((1.0,), (2.0,))) is None
    assert compare(apart((1.0, 1.0), (1.0, 1.0))) is None  # nobody prefers either
    assert one_rater([RatedText("a", 1.0)], 0.0, 0.5) is None


def test_one_person_is_measured_as_in_the_reward_stage() -> None:
    rng = np.random.default_rng(0)
    ratings = [tuple(np.round(rng.normal(m, 1, 5))) for m in rng.normal(0, 2, 80)]
    texts = apart(*ratings)
    found = one_rater(texts, 0.0, 0.5)
    plain = measure.human_agreement(ratings, 0.0, 0.5)
    assert found is not None and plain is not None
    accuracy, pearson = found["accuracy"], found["pearson"]
    assert accuracy is not None and accuracy.value == pytest.approx(plain["accuracy"])
    assert pearson is not None and pearson.value == pytest.approx(plain["correlation"])
    assert pearson.interval is not None and pearson.interval[0] < pearson.value


def test_one_persons_interval_draws_the_texts_of_the_same_raters_together() -> None:
    """Each text ten times over in a batch tells no more than the text once."""
    rng = np.random.default_rng(0)
    ratings = [tuple(np.round(rng.normal(m, 2, 5))) for m in rng.normal(0, 2, 40)]
    once = one_rater(apart(*ratings), 0.0, 0.5)
    copies = [
        text for batch, row in enumerate(ratings) for text in batched(*[row] * 10, batch=batch)
    ]
    together = one_rater(copies, 0.0, 0.5)
    assert once is not None and together is not None
    for name in ("accuracy", "pearson"):
        one, many = once[name], together[name]
        assert one is not None and many is not None and many.interval is not None
        assert many.value == pytest.approx(one.value)
        assert many.interval == pytest.approx(one.interval)

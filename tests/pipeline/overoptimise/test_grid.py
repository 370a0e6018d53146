"""Which texts a proxy learns from, and how several become one reward."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config.sections import OveroptimiseSection
from pipeline.data.records import RatedText
from pipeline.errors import UserError
from pipeline.overoptimise.grid import (
    HOWS,
    Proxy,
    Scale,
    combine,
    optimised,
    proxies,
    texts_for,
)
from reward_models import checked

TEXTS = [RatedText(f"text {i}", 1.0 if i % 4 else -1.0) for i in range(40)]


def test_every_size_has_its_members_once() -> None:
    section = OveroptimiseSection(sizes=[10, "all", 10], members=2)
    assert proxies(section) == [Proxy(s, m) for s in (10, "all") for m in (0, 1)]


def test_small_proxies_learn_from_both_sides_and_large_ones_from_more() -> None:
    few, more = (texts_for(TEXTS, size, 0.0, seed=1) for size in (4, 30))
    assert [t.rating > 0 for t in few].count(True) == 2
    assert more[:4] == few and len({t.text for t in more}) == 30
    assert texts_for(TEXTS, "all", 0.0, seed=1) == TEXTS
    assert texts_for(TEXTS, 4, 0.0, seed=2) != few
    with pytest.raises(UserError, match=r"overoptimise\.sizes: 41 texts .* has 40; lower it"):
        texts_for(TEXTS, 41, 0.0, seed=1)


@pytest.mark.parametrize("how", HOWS)
def test_what_ppo_optimises_is_what_best_of_n_ranks_by(how) -> None:
    raw = np.random.default_rng(0).normal(size=(3, 50)) * [[1.0], [5.0], [2.0]] + 3
    scales = [Scale.of(row, "a proxy") for row in raw]
    ranked = combine(np.array([s(row) for s, row in zip(scales, raw, strict=True)]), how, 1.0)
    members = [checked(lambda prompts, completions, row=row: row.tolist()) for row in raw]
    texts = ["x"] * 50
    assert optimised(members, scales, how, 1.0)(texts, texts) == pytest.approx(ranked)
    if how == "single":
        assert (ranked.mean(), ranked.std()) == pytest.approx((0.0, 1.0), abs=1e-9)


def test_a_reward_without_spread_is_refused() -> None:
    with pytest.raises(UserError, match="gold: it scores every sample of the reference alike"):
        Scale.of(np.zeros(4), "gold")

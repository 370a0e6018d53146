"""A copy that stays behind the policy is told from one that is only rounded otherwise."""

from __future__ import annotations

import torch

from pipeline.ppo.engines.probe import Watch


def test_a_copy_is_told_to_be_behind_only_where_the_change_stands_out_of_the_rounding() -> None:
    generator = torch.Generator().manual_seed(0)

    def noise(size: float) -> torch.Tensor:
        return size * torch.randn(96, generator=generator, dtype=torch.float64)

    start = noise(2.0)
    for seed in range(5):
        generator.manual_seed(seed)
        watch = Watch(start, start + noise(0.02))
        assert not watch.behind(start + noise(0.002), start + noise(0.02))  # too small to tell
        moved = start + noise(0.2)
        assert not watch.behind(moved, moved + noise(0.02))
        assert watch.behind(moved + noise(0.2), moved + noise(0.02))


def test_a_copy_that_is_behind_by_small_steps_is_noticed_in_the_end() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(96, generator=generator, dtype=torch.float64)
    direction = 0.01 * torch.randn(96, generator=generator, dtype=torch.float64)
    watch = Watch(start, start + 0.02 * torch.randn(96, generator=generator, dtype=torch.float64))
    theirs = watch.theirs
    behind = [watch.behind(start + k * direction, theirs) for k in range(1, 12)]
    assert not behind[0] and behind[-1]

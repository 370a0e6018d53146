"""A reward whose scale leaves β without effect is told at the first rollout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.ppo.test_trainer import make_trainer


def rubric(prompts: list[str], completions: list[str]) -> list[float]:
    """Marks from 0 to 100."""
    return [50.0 * (len(text) % 3) for text in completions]


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({"kl_coef": 1.0}, True),
        ({"kl_coef": 0.0}, False),  # no brake, as asked for
        ({"kl_coef": 100.0}, False),
        ({"kl_coef": 1.0, "normalize_rewards": True}, False),
        ({"kl_coef": 1.0, "reward_clip": 5.0}, False),
        ({"kl_coef": 1.0, "kl_target": 5.0}, False),  # β is steered
    ],
)
def test_a_scale_that_leaves_beta_no_brake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict, warns: bool
) -> None:
    trainer, recorder = make_trainer(tmp_path, rubric, total_episodes=16, **settings)
    trainer.train()
    lines = [line for line in capsys.readouterr().err.splitlines() if "is no brake" in line]
    assert len(lines) == warns
    if warns:
        spread = next(log["objective/scores_std"] for log in recorder.logs if "objective/kl" in log)
        assert spread**2 / 2 > 50  # nats, at β = 1
        assert f"spread by {spread:.3g}" in lines[0]
        assert f"some {spread**2 / 2:.3g} nats" in lines[0]

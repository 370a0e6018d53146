"""What is learned from completions that the length limit cuts off (``cut_off``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.lm.models import base_of
from pipeline.lm.route import hidden_states
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.ppo.engines import Called, Request
from pipeline.ppo.rollout import Rollout
from tests.pipeline.ppo.test_trainer import PROMPTS, Recorder, make_trainer, weights

CUT = -7.0


def pays(of_cut: float) -> Any:
    """A reward that says ``of_cut`` of every completion that did not end."""

    def reward(prompts: list[str], completions: list[str], ended: list[bool]) -> list[float]:
        return [
            0.2 * text.count("o") if whole else of_cut
            for text, whole in zip(completions, ended, strict=True)
        ]

    return reward


def ending(*given: Any, **settings: Any) -> tuple[PPOTrainer, Recorder]:
    """A trainer whose completions end at every sixth token: about two in three do."""
    trainer, log = make_trainer(*given, **settings)
    known = len(trainer.tokenizer)
    config: Any = base_of(trainer.actor_critic.policy).generation_config
    config.eos_token_id = [config.eos_token_id, *range(7, known, 6)]
    return trainer, log


HARD: dict[str, Any] = {"normalize_rewards": True, "whiten_rewards": True, "entropy_coef": 0.01}


@pytest.mark.parametrize(
    ("cut_off", "settings", "same"),
    [
        ("keep", {}, False),
        ("mask", {}, True),
        ("mask", HARD | {"critic": "prefix"}, True),
        ("mask", HARD | {"kl_estimator": "exact", "value_backprop": True}, True),
        ("mask", {"kl_in": "loss", "kl_estimator": "k3", "cliprange_value": 0.2}, True),
        ("bootstrap", HARD, True),
    ],
)
def test_a_score_of_what_was_cut_off_teaches_nothing(
    tmp_path: Path, cut_off: str, settings: dict[str, Any], same: bool
) -> None:
    """To the bit, over rollouts in which some end and some do not."""
    found = []
    for score in (0.0, CUT):
        trainer, log = ending(tmp_path, pays(score), total_episodes=32, cut_off=cut_off, **settings)
        trainer.train()
        found.append(weights(trainer))
        shares = [row["val/ended"] for row in log.logs if "val/ended" in row]
        assert len(shares) == 2 and all(0 < share < 1 for share in shares)
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0]) == same


def endless(request: Request) -> list[list[int]]:
    """Completions that never end."""
    token = next(t for t in range(5, 50) if t not in request.stop)
    return [[token] * request.max_new_tokens for _ in request.prompt_ids]


@pytest.mark.parametrize("settings", [{}, HARD | {"critic": "prefix"}, {"kl_estimator": "exact"}])
def test_nothing_is_learned_where_all_are_cut_off(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Not even a step of momentum or of weight decay, and no number is NaN."""
    trainer, log = ending(tmp_path, total_episodes=32, cut_off="mask", weight_decay=0.1, **settings)
    trainer.engine = Called(endless)
    before = weights(trainer)
    trainer.train()
    assert all(torch.equal(before[n], value) for n, value in weights(trainer).items())
    rows = [row for row in log.logs if "val/ended" in row]
    assert len(rows) == 2 and all(row["val/ended"] == 0 for row in rows)
    for name, value in rows[-1].items():
        assert torch.isfinite(torch.tensor(value)), name


@torch.no_grad()
def collected(trainer: PPOTrainer, monkeypatch: pytest.MonkeyPatch, moved: bool = False) -> Rollout:
    """The next rollout, with a critic that knows something.

    Args:
        moved: have the policy another than the reference, so that there is KL to pay.
    """
    if moved:
        policy: Any = trainer.actor_critic.policy
        policy.model.layers[-1].mlp.up_proj.weight.mul_(5.0)
        monkeypatch.setattr(trainer.guards, "look_at_rollout", lambda *given: None)
    torch.manual_seed(3)
    torch.nn.init.normal_(trainer.actor_critic.value_head.out.weight)
    seen: list[Rollout] = []
    plain = trainer.on_rollout
    monkeypatch.setattr(
        trainer, "on_rollout", lambda rollout: seen.append(rollout) or plain(rollout)
    )
    trainer._collect(PROMPTS[:16])
    return seen[0]


@torch.no_grad()
def value_after(trainer: PPOTrainer, tokens: tuple[int, ...]) -> float:
    """V by the head in the state after ``tokens``, by a pass of its own."""
    model = trainer.actor_critic
    return float(model.value_head(hidden_states(model.policy, torch.tensor([tokens]))[0, -1:]))


SECTIONS = [{"trainable_layers": 2}, {"trainable_layers": None}]


@pytest.mark.parametrize("section", SECTIONS, ids=["trunk", "all weights"])
def test_a_bootstrapped_return_ends_with_the_critics_value(
    tmp_path: Path, section: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Returns by hand, with γ = 0.9 and λ = 1: KL paid on the way, then V, and no score."""
    trainer, _ = ending(
        tmp_path, pays(CUT), section, cut_off="bootstrap", gamma=0.9, kl_coef=0.5,
        whiten_advantages=False, per_device_train_batch_size=8,
    )  # fmt: skip
    rollout = collected(trainer, monkeypatch, moved=True)
    old, cut = rollout.old, 0
    assert float((old.logps - old.ref_logps).abs().sum()) > 0.01
    for row, completion in enumerate(rollout.completions):
        text = completion.prompt_ids + completion.completion_ids
        expected = 0.2 * completion.text.count("o")
        if not completion.ended:
            cut += 1
            expected = 0.9 * value_after(trainer, text)
        steps = len(completion.completion_ids)
        for step in reversed(range(steps)):
            kl = float(old.logps[row, step] - old.ref_logps[row, step])
            expected = -0.5 * kl + (expected if step == steps - 1 else 0.9 * expected)
            assert float(rollout.returns[row, step]) == pytest.approx(expected, abs=1e-5)
    assert 0 < cut < 16


def test_the_exact_kl_beyond_the_cut_is_in_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = ending(
        tmp_path, pays(CUT), cut_off="bootstrap", kl_estimator="exact", kl_coef=0.5,
        whiten_advantages=False,
    )  # fmt: skip
    rollout = collected(trainer, monkeypatch, moved=True)
    model = trainer.actor_critic
    for row, completion in enumerate(rollout.completions):
        if completion.ended:
            continue
        text = torch.tensor([completion.prompt_ids + completion.completion_ids])
        with torch.no_grad():
            ours = model.policy(text).logits[0, -1].log_softmax(-1)
            theirs = model._reference[0](text).logits[0, -1].log_softmax(-1)
        kl = float((ours.exp() * (ours - theirs)).sum())
        last = len(completion.completion_ids) - 1
        expected = value_after(trainer, tuple(text[0].tolist())) - 0.5 * kl
        expected -= 0.5 * float(rollout.old.exact_kl[row, last])
        assert kl > 1e-4
        assert float(rollout.returns[row, last]) == pytest.approx(expected, abs=1e-5)


def test_the_prefixes_line_goes_on_beyond_the_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V beyond is the last group's line, as it was fitted before, at the whole text's score."""
    trainer, _ = ending(
        tmp_path, pays(CUT), cut_off="bootstrap", critic="prefix", whiten_advantages=False,
        kl_coef=0.0,
    )  # fmt: skip
    fit = torch.tensor([20.0, 10.0, 30.0, 20.0, 25.0], dtype=torch.float64)
    trainer.prefix_critic.sums[:] = fit  # slope (25/20 − 0.5·1.5)/(1 − 0.25) = 2/3, at 0: 7/6
    rollout = collected(trainer, monkeypatch)
    for row, completion in enumerate(rollout.completions):
        if not completion.ended:
            text = completion.prompt_ids + completion.completion_ids
            expected = value_after(trainer, text) + 2 / 3 * CUT + 7 / 6
            last = len(completion.completion_ids) - 1
            assert float(rollout.returns[row, last]) == pytest.approx(expected, abs=1e-5)


def test_only_what_is_learned_from_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = ending(tmp_path, pays(CUT), cut_off="mask")
    rollout = collected(trainer, monkeypatch)
    ended = torch.tensor([completion.ended for completion in rollout.completions])
    learned: Tensor = rollout.batch.mask & ended[:, None]
    assert torch.equal(rollout.learned, learned)
    assert 0 < int(learned.sum()) < int(rollout.batch.mask.sum())
    kept = rollout.advantages[learned]
    assert float(kept.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(kept.std(unbiased=False)) == pytest.approx(1.0, abs=1e-4)
    assert not rollout.advantages[~learned].any()
    assert trainer.score_deviation.count == int(ended.sum())


@pytest.mark.parametrize("cut_off", ["mask", "bootstrap"])
def test_rows_without_padding_and_microbatches_by_tokens_change_nothing(
    tmp_path: Path, cut_off: Any
) -> None:
    found = []
    for more in ({}, {"packing": True, "microbatch_tokens": 40}):
        trainer, _ = ending(
            tmp_path, pays(CUT), total_episodes=32, cut_off=cut_off, adam_epsilon=1e-4, **more
        )
        trainer.train()
        found.append(weights(trainer))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cut_off", ["mask", "bootstrap"])
def test_a_penalty_has_nobody_to_pay_it(tmp_path: Path, cut_off: Any) -> None:
    with pytest.raises(ValueError, match=r"missing_eos_penalty must be null with cut_off: "):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, cut_off=cut_off, missing_eos_penalty=1.0)

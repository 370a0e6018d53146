"""The exact KL in the place of the sampled one: its gradient is that of the objective."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from classic_rl.advantages import completion_gae
from pipeline.certify.problem import EOS, PROMPT, PROMPT_IDS, Problem
from pipeline.lm.generation import Completion, sample
from pipeline.lm.route import hidden_states, lm_head
from pipeline.lm.scoring import TokenBatch, predicting_states
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.ppo.actor_critic import TokenRecord
from pipeline.ppo.rollout import own_kl_values, token_rewards
from pipeline.ppo.upkeep.memory import _rows_of
from tests.pipeline.ppo.test_adapters import adapted
from tests.pipeline.ppo.test_trainer import PROMPTS, make_trainer, weights

BETA = 0.6


def moved(module: nn.Module, size: float, seed: int) -> None:
    """Add noise to all that is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def on_every_completion(problem: Problem, folder: Path, **settings: Any) -> tuple[PPOTrainer, Any]:
    """A trainer whose policy has left the reference, and a rollout of all that can be written."""
    completions = [
        Completion(PROMPT, PROMPT_IDS, y, text, y[-1] == EOS)
        for y, text in zip(problem.env.sequences, problem.texts, strict=True)
    ]
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "per_device_train_batch_size": len(completions),
        "num_mini_batches": 1,
        "num_ppo_epochs": 1,
        "response_length": 3,
        "max_steps": 4,
        "kl_coef": BETA,
        "whiten_advantages": False,
    }
    trainer = PPOTrainer(
        problem.model(),
        problem.pay,
        PPOConfig(**(arguments | settings)),
        problem.tokenizer,
        [PROMPT] * len(completions),
    )
    moved(trainer.actor_critic, 0.05, seed=1)  # the value head too: some baseline, not the best
    trainer.state.global_step = 1
    trainer._sample = lambda *_: completions  # type: ignore[method-assign]
    trainer.prefix_critic.sums = torch.tensor([[20.0, 4.0, 9.0, 30.0, 12.0]] * 3).double()
    (rollout,) = trainer._collect([PROMPT] * len(completions))
    return trainer, rollout


def gradient(model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    """Of all the policy's weights, as one vector."""
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def sequence_logps(model: nn.Module, batch: TokenBatch) -> torch.Tensor:
    """log π(y) ``(B,)`` by the whole model's logits."""
    states = predicting_states(hidden_states(model, batch.sequences), batch)
    logps = lm_head(model)(states).log_softmax(-1)
    chosen = logps.gather(-1, batch.completion_ids[..., None]).squeeze(-1)
    return torch.where(batch.mask, chosen, 0.0).sum(1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"critic": "prefix"},
        {"whiten_advantages": True},
        {"whiten_advantages": True, "whiten_rewards": True, "critic": "prefix"},
        {"kl_estimator": "k1"},
    ],
    ids=["exact", "prefix critic", "whitened", "all", "k1"],
)
def test_the_expected_gradient_is_the_objectives(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Over all 85 completions, each weighted by π(y): nothing is sampled.

    Whitening multiplies advantages, and so must multiply the KL that the loss charges.
    """
    problem = Problem(1, BETA)
    given = {"kl_estimator": "exact"} | settings
    trainer, rollout = on_every_completion(problem, tmp_path, **given)
    policy, model = trainer.actor_critic.policy, trainer.actor_critic
    paid = torch.tensor(problem.rewards, dtype=torch.float32)[rollout.index]
    logps = sequence_logps(policy, rollout.batch)
    kept = sequence_logps(problem.model(), rollout.batch).detach()
    assert logps.exp().sum().item() == pytest.approx(1.0, abs=1e-4)
    objective = (logps.exp() * (paid - BETA * (logps - kept))).sum()
    wanted = gradient(policy, objective)

    found = torch.zeros_like(wanted)
    for row, weight in enumerate(logps.exp().tolist()):
        loss = trainer.compute_loss(model, {"microbatch": _rows_of(rollout, row, row + 1)})
        found -= weight * rollout.normalizer * gradient(policy, loss)
    scale = 1.0
    if given["kl_estimator"] == "exact":
        scale = rollout.kl_price / BETA
        assert (scale == 1.0) == (not given.get("whiten_advantages", False))
    assert wanted.norm() > 0.05
    assert (found / scale - wanted).norm() < 1e-4 * wanted.norm()


def test_without_the_own_kl_in_the_loss_it_would_not_be(tmp_path: Path) -> None:
    """The KL's own gradient is no small part of it: the test above would see it missing."""
    problem = Problem(1, BETA)
    trainer, rollout = on_every_completion(problem, tmp_path, kl_estimator="exact")
    policy, model = trainer.actor_critic.policy, trainer.actor_critic
    output = model(rollout.batch, None, False, rollout.ref_states)
    chances = sequence_logps(policy, rollout.batch).exp().detach()
    own = gradient(policy, BETA * (chances[:, None] * output.kl).sum())
    assert own.norm() > 0.05


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.8), (0.9, 0.7), (0.9, 0.0)])
def test_a_token_answers_for_the_kl_of_the_states_it_leads_to_and_not_for_its_own(
    gamma: float, lam: float
) -> None:
    """Advantages are those of paying a token, discounted, for the state that it leads to."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    kl, rest, zero = torch.rand(2, 5, generator=generator), torch.rand(2, 5), torch.zeros(2, 5)
    old = TokenRecord(zero, rest, zero, zero, kl)
    scores = torch.tensor([2.0, -1.0])
    rewards = token_rewards(scores, old, mask, 0.5, "exact")
    assert rewards.sum(1) == pytest.approx((scores - 0.5 * (kl * mask).sum(1)).tolist())
    known = own_kl_values(old, mask, 0.5)
    advantages, returns = completion_gae(rewards, rest + known, mask, gamma, lam)

    later = torch.zeros(2, 5)
    later[:, :-1] = torch.where(mask[:, 1:], kl[:, 1:], 0.0)
    paid = token_rewards(scores, old, mask, 0.0, "exact") - gamma * 0.5 * later * mask
    expected, learned = completion_gae(paid, rest, mask, gamma, lam)
    assert torch.allclose(advantages, expected, atol=1e-6)
    assert torch.allclose(returns - known, learned, atol=1e-6)  # what the value head is taught


@pytest.mark.parametrize("form", ["upper layers", "all weights", "LoRA", "LoRA with the head"])
def test_the_update_has_the_kl_and_the_gradient_of_the_whole_models(
    tmp_path: Path, form: str
) -> None:
    """Frozen, trained and adapted heads; the reference from its kept states."""
    settings: dict[str, Any] = {"kl_estimator": "exact", "temperature": 0.8, "logits_chunk": 7}
    section: dict[str, Any] = {"trainable_layers": 2 if form == "upper layers" else None}
    trainer, _ = make_trainer(tmp_path, section=section, **settings)
    if form.startswith("LoRA"):
        modules = ["q_proj", "up_proj"] + (["lm_head"] if "head" in form else [])
        policy = adapted(target_modules=modules)
        trainer = PPOTrainer(policy, trainer.reward, trainer.args, trainer.tokenizer, PROMPTS)
    model = trainer.actor_critic
    reference = [p.detach().clone() for p in model.policy.parameters()]
    made = sample(
        model.policy, trainer.tokenizer, PROMPTS[:6], max_new_tokens=6, batch_size=6, seed=0
    )
    batch = TokenBatch.collate(made, 0, torch.device("cpu"))

    def whole_logps() -> torch.Tensor:
        """log π ``(N, V)`` of the whole model, temperature and all."""
        logits = model.policy(input_ids=batch.sequences, use_cache=False).logits.float()
        return (predicting_states(logits, batch)[batch.mask] / 0.8).log_softmax(-1)

    with torch.no_grad():
        before = whole_logps()
    moved(model.policy, 0.4 if "LoRA" in form else 0.03, seed=2)
    assert any(
        not torch.equal(a, b) for a, b in zip(reference, model.policy.parameters(), strict=True)
    )
    trunk = model.trunk(batch.sequences)
    record, states = model.record_and_states(batch, trunk)
    output = model(batch, trunk, False, states)
    logps = whole_logps()
    kl = (logps.exp() * (logps - before)).sum(-1)
    assert kl.mean() > 0.01
    assert torch.allclose(output.kl[batch.mask], kl, atol=1e-5)
    assert torch.allclose(output.kl, record.exact_kl, atol=1e-5)
    assert torch.allclose(output.logps, record.logps, atol=1e-5)
    chosen = logps.gather(-1, batch.completion_ids[batch.mask][:, None]).squeeze(-1)
    trained = [p for p in model.policy.parameters() if p.requires_grad]
    mix = torch.randn(len(kl), generator=torch.Generator().manual_seed(3))
    wanted = torch.autograd.grad((mix * chosen + kl).sum(), trained)
    loss = (mix * output.logps[batch.mask] + output.kl[batch.mask]).sum()
    for found, expected in zip(torch.autograd.grad(loss, trained), wanted, strict=True):
        assert torch.allclose(found, expected, atol=1e-4)


def test_entropy_beside_it_and_accumulation(tmp_path: Path) -> None:
    ends = []
    for rows in (8, 2):
        trainer, _ = make_trainer(
            tmp_path,
            kl_estimator="exact",
            critic="prefix",
            entropy_coef=0.01,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=8 // rows,
            total_episodes=32,
        )
        trainer.train()
        ends.append(weights(trainer))
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], atol=1e-5), name


@pytest.mark.parametrize(
    "section", [{"trainable_layers": 2}, {"trainable_layers": None, "use_peft": True}]
)
def test_in_bfloat16_the_first_update_is_where_the_reference_is(
    tmp_path: Path, section: dict[str, Any]
) -> None:
    trainer, recorder = make_trainer(
        tmp_path, section=section, kl_estimator="exact", critic="prefix", bf16=True
    )
    trainer.train()
    rows = [row for row in recorder.logs if "objective/kl_exact" in row]
    assert rows[0]["objective/kl_exact"] == pytest.approx(0.0, abs=1e-5)
    assert 0.0 < rows[-1]["objective/kl_exact"] < 5.0


def test_without_a_price_the_reference_is_not_kept(tmp_path: Path) -> None:
    """β = 0: nothing is charged, so nothing is paid for it either; and it is what k1 gives."""
    ends = []
    for estimator in ("exact", "k1"):
        trainer, _ = make_trainer(tmp_path, kl_estimator=estimator, kl_coef=0.0, total_episodes=16)
        trainer.actor_critic.record_and_states = None  # type: ignore[assignment]
        trainer.train()
        ends.append(weights(trainer))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_steered_price_is_the_same_in_return_and_loss(tmp_path: Path) -> None:
    """β changes after a rollout; the update of that rollout goes on with the one it was charged."""
    trainer, _ = make_trainer(
        tmp_path, kl_estimator="exact", kl_target=0.5, kl_horizon=20, whiten_advantages=False
    )
    (first, *_) = trainer._collect(PROMPTS[:16])
    assert first.kl_price == pytest.approx(0.1)
    assert trainer.kl_control.coefficient == pytest.approx(0.1 * (1 - 0.2 * 16 / 20))


def test_exact_in_the_loss_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="kl_estimator must be k2 or k3 with kl_in: loss"):
        PPOConfig(output_dir="x", kl_estimator="exact", kl_in="loss", use_cpu=True)
